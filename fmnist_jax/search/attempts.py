"""A trial that this worker has leased, from its first run to its outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fmnist_jax import config as config_lib
from fmnist_jax.config import Config
from fmnist_jax.errors import ConfigError, DivergenceError, UserError
from fmnist_jax.interrupt import Signals
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
    structure: of its programs.
    runs: of its seeds.
  """

  def __init__(self, desk: Desk, task: Task, structure: str, runs: Sequence[Run]):
    self._desk, self._task = desk, task
    self.member, self.structure, self.runs = task.member, structure, runs

  def note(self, run: Run, record: Mapping[str, Any]) -> None:
    """Takes in the record of an epoch.

    Raises:
      Pruned: when the trial is given up.
      Lost: when another worker has taken it.
    """
    value = record['validation_accuracy'] if run is self.runs[0] else None
    given_up = self._desk.board.report(self._task, record['epoch'], value)
    if given_up and record['epoch'] < run.config.train.epochs:
      raise Pruned

  def recall(self, run: Run, records: Sequence[Mapping[str, Any]]) -> None:
    """Takes in what an earlier attempt had done; raises `Lost`."""
    if run is self.runs[0]:
      for record in records:
        self._desk.board.report(self._task, record['epoch'], record['validation_accuracy'])

  def end(self, how: str, message: str = '') -> None:
    """Writes what became of it, and tells it.

    Args:
      how: 'finished', 'pruned', 'diverged', or 'refused' of a config that cannot be trained.
      message: why.
    """
    with self.holding():
      outcome = self._outcome(how, message)
      if not self._desk.directories.close(self.member, outcome):
        raise Lost
    self._desk.tell(self._task, outcome)

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

  @contextlib.contextmanager
  def holding(self) -> Iterator[None]:
    """An error of a file means `Lost` where the directory was taken over meanwhile."""
    try:
      yield
    except UserError as error:
      if isinstance(error, DivergenceError) or self._desk.board.holds(self._task):
        raise
      raise Lost from error

  def let_go(self) -> None:
    """Nothing more is done about it here."""
    self._desk.board.let_go(self._task)


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
        attempt = self._begin(task)
        if attempt is not None:
          return attempt
      elif not wait or self.board.finished():
        return None
      else:
        time.sleep(_POLL)

  def _begin(self, task: Task) -> Attempt | None:
    """The attempt at a task; None where nothing is left to train."""
    outcome = self.directories.finished(task.member)
    try:
      if outcome is not None:  # Of a worker that was killed before it told.
        self.tell(task, outcome)
        return None
      path = self.directories.open(task.member, task.params)
      try:
        if isinstance(task.config, ConfigError):
          raise task.config
        config, structure = self.bench.fit(task.config)
      except ConfigError as error:
        Attempt(self, task, '', ()).end('refused', str(error))
        return None
      first = config.train.seed
      return Attempt(self, task, structure, [
          Run(config_lib.replace(config, {'train.seed': seed}), path / f'seed-{seed}')
          for seed in range(first, first + self.seeds)])
    except Lost:
      return None

  def tell(self, task: Task, outcome: Mapping[str, Any]) -> None:
    """Tells the board and the terminal; raises `Lost`."""
    self.board.tell(task, outcome)
    accuracy = outcome['accuracy']
    done = self.board.outcomes()
    best = max((one['accuracy'] for one in done.values() if one['accuracy'] is not None),
               default=None)
    text = '' if accuracy is None else f'  {accuracy:.2%}{"  best" if accuracy == best else ""}'
    drawn = ' '.join(f'{name}={value:.4g}' if isinstance(value, float) else f'{name}={value}'
                     for name, value in task.params.items())
    epochs = sum(map(len, outcome['validation_accuracy']))
    self._say(f'{len(done):>4}  {task.member}  {outcome["ended"]} after {epochs} epochs{text}  '
              f'{drawn}' + (f'  ({outcome["message"]})' if outcome['message'] else ''))
