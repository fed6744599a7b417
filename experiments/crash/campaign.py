"""What the parts share: the runs to compare with, and the notes of what was tried."""

from __future__ import annotations

import json
import pathlib
import pickle
import shutil
from typing import Any

import same
import watch


class Campaign:
  """The work folder of all parts; what was noted there is not tried again.

  Attributes:
    watcher: starts runs.
    whole: the outcome of `watch.LONG`, uninterrupted.
    warm: that run as it goes on with data prepared and programs compiled.
    cold: the same without.
  """

  def __init__(self, work: pathlib.Path):
    self.watcher = watch.Watcher(work.absolute())
    self._notes = work / 'notes.jsonl'
    self.whole, (self.cold, self.warm) = self.uninterrupted('whole', watch.LONG)

  def uninterrupted(self, name: str, arguments: tuple[str, ...]) -> tuple[
      dict[str, Any], tuple[watch.Life, watch.Life]]:
    """The outcome of a run nobody disturbs, and it twice: from nothing, and prepared."""
    work = self.watcher.work
    kept = work / f'{name}.pickle'
    if not kept.exists():
      lives = []
      for number, cache in enumerate((f'{name}-cold', 'cache', 'cache', 'cache')):
        workdir = work / f'{name}-{number}'
        shutil.rmtree(workdir, ignore_errors=True)
        life = self.watcher.live(arguments, workdir, cache=cache,
                                 data=cache if cache != 'cache' else 'data')
        if life.code:
          raise RuntimeError(f'An uninterrupted run failed: {life.err}')
        lives.append(life)
      shutil.rmtree(work / f'{name}-cold')
      outcomes = [same.outcome(work / f'{name}-{number}') for number in range(4)]
      different = [same.differences(outcomes[0], other) for other in outcomes[1:]]
      if any(different):
        raise RuntimeError(f'Uninterrupted runs differ among themselves: {different}')
      # The quicker one shows best how long phases take when nobody is in the way.
      warm = min(lives[1:], key=lambda life: life.seconds)
      kept.write_bytes(pickle.dumps((outcomes[0], (lives[0], warm))))
    return pickle.loads(kept.read_bytes())

  def note(self, part: str, record: dict[str, Any]) -> None:
    """Keeps what became of a trial."""
    with open(self._notes, 'a') as file:
      file.write(json.dumps({'part': part, **record}) + '\n')

  def records(self, part: str) -> list[dict[str, Any]]:
    """All that was noted of a part."""
    if not self._notes.exists():
      return []
    found = [json.loads(line) for line in self._notes.read_text().splitlines()]
    return [record for record in found if record['part'] == part]
