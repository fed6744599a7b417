"""A trial that this worker has leased, from its first run to its outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from fmnist_jax import config as config_lib
from fmnist_jax.config import Config
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import ConfigError, DivergenceError, UserError
from fmnist_jax.interrupt import Signals
from fmnist_jax.search import summary
from fmnist_jax.search.bench import Bench
from fmnist_jax.search.board import Board, Lost, Task
from fmnist_jax.search.directories import Directories
from fmnist_jax.storage import files, readback
from fmnist_jax.storage.workdir import History

_POLL = 0.5  # seconds between questions whether there is something to do


class Pruned(Exception):
  """Optuna gives the trial up."""


@dataclasses.dataclass(frozen=True)
class Run:
  """One seed of a trial.

  Attributes:
    config: with nothing left to 'auto'.
    path: of its directory.
  """
  config: Config
  path: pathlib.Path


class Attempt:
  """An attempt at a trial: a run for each seed, one after the other.

  The accuracy of the first seed is what Optuna sees after each epoch, so trials are given up by
  runs that are like each other; one that survives trains the other seeds to their end.

  Attributes:
    member: the trial's name.
    equipment: programs of its structure, and data.
    runs: of its seeds.
    ended: whether nothing more is done about it here.
  """
  equipment: Equipment

  def __init__(self, desk: Desk, task: Task):
    """Args: where it was had, and what was leased; `begin` makes it ready to be trained."""
    self._desk, self._task, self.member = desk, task, task.member
    self.runs: list[Run] = []
    self.ended = False

  def begin(self) -> None:
    """Opens its directory; raises ConfigError for a config that cannot be trained."""
    path = self._desk.directories.open(self.member, self._task.params)
    if isinstance(self._task.config, ConfigError):
      raise self._task.config
    config, self.equipment = self._desk.bench.fit(self._task.config)
    first = config.train.seed
    self.runs = [Run(config_lib.replace(config, {'train.seed': seed}), path / f'seed-{seed}')
                 for seed in range(first, first + self._desk.seeds)]

  @contextlib.contextmanager
  def ending(self) -> Iterator[None]:
    """What keeps the trial from being trained to its end becomes its outcome, or its loss."""
    try:
      try:
        yield
      except Pruned:
        self.end('pruned')
      except DivergenceError as error:
        self.end('diverged', str(error))
      except ConfigError as error:
        self.end('refused', str(error))
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        self.end('refused', 'It does not fit in memory.')
    except (Lost, UserError) as error:
      # An error of a file means the same where the directory was taken over meanwhile.
      if isinstance(error, UserError) and self._desk.board.holds(self._task):
        raise
      self._desk.board.let_go(self._task)
      self.ended = True

  def note(self, run: Run, record: Mapping[str, Any]) -> None:
    """Takes in the record of an epoch.

    Raises:
      Pruned: when the trial is given up.
      Lost: when another worker has taken it.
    """
    if run is not self.runs[0]:
      if not self._desk.board.holds(self._task):
        raise Lost
    elif (self._desk.board.report(self._task, record['epoch'], record['validation_accuracy'])
          and record['epoch'] < run.config.train.epochs):
      raise Pruned

  def recall(self, run: Run, records: Sequence[Mapping[str, Any]]) -> None:
    """Takes in what an earlier attempt had done; raises `Lost`."""
    if run is self.runs[0]:
      for record in records:
        self._desk.board.report(self._task, record['epoch'], record['validation_accuracy'])

  def end(self, how: str, message: str = '') -> None:
    """Writes what became of it, and tells it; within `ending`.

    Args:
      how: 'finished', 'pruned', 'diverged', or 'refused' of a config that cannot be trained.
      message: why.

    Raises:
      Lost, UserError: when another worker has taken it.
    """
    outcome = self._outcome(how, message)
    if not self._desk.directories.close(self.member, outcome):
      raise Lost
    self._desk.tell(self._task, outcome)
    self.ended = True

  def _outcome(self, how: str, message: str) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        'params': self._task.params, 'ended': how, 'message': message,
        'worker': self._desk.board.worker, 'rungs': self._desk.board.rungs(self._task),
        'seeds': [], 'validation_accuracy': [], 'best_epochs': [], 'accuracies': [],
        'accuracy': None, 'seconds': 0.0}
    for run in self.runs:
      records = History(run.path / 'metrics.jsonl').read()
      if not records:
        continue
      outcome['seeds'].append(run.config.train.seed)
      outcome['validation_accuracy'].append([one['validation_accuracy'] for one in records])
      outcome['seconds'] += records[-1]['seconds']
      if (run.path / 'results.json').exists():
        results = files.read_json(run.path / 'results.json', readback.RESULTS, sealed=True)
        outcome['accuracies'].append(results['accuracy'])
        outcome['best_epochs'].append(results['best_epoch'])
    if how == 'finished':
      outcome['accuracy'] = sum(outcome['accuracies']) / len(outcome['accuracies'])
    return outcome


class Desk:
  """Where attempts are had, by one thread or several.

  Attributes:
    board: who trains what.
    directories: of trials.
    bench: what they are trained with.
    seeds: runs of each.
  """

  def __init__(self, board: Board, directories: Directories, bench: Bench, seeds: int,
               say: Callable[[str], None]):
    self.board, self.directories, self.bench, self.seeds = board, directories, bench, seeds
    self._say = say

  def take(self, signals: Signals, wait: bool = True) -> Attempt | None:
    """The next attempt; None where there is none, and none is to be expected from other workers.

    Args:
      signals: polled while waiting.
      wait: for what other workers might leave undone; otherwise None is returned at once.
    """
    while True:
      signals.check()
      task = self.board.ask()
      if task is not None:
        attempt = Attempt(self, task)
        with attempt.ending():
          outcome = self.directories.finished(task.member)
          if outcome is None:
            attempt.begin()
            return attempt
          self.tell(task, outcome)  # Of a worker that was killed before it told.
      elif not wait or self.board.finished():
        return None
      else:
        time.sleep(_POLL)

  def tell(self, task: Task, outcome: Mapping[str, Any]) -> None:
    """Tells the board and the terminal; raises `Lost`."""
    self.board.tell(task, outcome)
    done = self.board.outcomes()
    text = ''
    if outcome['accuracy'] is not None:
      best = done[summary.ranked(done)[0]]['accuracy']
      text = f'  {outcome["accuracy"]:.2%}{"  best" if outcome["accuracy"] == best else ""}'
    drawn = ' '.join(f'{name}={summary.shown(value)}' for name, value in task.params.items())
    epochs = sum(map(len, outcome['validation_accuracy']))
    self._say(f'{len(done):>4}  {task.member}  {outcome["ended"]} after {epochs} epochs{text}  '
              f'{drawn}' + (f'  ({outcome["message"]})' if outcome['message'] else ''))
