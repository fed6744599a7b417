"""Checkpoints with a file truncated, changed, emptied or removed, one at a time."""

from __future__ import annotations

import logging
import pathlib
import random
import shutil
from collections.abc import Callable

import same
import watch
from campaign import Campaign

from fmnist_jax.errors import CheckpointError
from fmnist_jax.storage.checkpoint import Checkpoints


def _truncate(path: pathlib.Path, chance: random.Random) -> None:
  with open(path, 'r+b') as file:
    file.truncate(chance.randrange(1, path.stat().st_size))


def _flip(path: pathlib.Path, chance: random.Random) -> None:
  content = bytearray(path.read_bytes())
  bit = chance.randrange(8 * len(content))
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


DAMAGES: dict[str, Callable[[pathlib.Path, random.Random], None]] = {
    'truncated': _truncate, 'one bit flipped': _flip,
    'emptied': lambda path, _: path.write_bytes(b''), 'removed': lambda path, _: path.unlink()}


class _Log(logging.Handler):
  def __init__(self) -> None:
    super().__init__()
    self.lines: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    """See logging."""
    self.lines.append(record.getMessage())


def damage(campaign: Campaign, repeats: int) -> None:
  """Breaks every file of the newest checkpoint in every way, with an older one and without."""
  if campaign.records('broken'):
    return
  campaign.uninterrupted('short', watch.SHORT)
  whole = campaign.watcher.work / 'short-0' / 'checkpoints'
  folder = campaign.watcher.work / 'broken'
  older, newest = Checkpoints(whole).steps()[-2:]
  files = sorted(path.relative_to(whole / str(newest))
                 for path in (whole / str(newest)).rglob('*') if path.is_file())
  log, chance = _Log(), random.Random(0)
  logger = logging.getLogger('absl')
  logger.addHandler(log)
  propagate, logger.propagate = logger.propagate, False
  try:
    for how, change in DAMAGES.items():
      for alone in (False, True):
        wrong, tried = [], 0
        for file in files:
          for _ in range(repeats if how in ('truncated', 'one bit flipped') else 1):
            shutil.rmtree(folder, ignore_errors=True)
            for step in [newest] if alone else [older, newest]:
              shutil.copytree(whole / str(step), folder / str(step))
            change(folder / str(newest) / file, chance)
            tried += 1
            log.lines.clear()
            problem = _look(folder, None if alone else older, newest, log)
            if problem:
              wrong.append(f'{file}: {problem}')
        campaign.note('broken', {'damage': how, 'alone': alone, 'files': len(files),
                                 'tried': tried, 'wrong': wrong})
        print(f'checkpoint {how}, {"alone" if alone else "with an older one"}: {tried} tried  '
              f'{"; ".join(wrong)}', flush=True)
  finally:
    logger.removeHandler(log)
    logger.propagate = propagate
    shutil.rmtree(folder, ignore_errors=True)


def _look(folder: pathlib.Path, older: int | None, newest: int, log: _Log) -> str:
  """What is wrong with how a damaged checkpoint is met; '' for nothing."""
  checkpoints = Checkpoints(folder)
  try:
    checkpoints.restore(newest, {})
    return 'it was loaded'
  except CheckpointError as error:
    if 'damaged' not in str(error):
      return f'it is said to be something else than damaged: {error}'
  try:
    found = checkpoints.latest_good()
  except CheckpointError as error:
    return '' if older is None and 'is intact' in str(error) else str(error)
  if found != older:
    return f'step {found} was taken'
  return '' if any('Falling back' in line for line in log.lines) else 'nothing was said'


def command_line(campaign: Campaign) -> None:
  """The same through the command line: an unfinished run whose newest checkpoint is damaged."""
  expected, _ = campaign.uninterrupted('short', watch.SHORT)
  watcher, chance = campaign.watcher, random.Random(1)
  done = {(record['damage'], record['alone']) for record in campaign.records('broken run')}
  for how, change in DAMAGES.items():
    for alone in (False, True):
      if (how, alone) in done:
        continue
      workdir = watcher.work / 'broken-run'
      shutil.rmtree(workdir, ignore_errors=True)
      shutil.copytree(watcher.work / 'short-0', workdir)
      for name in ('results.json', 'predictions.npz'):
        (workdir / name).unlink()
      shutil.rmtree(workdir / 'report')
      older, newest = Checkpoints(workdir / 'checkpoints').steps()[-2:]
      if alone:
        shutil.rmtree(workdir / 'checkpoints' / str(older))
      folder = workdir / 'checkpoints' / str(newest)
      change(chance.choice(sorted(path for path in folder.rglob('*') if path.is_file())), chance)
      life = watcher.live(watch.SHORT, workdir)
      wrong = []
      if alone:
        if life.code != 1 or 'is intact; delete' not in life.err:
          wrong.append(f'exit code {life.code}, {life.err[-2000:]!r}')
      elif life.code or 'Falling back' not in life.err:
        wrong.append(f'exit code {life.code}, {life.err[-2000:]!r}')
      else:
        wrong += same.differences(expected, same.outcome(workdir))
      if 'Traceback' in life.out + life.err:
        wrong.append('a traceback')
      campaign.note('broken run', {'damage': how, 'alone': alone, 'says': life.err,
                                   'wrong': wrong})
      print(f'run with a checkpoint {how}, {"alone" if alone else "with an older one"}: '
            f'{life.err}{"; ".join(wrong)}', flush=True)
