"""kill -9 of one of three workers of a search, again and again, until it is finished even so."""

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

_WORKERS, _TRIALS = 3, 12
_MOST = 10  # kills of a search; then it may finish
_ARGUMENTS = (*watch.RUN, '--config.train.epochs=4', f'--trials={_TRIALS}', '--lease=3',
              '--at_once=1', '--range=optim.learning_rate=1e-4..1e-1:log', '--pruner=median')


def kill(campaign: Campaign, kills: int) -> None:
  """Kills workers `kills` times; notes each search."""
  notes = campaign.records('search')
  number, done = len(notes), sum(note['kills'] for note in notes)
  while done < kills:
    number += 1
    note = _one(campaign, number, min(_MOST, kills - done))
    done += note['kills']


def _one(campaign: Campaign, number: int, kills: int) -> dict[str, Any]:
  """A search whose workers are killed and started again until it is finished."""
  chance = random.Random(number)
  workdir = campaign.watcher.work / f'search-{number}'
  shutil.rmtree(workdir, ignore_errors=True)
  workers = [_start(campaign, workdir) for _ in range(_WORKERS)]
  killed, said, began = 0, [], time.monotonic()
  try:
    due = began + chance.uniform(1, 15)
    while any(worker.poll() is None for worker in workers):
      time.sleep(0.05)
      if killed < kills and time.monotonic() > due:
        victim = chance.randrange(_WORKERS)
        if workers[victim].poll() is None:
          workers[victim].kill()
          said.append(workers[victim].communicate()[0])
          killed += 1
          workers[victim] = _start(campaign, workdir)
        due = time.monotonic() + chance.uniform(1, 15)
    said += [worker.communicate()[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
      worker.wait()
  wrong = [f'exit code {worker.returncode}: {said[-1][-2000:]}'
           for worker in workers if worker.returncode]
  wrong += [f'a traceback: {text[-2000:]}' for text in said if 'Traceback' in text]
  note = {'number': number, 'kills': killed, 'seconds': time.monotonic() - began,
          'wrong': wrong or _wrong(campaign, workdir)}
  campaign.note('search', note)
  print(f'search {number}: {killed} kills, {note["seconds"]:.0f} s  {"; ".join(note["wrong"])}',
        flush=True)
  if note['wrong']:
    workdir.rename(workdir.with_name(f'{workdir.name}-wrong-{int(time.time())}'))
  return note


def _start(campaign: Campaign, workdir: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
      [sys.executable, '-m', 'fmnist_jax.search', *_ARGUMENTS, f'--workdir={workdir}'], text=True,
      cwd=campaign.watcher.work, env=campaign.watcher.environment('data', 'cache'),
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _wrong(campaign: Campaign, workdir: pathlib.Path) -> list[str]:
  """What is wrong with a finished search; nothing, it is hoped."""
  found = json.loads((workdir / 'search.json').read_text())
  names = [trial['name'] for trial in found['trials']]
  there = sorted(path.name for path in (workdir / 'trials').iterdir())
  wrong = []
  if there != sorted(names) or len(set(names)) != _TRIALS:
    wrong.append(f'{len(names)} trials are told, these are there: {there}')
  finished = {trial['name']: trial['accuracy'] for trial in found['trials']
              if trial['accuracy'] is not None}
  if finished.get(found['best']) != max(finished.values()):
    wrong.append('the best is not the best')
  for trial in found['trials']:
    kept = json.loads((workdir / 'trials' / trial['name'] / 'outcome.json').read_text())
    lines = (workdir / 'trials' / trial['name'] / 'seed-0' / 'metrics.jsonl').read_text()
    curve = [json.loads(line)['validation_accuracy'] for line in lines.splitlines()]
    if any(kept[key] != value for key, value in trial.items() if key != 'name'):
      wrong.append(f'{trial["name"]} is told otherwise than its directory says')
    if trial['validation_accuracy'] != [curve]:
      wrong.append(f'{trial["name"]} has another history')
  # However often it was taken up, it is the run that it is alone.
  best = workdir / 'trials' / found['best'] / 'seed-0'
  alone = workdir / 'alone'
  ended = subprocess.run(
      [sys.executable, '-m', 'fmnist_jax.main', f'--config={best / "config.json"}',
       f'--workdir={alone}'], cwd=campaign.watcher.work, text=True, capture_output=True,
      env=campaign.watcher.environment('data', 'cache'))
  if ended.returncode:
    return [*wrong, f'the best alone: {ended.stderr[-2000:]}']
  outcomes = [{name: value for name, value in same.outcome(path).items() if name != 'report'}
              for path in (best, alone)]
  return wrong + [f'the best alone differs: {name}' for name in same.differences(*outcomes)]
