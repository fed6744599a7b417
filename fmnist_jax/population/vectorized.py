"""Runs that differ in seed and continuous settings alone, trained together: one vectorised program.

Every array of a run gets a leading member axis, and the functions of `Programs` are mapped over
it. A step of each member is what its step alone would be, up to the order of additions.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fmnist_jax import config as config_lib
from fmnist_jax import progress as progress_lib
from fmnist_jax import sharding, step, tensorboard
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import CheckpointError
from fmnist_jax.interrupt import Signals
from fmnist_jax.population import stacked
from fmnist_jax.population.stacked import MemberPrograms, choose
from fmnist_jax.programs import hyper_arrays
from fmnist_jax.storage import files, readback
from fmnist_jax.storage.checkpoint import Checkpoints
from fmnist_jax.storage.workdir import History, Workdir
from fmnist_jax.trainer import Progress, Record, Stopwatch, Trainer, describe, not_finite


@dataclasses.dataclass
class GroupProgress:
  """Where a group stands: what its checkpoint stores beside the arrays.

  Attributes:
    members: `Progress` of each.
    bad_steps: of each member, the first step that was not finite; -1 for none.
    data: `describe(equipment)`.
    epoch: epochs completed, by the members that have not stopped.
    seconds: of the whole group, over all starts.
    init_from: see `Progress`.
  """
  members: list[Progress]
  bad_steps: list[int]
  data: dict[str, Any]
  epoch: int = 0
  seconds: dict[str, float] = dataclasses.field(
      default_factory=lambda: {'data': 0.0, 'compile': 0.0, 'train': 0.0})
  init_from: dict[str, Any] | None = None


class Together(Trainer):
  """Runs in one program, whatever their states are.

  Attributes:
    best: state of the best epoch of each, on the devices.
  """

  def __init__(self, equipment: Equipment, size: int, console: progress_lib.Console,
               signals: Signals):
    """Leaves the states to be set, with `start`.

    Args:
      equipment: programs and data, on a mesh with a member axis.
      size: runs the program is compiled for, rounded up to a multiple of the devices.
      console: where to say what happens.
      signals: polled between dispatches.
    """
    self.size = sharding.padded(size, equipment.mesh.size)
    self.programs = MemberPrograms(equipment.programs, self.size)
    self.equipment = equipment.with_programs(self.programs)
    self.config = equipment.programs.config
    self.console, self.signals = console, signals
    self.stopwatch = Stopwatch(self.programs)
    self.progress: Any = GroupProgress([], [], describe(equipment))

  def initialize(self, configs: Sequence[config_lib.Config]) -> None:
    """`hyper` and `state` become those of runs of these configs [M] before their first step."""
    hypers = [jax.device_get(hyper_arrays(config)) for config in configs]
    self.hyper = self.programs.put({name: np.stack([hyper[name] for hyper in hypers])
                                    for name in hypers[0]})
    seeds = self.programs.put(np.array([config.train.seed for config in configs], np.int32))
    self.state = self.programs.call(self.programs.init, seeds, self.hyper)

  def start(self, configs: Sequence[config_lib.Config]) -> None:
    """Runs of these configs [M] are before their first step."""
    self.initialize(configs)
    # A copy: training takes over the memory of the state.
    self.best = self._choose([False] * self.size, self.state, self.state)
    self.sums = self.programs.zero()

  @property
  def parameters(self) -> int:
    """See `Trainer`; of each member."""
    return super().parameters // self.size

  @property
  def trained_parameters(self) -> int:
    """See `Trainer`; of each member."""
    return super().trained_parameters // self.size

  def _lanes(self, values: Sequence[bool]) -> jax.Array:
    """bool [size] on the devices; the copies that fill up are False."""
    return self.programs.put(np.array([*values, *[False] * (self.size - len(values))]))

  def _choose(self, which: Sequence[bool], new: Any, old: Any) -> Any:
    return self.programs.call(choose, self._lanes(which), new, old)


class Group(Together):
  """Trains members in step with each other.

  The loop is `Trainer`'s. A group keeps the best state of each member on the devices, and its
  checkpoints and history in a directory of its own until the members are written, each as a run.

  Attributes:
    members: config and directory of each.
  """

  def __init__(self, members: Sequence[tuple[config_lib.Config, Workdir]],
               directory: pathlib.Path, equipment: Equipment, size: int,
               console: progress_lib.Console, signals: Signals):
    """Prepares the state before the first step.

    Args:
      members: config, with nothing left to 'auto', and directory of each.
      directory: for what the group needs until it has finished.
      equipment: programs and data, on a mesh with a member axis.
      size: members the program is compiled for, at least as many; copies fill up.
      console: where to say what happens.
      signals: polled between dispatches.
    """
    super().__init__(equipment, size, console, signals)
    self.members, self.directory = members, directory
    self.progress.members = [Progress() for _ in members]
    self.progress.bad_steps = [-1] * len(members)
    held = members[0][1].held
    self.checkpoints = Checkpoints(directory / 'checkpoints', readback.GROUP_PROGRESS, held)
    self.history = History(directory / 'metrics.jsonl', held, self._show)
    self.taken, self.saved = 0, set()
    configs = [config for config, _ in members]
    self.start(configs + configs[-1:] * (self.size - len(members)))
    self.check_start()

  def begin(self) -> None:
    """See `Trainer`; every member takes over the same weights."""
    super().begin()
    for member in self.progress.members:
      member.init_from = self.progress.init_from

  # What `Trainer` leaves to be said.

  @property
  def finished(self) -> bool:
    """Whether every member has stopped."""
    return all(member.finished for member in self.progress.members)

  def carried(self) -> dict[str, Any]:
    """See `Trainer`."""
    return {**super().carried(), 'best': self.best}

  def take_up(self, saved: Mapping[str, Any]) -> GroupProgress:
    """See `Trainer`."""
    if not len(saved['members']) == len(saved['bad_steps']) == len(self.members):
      raise CheckpointError(f'The checkpoints in {self.directory} are of {len(saved["members"])} '
                            f'members, not of {len(self.members)}; delete that directory to start '
                            'this group anew.')
    fields = {field.name: saved[field.name] for field in dataclasses.fields(GroupProgress)}
    return GroupProgress(**{**fields, 'data': self.progress.data, 'members': [
        Progress.from_json(one) for one in saved['members']]})

  def kept_beside(self, taken: int) -> set[int]:
    """See `Trainer`."""
    return {taken}

  def extra(self) -> tuple[Any, ...]:
    """Which members still train."""
    return (self._lanes([not member.finished for member in self.progress.members]),)

  def check(self, sums: step.Sums) -> None:
    """Nothing: a member that diverges is given up at the end of the epoch."""

  def check_weights(self) -> None:
    """Nothing, likewise."""

  def decide(self, sums: step.Sums, measured: Mapping[str, Any],
             images_per_second: float) -> tuple[Record, str]:
    """See `Trainer`; decides for each member that has not stopped."""
    running = [k for k, member in enumerate(self.progress.members) if not member.finished]
    share = self.progress.seconds['train'] / len(self.members)
    better, records = [False] * len(self.members), {}
    for k in running:
      (config, workdir), member = self.members[k], self.progress.members[k]
      own = stacked.member(sums, k)
      record = self.record(config, own, stacked.member(measured, k), share,
                           images_per_second * len(running))
      if own.bad_step >= 0 or not_finite(record):
        # Where the loss was finite to the end, and the weights were not: the step that came next.
        self.progress.bad_steps[k] = int(own.bad_step) if own.bad_step >= 0 else self.taken
        member.finished = True
        self.console.say(f'{workdir.path.name} is given up: {self._why(k)}')
        continue
      better[k] = member.decide(record, config.train)
      records[workdir.path.name] = record
    self.best = self._choose(better, self.state, self.best)
    self.progress.epoch += 1
    line = epoch_line(self.progress.epoch, self.config.train.epochs, list(records.values()))
    return {'step': self.taken, 'members': records}, line

  def _why(self, member: int) -> str:
    return (f'The loss or its gradient is not finite at step {self.progress.bad_steps[member]}; '
            'lower optim.learning_rate or set optim.clip_norm.')

  def _show(self, _: Record) -> None:
    if self.config.train.tensorboard:
      epochs = self.history.read()
      for config, workdir in self.members:
        tensorboard.update(config, workdir.path, _records(epochs, workdir))

  def finish(self, *, with_report: bool = False) -> dict[str, Any]:
    """Measures the best of each member and writes it as a run of its own; results by member."""
    results: dict[str, Any] = {}
    probabilities, seconds = self.predict(self.best)
    share = {phase: value / len(self.members) for phase, value in seconds.items()}
    state, best = jax.device_get((self.state, self.best))
    epochs = self.history.read()
    for k, (config, workdir) in enumerate(self.members):
      records = _records(epochs, workdir)
      if len(records) != self.progress.members[k].epoch:
        raise CheckpointError(f'{self.history.path} has {len(records)} epochs of '
                              f'{workdir.path.name}, which trained '
                              f'{self.progress.members[k].epoch}; put the file back, or choose '
                              'another --workdir.')
      workdir.history.replace(records)
      if self.progress.bad_steps[k] >= 0:
        files.write_json(workdir.path / 'diverged.json', {'message': self._why(k)})
        continue
      own = dataclasses.replace(self.progress.members[k], data=self.progress.data, seconds={
          phase: share[phase] for phase in self.progress.seconds})
      own_best = stacked.member(best, k)
      save_member(workdir, own, own_best, stacked.member(state, k))
      results[workdir.path.name] = self.write(workdir, config, own, probabilities[k], share,
                                              own_best.variables(), with_report=with_report)
    self.checkpoints.close()
    shutil.rmtree(self.directory)
    return results


def _records(epochs: Sequence[Record], workdir: Workdir) -> list[Record]:
  """Those of a member, in the history of its group."""
  name = workdir.path.name
  return [epoch['members'][name] for epoch in epochs if name in epoch['members']]


def save_member(workdir: Workdir, own: Progress, best: step.TrainState,
                latest: step.TrainState) -> None:
  """The best and the latest checkpoint of a member, as its run alone would have left them."""
  checkpoints = Checkpoints(workdir.path / 'checkpoints', held=workdir.held)
  zero = jax.device_get(step.Sums.zero())
  if own.best_step not in checkpoints.steps():
    at_best = dataclasses.replace(own, epoch=own.best_epoch, finished=own.best_epoch == own.epoch)
    checkpoints.save(own.best_step, {'state': best, 'sums': zero}, dataclasses.asdict(at_best))
  if int(latest.step) != own.best_step:
    checkpoints.save(int(latest.step), {'state': latest, 'sums': zero}, dataclasses.asdict(own),
                     keep=(own.best_step,))
  checkpoints.close()


def epoch_line(epoch: int, epochs: int, records: Sequence[dict[str, Any]]) -> str:
  """The records of an epoch, one a member, as a person reads them."""
  text = f'epoch {epoch:>{len(str(epochs))}}/{epochs}  {len(records)} members'
  if not records:
    return text
  column = lambda name: np.array([record[name] for record in records])
  text += (f'  {records[0]["images_per_second"]:>8,.0f} images/s  train loss '
           f'{column("train_loss").mean():.4f} acc {column("train_accuracy").mean():6.2%}')
  if 'validation_loss' in records[0]:
    accuracies = column('validation_accuracy')
    text += (f'  validation loss {column("validation_loss").mean():.4f} acc '
             f'{accuracies.mean():6.2%} ({accuracies.min():.2%} to {accuracies.max():.2%})')
  return text
