"""Trials apart: each run for itself, with the bits of that run alone, in threads on a CPU."""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from fmnist_jax import tensorboard
from fmnist_jax.errors import DivergenceError
from fmnist_jax.interrupt import Interrupted, Signals
from fmnist_jax.population.independent import ThreadSignals, is_done
from fmnist_jax.search.attempts import Attempt, Desk, Pruned, Run
from fmnist_jax.search.board import Lost
from fmnist_jax.storage.workdir import Workdir
from fmnist_jax.trainer import Trainer


class Quiet:
  """Stands in for `Console`: of a search the trials are told, not their epochs."""

  def say(self, _: str) -> None:
    """Nothing."""

  def start(self, *_: Any) -> None:
    """Nothing."""

  def update(self, *_: Any) -> None:
    """Nothing."""


def train(desk: Desk, threads: int, signals: Signals) -> None:
  """Trains attempts as long as there are any, so many at a time."""
  own = ThreadSignals(signals)

  def work() -> None:
    try:
      while (attempt := desk.take(own)) is not None:
        train_one(desk, attempt, own)
    except BaseException:
      own.stop()
      raise

  with signals.deferred(), futures.ThreadPoolExecutor(threads, 'trial') as pool:
    errors = [future.exception() for future in [pool.submit(work) for _ in range(threads)]]
  # What went wrong first made the others leave.
  for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Interrupted)):
    raise error


def train_one(desk: Desk, attempt: Attempt, signals: Signals) -> None:
  """Trains an attempt to its end, whichever that is."""
  with ending(attempt):
    for run in attempt.runs:
      _train_run(desk, attempt, run, signals)
    attempt.end('finished')


@contextlib.contextmanager
def ending(attempt: Attempt) -> Iterator[list[str]]:
  """What keeps a trial from being trained to its end becomes its outcome, or its loss.

  Yields:
    A list, which is empty afterwards unless the attempt has so ended.
  """
  ended: list[str] = []
  try:
    try:
      yield ended
      return
    except Pruned:
      ended.append('pruned')
    except DivergenceError as error:
      ended += ['diverged', str(error)]
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      ended += ['refused', 'It does not fit in memory.']
    attempt.end(*ended)
  except Lost:
    ended.append('lost')
    attempt.let_go()


def _train_run(desk: Desk, attempt: Attempt, run: Run, signals: Signals) -> None:
  note = tensorboard.recorder(run.config, run.path, lambda record: attempt.note(run, record))
  with attempt.holding(), Workdir(run.path, run.config, note) as workdir:
    if is_done(run.path):
      attempt.recall(run, workdir.history.read())
      return
    quiet: Any = Quiet()
    trainer = Trainer(run.config, workdir, desk.bench.equipment(attempt.structure), quiet, signals)
    try:
      trainer.resume()
      attempt.recall(run, workdir.history.read())
      trainer.fit()
      trainer.finish(with_report=False)
    finally:
      trainer.checkpoints.close()
