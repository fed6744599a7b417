"""Broken files, arguments and arrays by the hundred thousand, given to what reads them."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from concurrent import futures
from typing import Any

from campaign import Campaign

_ROOT = pathlib.Path(__file__).resolve().parents[2]

# The tests that make such input and say what becomes of it, and how many times as much as of the
# others each is given.
READERS = {
    'test_data_idx.py::test_mutated_files_raise_our_error_or_are_consistent[bytes]':
        ('IDX files', 100),
    'test_data_idx.py::test_mutated_files_raise_our_error_or_are_consistent[compress]':
        ('IDX files in gzip', 100),
    'test_readback.py::test_broken_own_data': ('`.npz` files of a user', 1),
    'test_readback.py::test_broken_configs': ('`config.json`', 1),
    'test_readback.py::test_overrides_nobody_expects': ('`--config.FIELD=VALUE`', 1),
    'test_readback.py::test_arguments_nobody_expects': ('arguments of the commands', 1),
    'test_readback.py::test_broken_histories': ('`metrics.jsonl`', 1),
    'test_readback.py::test_broken_runs':
        ('`results.json`, `metrics.jsonl`, `predictions.npz` of a finished run', 1),
    'test_readback.py::test_broken_populations': ('`population.json`', 1),
    'test_readback.py::test_images_nobody_expects': ('images given to `predict`', 1),
}


def read(campaign: Campaign, examples: int) -> None:
  """Gives each reader some input `examples` times, or that many times more of it."""
  done = {note['test'] for note in campaign.records('readers')}
  with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    coming = [threads.submit(_read, test, examples) for test in READERS if test not in done]
    for one in futures.as_completed(coming):
      note = one.result()
      campaign.note('readers', note)
      print(f'{note["what"]}: {note["tried"]:,} read, {note["failed"]} failed  '
            f'{"; ".join(note["wrong"])}', flush=True)


def _read(test: str, examples: int) -> dict[str, Any]:
  what, times = READERS[test]
  ended = subprocess.run(
      [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', f'tests/{test}'], cwd=_ROOT,
      text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      env={**os.environ, 'FMNIST_JAX_FUZZ': str(examples * times)})
  # A test with several parameters counts as several; one that passed got all of its examples.
  tests = {outcome: int(number) for number, outcome in re.findall(
      r'(\d+) (passed|failed|error)', ended.stdout)}
  passed, failed = tests.get('passed', 0), sum(tests.values()) - tests.get('passed', 0)
  return {'test': test, 'what': what, 'tried': examples * times * passed + failed,
          'failed': failed,
          'wrong': [ended.stdout[-4000:]] if ended.returncode or not passed else []}
