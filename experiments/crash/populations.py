"""kill -9 of populations in both modes, until each is finished all the same."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import subprocess
import sys
import time
from typing import Any

import same
import watch
from campaign import Campaign

_ARGUMENTS = (*watch.RUN, '--config.train.epochs=4', '--config.train.checkpoint_every_seconds=0.1',
              '--seeds=2', '--vary', 'optim.learning_rate=1e-3,3e-3')
_MOST = 8  # Kills of a population; then it may finish.


def kill(campaign: Campaign, kills: int) -> None:
  """Kills populations `kills` times, half of them in each mode; notes each process."""
  for mode in ('independent', 'vectorized'):
    notes = [note for note in campaign.records('population') if note['mode'] == mode]
    whole, usual = _uninterrupted(campaign, mode)
    number, done = len(notes), sum(note['killed'] for note in notes)
    while done < kills // 2:
      number += 1
      for note in _one(campaign, mode, number, whole, usual):
        done += note['killed']


def _one(campaign: Campaign, mode: str, number: int, whole: dict[str, Any],
         usual: float) -> list[dict[str, Any]]:
  """A population, killed and started again until it is finished."""
  chance, notes = random.Random(f'{mode} {number}'), []
  workdir = campaign.watcher.work / f'population-killed-{mode}'
  shutil.rmtree(workdir, ignore_errors=True)
  finished = False
  while not finished:
    limit = 600.0 if len(notes) == _MOST else chance.random() * usual
    code, said = _run(campaign, mode, workdir, limit)
    finished = code != -9
    wrong = [problem for member in (workdir / 'members').glob('*')
             for problem in same.unreadable(member)]
    if 'Traceback' in said:
      wrong.append(f'a traceback: {said[-2000:]}')
    if finished:
      wrong += [f'exit code {code}: {said[-2000:]}'] if code else same.differences(
          whole, _outcome(workdir))
    notes.append({'mode': mode, 'number': number, 'killed': not finished, 'wrong': wrong})
    campaign.note('population', notes[-1])
    print(f'population {mode} {number}: {"finished" if finished else "killed"}  '
          f'{"; ".join(wrong)}', flush=True)
    if wrong:
      workdir.rename(workdir.with_name(f'{workdir.name}-wrong-{int(time.time())}'))
      break
  return notes


def _uninterrupted(campaign: Campaign, mode: str) -> tuple[dict[str, Any], float]:
  workdir = campaign.watcher.work / f'population-{mode}'
  seconds = []
  for _ in range(2):  # The second with data prepared and programs compiled.
    shutil.rmtree(workdir, ignore_errors=True)
    began = time.monotonic()
    code, said = _run(campaign, mode, workdir, 600.0)
    seconds.append(time.monotonic() - began)
    if code:
      raise RuntimeError(f'An uninterrupted population failed: {said}')
  return _outcome(workdir), seconds[-1]


def _run(campaign: Campaign, mode: str, workdir: pathlib.Path, limit: float) -> tuple[int, str]:
  """Exit code, -9 of one that was killed after `limit` seconds, and what was said."""
  process = subprocess.Popen(
      [sys.executable, '-m', 'fmnist_jax.population', *_ARGUMENTS, f'--mode={mode}',
       f'--workdir={workdir}'], cwd=campaign.watcher.work, text=True,
      env=campaign.watcher.environment('data', 'cache'), stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT)
  try:
    return process.wait(limit), process.communicate()[0]
  except subprocess.TimeoutExpired:
    process.kill()
    return process.wait(), process.communicate()[0]


def _outcome(workdir: pathlib.Path) -> dict[str, Any]:
  found = {f'{path.name}/{name}': value for path in sorted((workdir / 'members').iterdir())
           for name, value in same.outcome(path).items()}
  summary = json.loads((workdir / 'population.json').read_text())
  found['accuracy'] = [group['accuracy'] for group in summary['groups']]
  return found
