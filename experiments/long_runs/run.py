"""Does a run of thousands of epochs grow in memory, slow to resume, or make a page nobody can open?

Trains through the command line, in a process of its own, and looks at it from outside.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import command, evaluation
from fmnist_jax.errors import UserError
from fmnist_jax.interrupt import Interrupt

# Everything that has state, on few images: saves, records and evaluations, not arithmetic.
BASE = ('--config=smoke', '--config.train.early_stopping_patience=0',
        '--config.data.test_examples=100')
MEMORY = ('--config.data.train_examples=2000', '--config.data.validation_examples=500')
TINY = ('--config.data.train_examples=150', '--config.data.validation_examples=50',
        '--config.data.batch_size=50')


def rss(process: int) -> float:
  """Resident memory of a process that lives, MiB."""
  pages = int(pathlib.Path(f'/proc/{process}/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def lines(path: pathlib.Path) -> int:
  """How many epochs metrics.jsonl has."""
  return path.read_bytes().count(b'\n') if path.exists() else 0


def run(workdir: pathlib.Path, *overrides: str) -> dict[str, Any]:
  """One start of the command line.

  Returns:
    Its seconds, and its resident memory, MiB, when it had finished each epoch that was seen.
  """
  argv = [sys.executable, '-m', 'fmnist_jax.main', *BASE, *overrides, f'--workdir={workdir}']
  began, memory, seen = time.perf_counter(), {}, lines(workdir / 'metrics.jsonl')
  with open(workdir.with_suffix('.log'), 'ab') as log, subprocess.Popen(
      argv, stdout=log, stderr=log) as process:
    try:
      while process.poll() is None:
        now = lines(workdir / 'metrics.jsonl')
        with contextlib.suppress(OSError, IndexError):  # It may be gone meanwhile.
          if now > seen:
            memory[now], seen = round(rss(process.pid), 1), now
        time.sleep(0.02)
    finally:
      process.kill()
  if process.returncode:
    raise UserError(f'{" ".join(argv)} failed; see {log.name}.')
  return {'seconds': round(time.perf_counter() - began, 2), 'memory': memory}


def at(memory: dict[int, float], epochs: int) -> float:
  """The largest of the memory in the tenth of the run that ends with this epoch."""
  return max(value for epoch, value in memory.items() if 0.9 * epochs <= epoch <= epochs)


def resumed(runs: pathlib.Path, epochs: int) -> dict[str, Any]:
  """Trains for that many epochs, then starts again with only the results missing."""
  workdir = runs / f'epochs-{epochs}'
  shutil.rmtree(workdir, ignore_errors=True)
  overrides = (*TINY, f'--config.train.epochs={epochs}')
  first = run(workdir, *overrides)
  seconds = []
  for _ in range(3):
    (workdir / 'results.json').unlink()
    seconds.append(run(workdir, *overrides)['seconds'])
  report = workdir / 'report'
  return {
      'epochs': epochs, 'first_seconds': first['seconds'], 'again_seconds': sorted(seconds),
      'memory_early': at(first['memory'], max(epochs // 10, 1)),
      'memory_end': at(first['memory'], epochs),
      'checkpoints': len(list((workdir / 'checkpoints').iterdir())),
      'metrics_bytes': (workdir / 'metrics.jsonl').stat().st_size,
      'page_bytes': (report / 'report.html').stat().st_size,
      'curves_bytes': (report / 'curves.png').stat().st_size}


def main(interrupt: Interrupt) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--runs', default='runs/experiments/long_runs', help='where the runs lie')
  parser.add_argument('--quick', action='store_true', help='a trial of few epochs: everything goes '
                      'to --runs, nothing into this folder')
  args = parser.parse_args()
  runs = pathlib.Path(args.runs)
  runs.mkdir(parents=True, exist_ok=True)
  began = time.perf_counter()
  epochs, many = (40, 60) if args.quick else (200, 3000)
  workdir = runs / 'memory'
  shutil.rmtree(workdir, ignore_errors=True)
  memory = run(workdir, *MEMORY, f'--config.train.epochs={epochs}')['memory']
  marks = [n * epochs // 10 for n in (1, 2, 4, 6, 8, 10)]
  found: dict[str, Any] = {
      'memory': {mark: at(memory, mark) for mark in marks},
      'resume': [resumed(runs, count) for count in (3, many)],
      'versions': evaluation.versions(), 'minutes': round((time.perf_counter() - began) / 60, 1)}
  rows = [['epochs so far', *map(str, found['memory'])],
          ['resident memory, MiB', *(f'{value:.0f}' for value in found['memory'].values())]]
  names = [('first_seconds', 'whole run, s'), ('again_seconds', 'start to finish again, s'),
           ('memory_early', 'memory at a tenth of it, MiB'), ('memory_end', 'at its end, MiB'),
           ('checkpoints', 'checkpoints kept'), ('metrics_bytes', 'metrics.jsonl, bytes'),
           ('page_bytes', 'report.html, bytes'), ('curves_bytes', 'curves.png, bytes')]
  text = lambda value: f'{value[1]:.1f}' if isinstance(value, list) else (
      f'{value:,}' if isinstance(value, int) else f'{value:,.0f}')
  table = [['epochs', *(f'{entry["epochs"]:,}' for entry in found['resume'])]]
  table += [[label, *(text(entry[name]) for entry in found['resume'])] for name, label in names]
  place = record.Experiment(pathlib.Path(__file__).resolve().parent, runs, args, interrupt)
  place.save(found, f'{record.table(rows)}\n\n{record.table(table)}\n\n'
             f'jax {found["versions"]["jax"]}, {os.cpu_count()} CPU cores; '
             f'all in all {found["minutes"]} minutes.')


if __name__ == '__main__':
  command.run(main)
