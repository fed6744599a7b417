"""The directories of trials, which are the truth about them.

  trials/0012-9f3c/          a member that is finished: it appears under this name whole
    outcome.json             how it ended, sealed
    trial.json               what was drawn
    seed-0/                  a run, as fmnist_jax.main leaves it; one a seed
  trials/0012-9f3c.a41b77/   a member that the worker a41b77 trains

Whoever takes a member up renames its directory, so a worker whose lease was taken has no place to
write to any more: its next write fails.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from fmnist_jax.errors import WorkdirError
from fmnist_jax.storage import files

_OUTCOME = {'params': {str: (float, str)}, 'ended': str, 'message': str, 'seeds': [range(2**31)],
            'validation_accuracy': [[float]], 'best_epochs': [range(2**31)],
            'accuracies': [float], 'accuracy': (float, None), 'seconds': float, 'worker': str,
            'rungs': {str: float}}
_TRIAL = {'params': {str: (float, str)}}


class Directories:
  """Those of one search, as one worker sees them.

  Attributes:
    path: the folder that holds them.
  """

  def __init__(self, path: pathlib.Path, worker: str):
    self.path, self._worker = path, worker

  def finished(self, member: str) -> dict[str, Any] | None:
    """The outcome of a member that is finished here; else None."""
    path = self.path / member / 'outcome.json'
    return files.read_json(path, _OUTCOME, sealed=True) if path.exists() else None

  def open(self, member: str, params: Mapping[str, Any]) -> pathlib.Path:
    """The directory to train a member in, with what earlier attempts at it have left here."""
    own = self._own(member)
    for earlier in [self.path / member, *self.path.glob(f'{member}.*')]:
      # A folder without is what the last writes of a worker made again that had lost its own.
      if (earlier / 'trial.json').exists() and not (own / 'trial.json').exists():
        shutil.rmtree(own, ignore_errors=True)
        _rename(earlier, own)
    try:
      own.mkdir(parents=True, exist_ok=True)
      # Who had it may live on, and hold them; it finds no place to write to.
      for lock in own.glob('seed-*/.lock'):
        lock.unlink()
    except OSError as error:
      raise WorkdirError(f'{own} cannot be made: {files.reason(error)}; free some space or give '
                         'permission, then run the same command again.') from error
    files.write_json(own / 'trial.json', {'params': dict(params)})
    return own

  def close(self, member: str, outcome: Mapping[str, Any]) -> bool:
    """A member is finished; returns whether it was ours to finish."""
    own, whole = self._own(member), self.path / member
    if not (own / 'trial.json').exists():
      return False
    files.write_json(own / 'outcome.json', outcome, sealed=True)
    if not _rename(own, whole):
      return False
    if outcome['ended'] == 'pruned':  # What was given up is not gone on with.
      for checkpoints in whole.glob('seed-*/checkpoints'):
        shutil.rmtree(checkpoints, ignore_errors=True)
    return True

  def read(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(outcomes of finished members, params of others), by member, in the order of their names."""
    finished, unfinished = {}, {}
    for path in sorted(self.path.glob('[0-9]*-*')):
      member = path.name.partition('.')[0]
      outcome = self.finished(member)
      if outcome is not None:
        finished[member] = outcome
        if path.name != member:  # Of a worker that was slower than another.
          shutil.rmtree(path, ignore_errors=True)
      else:
        try:
          unfinished[member] = files.read_json(path / 'trial.json', _TRIAL)['params']
        except WorkdirError:
          if (path / 'trial.json').exists():  # Else another worker takes it just now.
            raise
    return finished, unfinished

  def _own(self, member: str) -> pathlib.Path:
    return self.path / f'{member}.{self._worker}'


def _rename(old: pathlib.Path, new: pathlib.Path) -> bool:
  """Renames a folder; returns whether it was there and `new` was not."""
  try:
    old.rename(new)
    files.fsync_directory(new.parent)
    return True
  except OSError:
    return False
