"""Trials together: one program with a lane for each, filled again as soon as its trial has ended.

Every lane is at an epoch of its own: the order of its data, its step count and its schedule follow
from its state. A step of a lane is what its run alone would do, up to the order of additions.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fmnist_jax import tensorboard
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import DivergenceError
from fmnist_jax.interrupt import Signals
from fmnist_jax.population.independent import group_size, is_done
from fmnist_jax.population.stacked import member
from fmnist_jax.population.vectorized import Together, save_member
from fmnist_jax.progress import Console
from fmnist_jax.search.attempts import Attempt, Desk, Run
from fmnist_jax.storage import readback
from fmnist_jax.storage.checkpoint import Checkpoints
from fmnist_jax.storage.workdir import Workdir
from fmnist_jax.trainer import Progress, not_finite

SAVED_EVERY = 30.0  # seconds between checkpoints of all lanes, at ends of epochs


def train(desk: Desk, trials: int, at_once: int, signals: Signals) -> None:
  """Trains attempts as long as there are any; those of one structure together.

  Args:
    desk: gives them.
    trials: how many there are to be, at most.
    at_once: most in one program; 0: as many as memory has room for.
    signals: polled between dispatches.
  """
  waiting: list[Attempt] = []  # For a lane.
  while True:
    if not waiting:
      attempt = desk.take(signals)
      if attempt is None:
        return
      waiting.append(attempt)
    # First come those of the structure that most have.
    equipment = collections.Counter(one.equipment for one in waiting).most_common(1)[0][0]
    size = group_size(equipment, trials, at_once)
    Lanes(equipment, size, desk, waiting, signals).fill_and_train()


@dataclasses.dataclass
class Lane:
  """What a lane trains: a run of an attempt, in its directory, and where that stands."""
  attempt: Attempt
  run: Run
  workdir: Workdir
  progress: Progress


class Lanes(Together):
  """Runs of one structure that come and go."""

  def __init__(self, equipment: Equipment, size: int, desk: Desk, waiting: list[Attempt],
               signals: Signals):
    """Args:
      equipment: programs of one structure and data, on a mesh with a member axis.
      size: how many lanes there are to be, rounded up to a multiple of the devices.
      desk: gives further attempts.
      waiting: attempts that were had and wait for a lane, of any structure.
      signals: polled between dispatches.
    """
    super().__init__(equipment, size, Console(silent=True), signals)
    self._alone, self._desk, self._waiting = equipment, desk, waiting
    self.lanes: list[Lane | None] = [None] * self.size
    self._saved = time.monotonic()
    # Of the run that each lane is at; while it is empty, of any.
    self._configs = [self.config] * self.size
    self.start(self._configs)
    self.begin()

  def fill_and_train(self) -> None:
    """Trains until every lane is empty and nothing of the structure is to be had."""
    self.stopwatch.start(self.progress.seconds)
    with self.signals.deferred(), contextlib.ExitStack() as stack:
      for k in range(self.size):
        stack.callback(self._leave, k)
      while True:
        self._fill()
        if not any(self.lanes):
          return
        # A run may have lacked nothing but its results, when its worker was killed.
        if not any(lane.progress.finished for lane in self.lanes if lane):
          self._end_epoch(self._train_epoch())
        self._put_away()

  # Runs come.

  def _next(self) -> Attempt | None:
    """An attempt of this structure; asks for more while few wait for other programs."""
    while True:
      for attempt in self._waiting:
        if attempt.equipment is self._alone:
          self._waiting.remove(attempt)
          return attempt
      if len(self._waiting) >= self.size or not (
          taken := self._desk.take(self.signals, wait=False)):
        return None
      self._waiting.insert(0, taken)

  def _fill(self) -> None:
    """Every empty lane takes a run."""
    resumed: dict[int, Any] = {}  # By lane; of runs that begin, None.
    for k in range(self.size):
      while self.lanes[k] is None and (attempt := self._next()) is not None:
        with attempt.ending():
          resumed[k] = self._enter(k, attempt)
          if self.lanes[k] is None:  # Nothing was left to train.
            del resumed[k]
            attempt.end('finished')
    if not resumed:
      return
    going_on = self.state
    self.initialize(self._configs)
    self.begin()
    entered = [k in resumed for k in range(self.size)]
    self.state = self._choose(entered, self.state, going_on)
    self.best = self._choose(entered, self.state, self.best)
    for name in ('state', 'best'):
      states = {k: found[name] for k, found in resumed.items() if found}
      if states:
        setattr(self, name, self.programs.put(_with_lanes(
            jax.device_get(getattr(self, name)), states)))

  def _enter(self, k: int, attempt: Attempt) -> dict[str, Any] | None:
    """A lane takes the next run of an attempt, where one is left; returns states to go on with."""
    for run in attempt.runs:
      with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(Workdir(
            run.path, run.config, tensorboard.recorder(run.config, run.path)))
        found = None if is_done(run.path) else self._resumed(workdir)
        attempt.recall(run, workdir.history.read())
        if found is not None:
          states, progress = found
          self.lanes[k], self._configs[k] = Lane(attempt, run, workdir, progress), run.config
          stack.pop_all()
          return states
    return None

  def _resumed(self, workdir: Workdir) -> tuple[dict[str, Any] | None, Progress]:
    """Latest and best state, and progress, of a run that was saved at the end of an epoch; of
    another one None, and it begins.
    """
    steps = self.programs.horizon.steps_per_epoch
    checkpoints = Checkpoints(workdir.path / 'checkpoints', readback.PROGRESS, workdir.held)
    newest = checkpoints.latest_good()
    progress, states = Progress(init_from=self.progress.init_from), None
    if newest is not None:
      kept = checkpoints.progress(newest)
      self.check_data(kept, workdir.path)
      saved = Progress.from_json(kept)
      if newest == saved.epoch * steps:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
                            {'state': self.state, 'sums': self.sums})
        states = {name: checkpoints.restore(taken, like)[0]['state']
                  for name, taken in (('state', newest), ('best', saved.best_step))}
        progress = saved
    if states is None:  # A best one of theirs would pass for that of this run.
      shutil.rmtree(workdir.path / 'checkpoints', ignore_errors=True)
    workdir.history.rewind(progress.epoch, progress.epoch * steps)
    return states, dataclasses.replace(progress, data=self.progress.data)

  # They train.

  def _train_epoch(self) -> float:
    """An epoch of every lane; returns images a second, of all together."""
    epochs = np.array([lane.progress.epoch if lane else 0 for lane in self.lanes], np.int32)
    active = self._lanes([lane is not None for lane in self.lanes])
    began, paused = time.perf_counter(), self.programs.paused_seconds
    calls = self.equipment.train(self.state, self.sums, self.hyper, epochs, 0, active)
    for _, self.state, self.sums in calls:
      self.signals.check()
    jax.block_until_ready(self.sums)
    seconds = time.perf_counter() - began - (self.programs.paused_seconds - paused)
    images = self.programs.horizon.steps_per_epoch * self.config.data.batch_size
    return sum(lane is not None for lane in self.lanes) * images / seconds

  def _end_epoch(self, images_per_second: float) -> None:
    """Measures; each lane goes on, or has finished, or is given up."""
    measured = self.measure()
    sums = jax.device_get(self.sums)
    self.sums = self.programs.zero()
    before = dict(self.progress.seconds)
    self.stopwatch.book(self.progress.seconds)
    full = {k: lane for k, lane in enumerate(self.lanes) if lane is not None}
    better = [False] * self.size
    for k, lane in full.items():
      for phase, seconds in self.progress.seconds.items():
        lane.progress.seconds[phase] += (seconds - before[phase]) / len(full)
      with lane.attempt.ending():
        better[k] = self._judge(lane, member(sums, k), member(measured, k), images_per_second)
      if lane.attempt.ended:
        self._leave(k)
        better[k] = False
    self.best = self._choose(better, self.state, self.best)

  def _judge(self, lane: Lane, sums: Any, measured: Mapping[str, Any],
             images_per_second: float) -> bool:
    """Takes in an epoch of a lane; returns whether it is the best so far.

    Raises:
      DivergenceError, Pruned, Lost: when the trial is not gone on with.
    """
    taken = (lane.progress.epoch + 1) * self.programs.horizon.steps_per_epoch
    record = self.record(lane.run.config, sums, measured, lane.progress.seconds['train'],
                         images_per_second, taken)
    if sums.bad_step >= 0 or not_finite(record):
      step = int(sums.bad_step) if sums.bad_step >= 0 else taken
      raise DivergenceError(f'The loss or its gradient is not finite at step {step}.')
    better = lane.progress.decide(record, lane.run.config.train)
    lane.workdir.history.append(record)
    lane.attempt.note(lane.run, record)
    return better

  # And go.

  def _put_away(self) -> None:
    """Writes the runs that have finished; saves the others now and then."""
    full = {k: lane for k, lane in enumerate(self.lanes) if lane is not None}
    done = {k: lane for k, lane in full.items() if lane.progress.finished}
    due = time.monotonic() - self._saved > SAVED_EVERY
    if not done and not due:
      return
    best, state = jax.device_get((self.best, self.state))
    probabilities, seconds = self.predict(self.best) if done else (np.empty(0), {})
    for k, lane in (full if due else done).items():
      with lane.attempt.ending():
        own_best = member(best, k)
        save_member(lane.workdir, lane.progress, own_best, member(state, k))
        if k in done:
          spent = {**lane.progress.seconds, 'evaluate': seconds['evaluate'] / len(full)}
          self.write(lane.workdir, lane.run.config, lane.progress, probabilities[k], spent,
                     own_best.variables(), with_report=False)
      if lane.attempt.ended or k in done:
        self._leave(k)
        if not lane.attempt.ended:
          self._waiting.insert(0, lane.attempt)
    if due:
      self._saved = time.monotonic()

  def _leave(self, k: int) -> None:
    lane, self.lanes[k] = self.lanes[k], None
    if lane is not None:
      lane.workdir.close()


def _with_lanes(tree: Any, states: Mapping[int, Any]) -> Any:
  """A host tree [M, ...] with those of some lanes replaced."""
  def put(leaf: Any, *own: Any) -> np.ndarray:
    changed = np.array(leaf)
    for k, value in zip(states, own):
      changed[k] = value
    return changed
  return jax.tree.map(put, tree, *states.values())
