"""Broken files, arguments and arrays by the hundred thousand, given to what reads them."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

from campaign import Campaign

_ROOT = pathlib.Path(__file__).resolve().parents[2]

# The tests that make such input and say what becomes of it, and how many times as much as of the
# others each is given.
READERS = {
    'test_data_idx.py::test_mutated_files_raise_our_error_or_are_consistent':
        ('IDX and gzip files', 25),
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
  for test, (what, times) in READERS.items():
    if test in done:
      continue
    ended = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-n', '2', '-p', 'no:cacheprovider',
         '--hypothesis-show-statistics', f'tests/{test}'], cwd=_ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, 'FMNIST_JAX_FUZZ': str(examples * times)})
    counts = [[int(number) for number in found] for found in re.findall(
        r'(\d+) passing examples, (\d+) failing examples', ended.stdout)]
    tried, failed = (sum(column) for column in zip(*counts)) if counts else (0, 0)
    wrong = [ended.stdout[-4000:]] if ended.returncode or failed or not tried else []
    campaign.note('readers', {'test': test, 'what': what, 'tried': tried + failed,
                              'failed': failed, 'wrong': wrong})
    print(f'{what}: {tried + failed:,} read, {failed} failed  {"; ".join(wrong)}', flush=True)
