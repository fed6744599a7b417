"""Measurements, each in a process of its own, kept one a line so that nothing is measured twice."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import environments
import plan

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MARK = 'RESULT '
TIMEOUT = 1800
# Nobody's threads or compiler are tuned from outside: all measure with their defaults.
_TUNING = ('XLA_', 'JAX_', 'TF_', 'KERAS_', 'OMP_', 'MKL_', 'KMP_', 'TORCH', 'DNNL_', 'ONEDNN_',
           'PYTHONPATH', 'LD_PRELOAD')


class Log:
  """The measurements so far, in a file that grows by a line each."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.records: list[dict[str, Any]] = []
    if path.is_file():
      text = path.read_text()
      if text and not text.endswith('\n'):  # Cut short by a kill: is measured again.
        path.write_text(text + '\n')
      for line in text.splitlines():
        try:
          self.records.append(json.loads(line))
        except ValueError:
          continue

  def done(self, spec: dict[str, Any]) -> bool:
    """Whether it was measured, successfully."""
    return any(plan.key(record) == plan.key(spec) and 'error' not in record
               for record in self.records)

  def append(self, record: dict[str, Any]) -> None:
    """Keeps a measurement, in place of a failed one."""
    self.records = [r for r in self.records if plan.key(r) != plan.key(record)] + [record]
    with self.path.open('a') as file:
      file.write(json.dumps(record) + '\n')


def environment(work: pathlib.Path, **more: str) -> dict[str, str]:
  """Environment variables of a measured process."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith(_TUNING)}
  return {**kept, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': '',
          'TFDS_DATA_DIR': str(work / 'tfds'),
          'XDG_CACHE_HOME': str(work / 'cache'),
          'TORCHINDUCTOR_CACHE_DIR': str(work / 'inductor'), **more}


def worker(script: str, library: str, argument: str, work: pathlib.Path,
           envs: pathlib.Path) -> dict[str, Any]:
  """Runs a worker and returns what it found; {'error': ...} when it failed."""
  command = [environments.python(library, envs), str(HERE / 'workers' / script), argument]
  try:
    done = subprocess.run(command, env=environment(work), capture_output=True, text=True,
                          timeout=TIMEOUT)
  except subprocess.TimeoutExpired:
    return {'error': f'took more than {TIMEOUT} s'}
  lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
  if done.returncode or not lines:
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return {'error': said[-1][:300] if said else f'exit code {done.returncode}'}
  return {'found': json.loads(lines[-1].removeprefix(MARK))}


def measure(spec: dict[str, Any], data: pathlib.Path, work: pathlib.Path,
            envs: pathlib.Path) -> dict[str, Any]:
  """The record of a measurement with a peer's or our worker."""
  argument = json.dumps({**spec, 'data': str(data), 'started': time.time()})
  outcome = worker(plan.WORKERS[spec['library']], spec['library'], argument, work, envs)
  return {**{name: spec[name] for name in (
      'task', 'mode', 'model', 'batch', 'round', 'seed', 'train_examples')},
      'start': spec.get('start'), **outcome}


# The recipe for few seconds: `configs/cnn.py` takes its time, for an accuracy beyond these.
SHORT = {'train.epochs': 5, 'data.augment': ''}


def command_line(spec: dict[str, Any], name: str, data_dir: str,
                 work: pathlib.Path) -> dict[str, Any]:
  """The record of a whole run of the real command line: when each epoch's record was written.

  A cold start has no compiled programs and no prepared data set; a warm one finds those of the cold
  start before.
  """
  home = work / 'home'
  workdir = home / f'{spec["start"]}-{time.time_ns()}'
  home.mkdir(parents=True, exist_ok=True)
  if spec['start'] == 'cold':
    for old in ('cache', 'tfds'):
      shutil.rmtree(home / old, ignore_errors=True)
  overrides = [f'--config.{field}={value}' for field, value in {
      'data.name': name, 'train.seed': spec['seed'], **SHORT}.items()]
  if data_dir:
    overrides.append(f'--config.data.data_dir={data_dir}')
  if spec['train_examples'] < 55_000:
    overrides.append(f'--config.data.train_examples={spec["train_examples"] + 5000}')
  env = environment(work, XDG_CACHE_HOME=str(home / 'cache'), TFDS_DATA_DIR=str(home / 'tfds'))
  curve: list[tuple[float, float]] = []
  peak = 0.0
  started = time.time()
  with (home / 'output.txt').open('w') as output:
    process = subprocess.Popen(
        [sys.executable, '-m', 'fmnist_jax.main', '--config=configs/cnn.py',
         f'--workdir={workdir}', *overrides], cwd=ROOT, env=env, stdout=output, stderr=output)
    while process.poll() is None:
      time.sleep(0.05)
      peak = max(peak, _peak_mb(process.pid))
      curve += _new_epochs(workdir / 'metrics.jsonl', len(curve), time.time() - started)
  seconds = time.time() - started
  if process.returncode:
    said = (home / 'output.txt').read_text().strip().splitlines() or ['no output']
    outcome: dict[str, Any] = {'error': said[-1][:300]}
  else:
    results = json.loads((workdir / 'results.json').read_text())
    outcome = {'found': {'curve': curve, 'peak_mb': peak, 'seconds': seconds,
                         'test_accuracy': results['accuracy'], 'phases': results['seconds'],
                         'versions': results['versions']}}
  return {**{k: spec[k] for k in ('task', 'mode', 'model', 'batch', 'round', 'seed',
                                  'train_examples', 'start')}, **outcome}


def _new_epochs(path: pathlib.Path, known: int, now: float) -> list[tuple[float, float]]:
  if not path.is_file():
    return []
  lines = [line for line in path.read_text().split('\n')[:-1] if line]  # Whole lines only.
  return [(now, json.loads(line)['validation_accuracy']) for line in lines[known:]]


def _peak_mb(pid: int) -> float:
  try:
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return 0.0
  return max((int(line.split()[1]) / 1024 for line in status.splitlines()
              if line.startswith('VmHWM')), default=0.0)
