"""How fast training is that reads its images ahead, and in how much memory; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import machine
from fmnist_jax.errors import ConfigError, UserError
from fmnist_jax.storage import files

HERE = pathlib.Path(__file__).resolve().parent
WAYS = ('resident', 'streamed')
TIMES = ('seconds', 'images_per_second', 'seal')
IMAGE = 64 * 64 * 3  # bytes


def started(experiment: record.Experiment, *argv: str, tfds: pathlib.Path | None = None
            ) -> tuple[str, float]:
  """Runs a program of this Python: what it printed, and its peak memory, bytes."""
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (HERE.parents[1], HERE)))}
  if tfds:
    environment['TFDS_DATA_DIR'] = str(tfds.resolve())
  with tempfile.TemporaryFile('w+') as out:
    process = subprocess.Popen([sys.executable, *argv], stdout=out, stderr=out, env=environment)
    try:
      while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
          process.returncode = os.waitstatus_to_exitcode(status)
          break
        experiment.interrupt.check()
        time.sleep(0.02)
    finally:
      if process.returncode is None:
        process.kill()
        process.wait()
    out.seek(0)
    text = out.read()
  if process.returncode:
    raise UserError(f'{" ".join(argv)} ended with {process.returncode}: {text.strip()[-500:]}')
  return text, usage.ru_maxrss * 1024


def trained(experiment: record.Experiment, workdir: pathlib.Path, *argv: str,
            tfds: pathlib.Path | None = None) -> dict[str, Any]:
  """A run through the command line.

  Returns:
    images a second (median of epochs after the first), seconds of data, peak memory in bytes, and
    the records without times, in which runs of the same bits agree.
  """
  shutil.rmtree(workdir, ignore_errors=True)
  _, peak = started(experiment, '-m', 'fmnist_jax.main', f'--workdir={workdir}', *argv, tfds=tfds)
  records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  rates = [one['images_per_second'] for one in records[1:] or records]
  results = files.read_json(workdir / 'results.json', sealed=True)
  plain = [{name: value for name, value in one.items() if name not in TIMES} for one in records]
  return {'rate': statistics.median(rates), 'data': results['seconds']['data'], 'peak': peak,
          'records': plain, 'device': results['device']}


def beside_resident(experiment: record.Experiment, work: pathlib.Path) -> dict[str, Any]:
  """Both ways on Fashion-MNIST, in turn."""
  args, found = experiment.args, {}
  changes = dict(record.QUICK) if args.quick else {}
  if args.data_dir:
    changes['data.data_dir'] = args.data_dir
  for model, epochs in (('mlp', 20), ('cnn', 4)):
    changes['train.epochs'] = 3 if args.quick else epochs
    rounds = []
    for _ in range(args.rounds + 1):  # The first compiles, and is not counted.
      pair = {way: trained(experiment, work / 'run', f'--config={model}',
                           f'--config.data.residency={way}',
                           *(f'--config.{name}={value}' for name, value in changes.items()))
              for way in WAYS}
      if pair['resident']['records'] != pair['streamed']['records']:
        raise UserError(f'{model} trained otherwise when streamed: the same bits were promised.')
      rounds.append(pair)
      print(f'{model}: {pair["streamed"]["rate"] / pair["resident"]["rate"]:.2f}', flush=True)
    found[model] = {way: {'rates': [pair[way]['rate'] for pair in rounds[1:]],
                          'peaks': [pair[way]['peak'] for pair in rounds[1:]]} for way in WAYS}
    found[model]['ratios'] = [pair['streamed']['rate'] / pair['resident']['rate']
                              for pair in rounds[1:]]
    found['device'] = rounds[0]['resident']['device']
  return found


def growth(experiment: record.Experiment, work: pathlib.Path, sizes: tuple[int, ...]
           ) -> list[dict[str, Any]]:
  """Sets of growing size: made, read, trained on, removed."""
  found = []
  for size in sizes:
    tfds = work / 'made'
    shutil.rmtree(tfds, ignore_errors=True)
    tfds.mkdir(parents=True)
    if shutil.disk_usage(tfds).free < 1.2 * size * IMAGE:
      raise ConfigError(f'{size:,} images take {size * IMAGE / 1e9:.0f} GB, and {tfds} has less; '
                        'give --runs on another disk, or a smaller --largest.')
    try:
      argv = (f'--config={HERE / "made.py"}', f'--config.data.examples={size}')
      began = time.perf_counter()
      started(experiment, '-c', f'import made; made.Made(examples={size}).load()', tfds=tfds)
      made = time.perf_counter() - began
      read = json.loads(started(experiment, str(HERE / 'made.py'), str(size), tfds=tfds)[0]
                        .splitlines()[-1])
      run = trained(experiment, work / 'run', *argv, tfds=tfds)
    finally:
      shutil.rmtree(tfds, ignore_errors=True)
    found.append({'images': size, 'bytes': size * IMAGE, 'made_seconds': made, 'read': read,
                  **{name: run[name] for name in ('rate', 'data', 'peak')}})
    print(found[-1], flush=True)
  return found


def body(experiment: record.Experiment) -> None:
  """Measures both, writes the tables."""
  args = experiment.args
  sizes = [size for size in (10_000, 30_000, 100_000, 300_000, 1_000_000) if size <= args.largest]
  if args.rounds < 1 or not sizes:
    raise ConfigError('--rounds must be at least 1, and --largest at least 10000.')
  if args.quick:
    args.rounds, sizes = 1, [3000, 6000]
  work = experiment.runs / 'streaming'
  sets = growth(experiment, work, tuple(sizes))
  models = beside_resident(experiment, work)
  device = models.pop('device')
  shutil.rmtree(work / 'run', ignore_errors=True)
  mib = lambda value: f'{value / 2**20:,.0f}'
  median = lambda values: statistics.median(values)
  rows = [['Fashion-MNIST', 'resident, images a second', 'streamed', 'streamed / resident',
           'resident, peak memory MiB', 'streamed']]
  rows += [[f'`{model}`', *(f'{median(found[way]["rates"]):,.0f}' for way in WAYS),
            f'{median(found["ratios"]):.2f} ({min(found["ratios"]):.2f} to '
            f'{max(found["ratios"]):.2f})', *(mib(median(found[way]['peaks'])) for way in WAYS)]
           for model, found in models.items()]
  grown = [['images of 64x64x3', 'GB', 'trained on, images a second', 'peak memory MiB',
            'verified and opened, s', 'made, s', 'read in batches, warm', 'from the disk',
            'the disk in its order']]
  grown += [[f'{one["images"]:,}', f'{one["bytes"] / 1e9:.1f}', f'{one["rate"]:,.0f}',
             mib(one['peak']), f'{one["data"]:.1f}', f'{one["made_seconds"]:.0f}',
             *(f'{one["read"][name]:,.0f}' for name in ('warm', 'cold', 'disk'))] for one in sets]
  versions = machine.versions()
  text = (f'{record.table(rows)}\n\n{record.table(grown)}\n\n'
          f'Medians of {args.rounds} rounds, lowest and highest. {device}, jax {versions["jax"]}.')
  experiment.save({'models': models, 'sets': sets, 'device': device, 'versions': versions}, text)


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--rounds', type=int, default=5, help='of both ways, in turn')
  parser.add_argument('--largest', type=int, default=1_000_000, help='images of the largest set')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=1, extra=extra)
