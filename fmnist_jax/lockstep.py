"""Runs that differ in seed and continuous settings alone, trained together: one vectorised program.

Every array of a run gets a leading member axis, and the functions of `epoch.Programs` are mapped
over it. A step of each member is what its step alone would be, up to the order of additions.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fmnist_jax import config as config_lib
from fmnist_jax import evaluate, files, progress, readback, sharding, step, train, workdir
from fmnist_jax.checkpoint import Checkpoints
from fmnist_jax.epoch import hyper_arrays
from fmnist_jax.errors import CheckpointError
from fmnist_jax.interrupt import Interrupt, Interrupted
from fmnist_jax.session import (
    Equipment,
    Progress,
    Stopwatch,
    describe,
    epoch_record,
    not_finite,
)
from fmnist_jax.stacked import MemberPrograms, choose


@dataclasses.dataclass
class GroupProgress:
  """Where a group stands: what its checkpoint stores beside the arrays.

  Attributes:
    epoch: epochs completed, by the members that have not stopped.
    members: `session.Progress` of each.
    bad_steps: of each member, the first step that was not finite; -1 for none.
    seconds: of the whole group, over all starts.
    data: `session.describe(dataset)`.
  """
  members: list[Progress]
  bad_steps: list[int]
  data: dict[str, Any]
  epoch: int = 0
  seconds: dict[str, float] = dataclasses.field(
      default_factory=lambda: {'data': 0.0, 'compile': 0.0, 'train': 0.0})

  @classmethod
  def from_json(cls, saved: dict[str, Any]) -> GroupProgress:
    """What `dataclasses.asdict` made JSON of."""
    fields = {field.name: saved[field.name] for field in dataclasses.fields(cls)}
    return cls(**{**fields, 'members': [Progress.from_json(one) for one in saved['members']]})


class Lockstep:
  """One process's work on a group of members that train together."""

  def __init__(self, members: Sequence[tuple[config_lib.Config, workdir.Workdir]],
               directory: pathlib.Path, equipment: Equipment, size: int,
               display: progress.Display, interrupt: Interrupt):
    """Prepares the state before the first step.

    Args:
      members: config, with nothing left to 'auto', and directory of each.
      directory: for what the group needs until it has finished.
      equipment: programs and data, on a mesh with a member axis.
      size: members the program is compiled for, at least as many; copies fill up.
      display: where to say what happens.
      interrupt: polled between dispatches.
    """
    self.members, self.directory, self.equipment = members, directory, equipment
    self.display, self.interrupt = display, interrupt
    self.config = members[0][0]
    self.programs = MemberPrograms(equipment.programs)
    self.steps_per_epoch = equipment.programs.steps_per_epoch
    self.checkpoints = Checkpoints(directory / 'checkpoints', readback.GROUP_PROGRESS)
    self.history = workdir.History(directory / 'metrics.jsonl')
    described = describe(equipment.dataset)
    self.progress = GroupProgress([Progress() for _ in members], [-1] * len(members), described)
    self.taken = 0
    self._saved: tuple[int, ...] = ()
    self.stopwatch = Stopwatch(self.programs.alone)
    self.size = sharding.padded(size, equipment.mesh.size)
    self._split = sharding.by_member(equipment.mesh)
    lanes = [config for config, _ in members]
    lanes += lanes[-1:] * (self.size - len(members))
    hypers = [jax.device_get(hyper_arrays(config)) for config in lanes]
    self.hyper = self._put({name: np.stack([hyper[name] for hyper in hypers])
                            for name in hypers[0]})
    seeds = self._put(np.array([config.train.seed for config in lanes], np.int32))
    self.state = self.programs.call(self.programs.init, seeds, self.hyper)
    # A copy: training takes over the memory of the state.
    self.best = self.programs.call(choose, self._lanes([False] * len(members)), self.state,
                                   self.state)
    self.sums = self._zero()

  def _put(self, tree: Any) -> Any:
    return sharding.put(tree, self._split)

  def _zero(self) -> step.Sums:
    zero = jax.device_get(step.Sums.zero())
    return self._put(jax.tree.map(lambda leaf: np.broadcast_to(leaf, (self.size,)), zero))

  @property
  def finished(self) -> bool:
    """Whether every member has stopped."""
    return all(member.finished for member in self.progress.members)

  def _lanes(self, values: Sequence[bool]) -> jax.Array:
    """bool [size] on the devices; the copies that fill up are False."""
    return self._put(np.array([*values, *[False] * (self.size - len(self.members))]))

  def resume(self) -> None:
    """Goes on from the newest intact checkpoint, if there is one."""
    newest = self.checkpoints.latest_good()
    if newest is None:
      self.history.truncate(0)
      return
    like = jax.eval_shape(lambda: {'state': self.state, 'sums': self.sums, 'best': self.best})
    restored, saved = self.checkpoints.restore(newest, like)
    if saved['data']['sha256'] != self.progress.data['sha256']:
      raise CheckpointError(f'{self.directory} was trained on other data than '
                            f'{self.equipment.dataset.name} is now (the SHA-256 digests differ); '
                            'give the data it was trained on, or another --workdir.')
    restored = self._put(restored)
    self.state, self.sums, self.best = (restored[name] for name in ('state', 'sums', 'best'))
    if not len(saved['members']) == len(saved['bad_steps']) == len(self.members):
      raise CheckpointError(f'The checkpoints in {self.directory} are of {len(saved["members"])} '
                            f'members, not of {len(self.members)}; delete that directory to start '
                            'this group anew.')
    self.progress, self.taken = GroupProgress.from_json(saved), newest
    self._saved = (newest,)
    kept = self.history.truncate(self.progress.epoch * self.steps_per_epoch)
    if len(kept) != self.progress.epoch:
      raise CheckpointError(f'{self.history.path} has {len(kept)} epochs, but the checkpoint was '
                            f'saved after {self.progress.epoch}; put the file back, or choose '
                            'another --workdir.')

  def save(self) -> None:
    """Saves all members; they are written while training goes on."""
    self.stopwatch.book(self.progress.seconds)
    self.checkpoints.save_async(
        self.taken, {'state': self.state, 'sums': self.sums, 'best': self.best},
        dataclasses.asdict(self.progress), self._saved)
    self._saved = (self.taken,)

  def fit(self) -> None:
    """Trains until every member has stopped; a signal saves and leaves.

    Raises:
      Interrupted: after everything is saved.
      UserError: when a file cannot be written.
    """
    self.stopwatch.start(self.progress.seconds)
    with self.interrupt.deferred():
      try:
        while not self.finished:
          self.finish_epoch(self.train_epoch())
      except Interrupted:
        self.save()
        self.checkpoints.wait()
        raise
      self.checkpoints.wait()

  def train_epoch(self) -> float:
    """Runs the steps that are left of the current epoch; returns images a second of all members."""
    whole = sharding.replicated(self.equipment.mesh)
    scalar = lambda n: sharding.put(np.int32(n), whole)
    before = self.progress.epoch * self.steps_per_epoch
    order = self.programs.call(self.programs.order, self.state.key, scalar(self.progress.epoch))
    running = [not member.finished for member in self.progress.members]
    active, size = self._lanes(running), self.config.train.steps_per_dispatch
    began, compiled = time.perf_counter(), self.programs.alone.compile_seconds
    first = start = self.taken - before
    saved_at, previous = began, None
    while start < self.steps_per_epoch:
      # Boundaries depend on the config alone, not on where this process began.
      stop = min((start // size + 1) * size, self.steps_per_epoch)
      self.state, self.sums = self.programs.call(
          self.programs.train, self.state, self.sums, self.hyper, self.equipment.images,
          self.equipment.labels, order, scalar(start), scalar(stop), active, donate=(0,))
      if previous:  # One call late, so that the device never waits for this.
        self._show(*previous)
      previous, start, self.taken = (stop, self.sums), stop, before + stop
      every = self.config.train.checkpoint_every_seconds
      if every and time.perf_counter() - saved_at > every and stop < self.steps_per_epoch:
        self.save()
        saved_at = time.perf_counter()
      self.interrupt.check()
    if previous:
      self._show(*previous)
    seconds = time.perf_counter() - began - (self.programs.alone.compile_seconds - compiled)
    images = (start - first) * self.config.data.batch_size * sum(running)
    return images / seconds if images else 0.0

  def _show(self, done: int, sums: step.Sums) -> None:
    """Waits for a dispatch and moves the bar."""
    found = jax.device_get(sums)
    count = max(int(found.count.sum()), 1)
    loss, correct = float(found.loss.sum()), int(found.correct.sum())
    epoch = self.progress.epoch
    self.display.update(epoch * self.steps_per_epoch + done, epoch + 1, self.config.train.epochs,
                        loss / count, correct / count)

  def measure(self, batches: evaluate.Batches) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and accuracy of each member over a split, float64 [size]."""
    variables, sums = self.state.variables(), self._zero()
    for images, labels, mask in batches:
      self.interrupt.check()
      sums = self.programs.call(self.programs.evaluate, variables, sums, images, labels, mask)
    total = jax.device_get(sums)
    return total.loss.astype(np.float64) / total.count, total.correct / total.count

  def finish_epoch(self, images_per_second: float) -> None:
    """The barrier: measure, decide for each member, write the records, save."""
    measured = {}
    for name in ('clean_train', 'validation'):
      batches = getattr(self.equipment, name)
      if batches.examples:
        measured[f'{name}_loss'], measured[f'{name}_accuracy'] = self.measure(batches)
    sums = jax.device_get(self.sums)
    self.stopwatch.book(self.progress.seconds)
    share = self.progress.seconds['train'] / len(self.members)
    better, records = [False] * len(self.members), {}
    for k, ((config, held), member) in enumerate(zip(self.members, self.progress.members)):
      if member.finished:
        continue
      record = epoch_record(config, self.steps_per_epoch, self.taken, share, images_per_second,
                            jax.tree.map(lambda leaf, k=k: leaf[k], sums),
                            {name: float(values[k]) for name, values in measured.items()})
      if sums.bad_step[k] >= 0 or not_finite(record):
        # Where the loss was finite to the end, and the weights were not: the step that came next.
        self.progress.bad_steps[k] = int(sums.bad_step[k]) if sums.bad_step[k] >= 0 else self.taken
        member.finished = True
        self.display.say(f'{held.path.name} is given up: {self._diverged(k)}')
        continue
      better[k] = member.decide(record, config)
      records[held.path.name] = record
    self.best = self.programs.call(choose, self._lanes(better), self.state, self.best)
    self.sums = self._zero()
    self.progress.epoch += 1
    # The records first: a checkpoint never knows of an epoch that the history lacks.
    self.history.append({'step': self.taken, 'members': records})
    self.save()
    if records:
      self.display.say(epoch_line(self.progress.epoch, self.config.train.epochs,
                                  list(records.values())))

  def _diverged(self, member: int) -> str:
    return (f'The loss or its gradient is not finite at step {self.progress.bad_steps[member]}; '
            'lower optim.learning_rate or set optim.clip_norm.')

  def finish(self) -> None:
    """Measures the best of each member and writes it as a run of its own."""
    began, compiled = time.perf_counter(), self.programs.alone.compile_seconds
    dataset = self.equipment.dataset
    split = dataset.validation if self.config.evaluate.split == 'validation' else dataset.test
    batches = evaluate.Batches(split, self.config.evaluate.batch_size, self.equipment.mesh,
                               resident=False)
    variables, parts = self.best.variables(), []
    for images, _, _ in batches:
      self.interrupt.check()
      parts.append(self.programs.call(self.programs.predict, variables, images))
    probabilities = np.concatenate(jax.device_get(parts), axis=1)[:, :batches.examples]
    compiling = self.programs.alone.compile_seconds - compiled
    seconds = self.progress.seconds
    seconds = {**seconds, 'compile': seconds['compile'] + compiling,
               'evaluate': time.perf_counter() - began - compiling}
    share = {phase: value / len(self.members) for phase, value in seconds.items()}
    state, best = jax.device_get((self.state, self.best))
    epochs = self.history.read()
    for k, (config, held) in enumerate(self.members):
      records = [epoch['members'][held.path.name] for epoch in epochs
                 if held.path.name in epoch['members']]
      files.write_bytes(held.history.path,
                          b''.join(json.dumps(record).encode() + b'\n' for record in records))
      if self.progress.bad_steps[k] >= 0:
        files.write_json(held.path / 'diverged.json', {'message': self._diverged(k)})
        continue
      own = dataclasses.replace(self.progress.members[k], data=self.progress.data, seconds={
          phase: share[phase] for phase in self.progress.seconds})
      lane = lambda tree, k=k: jax.tree.map(lambda leaf: leaf[k], tree)
      _save_member(held, own, lane(best), lane(state))
      found = evaluate.results(
          described=own.data, split=self.config.evaluate.split, probabilities=probabilities[k],
          labels=split.labels, parameters=sum(x[k].size for x in jax.tree.leaves(best.params)),
          progress=dataclasses.asdict(own), seed=config.train.seed, seconds=share,
          mesh=self.equipment.mesh)
      train.write(held, config, dataset, found, probabilities[k], split, with_report=False)
    self.checkpoints.close()
    shutil.rmtree(self.directory)


def _save_member(held: workdir.Workdir, own: Progress, best: step.TrainState,
                 latest: step.TrainState) -> None:
  """The best and the latest checkpoint of a member, as its run alone would have left them."""
  checkpoints = Checkpoints(held.path / 'checkpoints')
  zero = jax.device_get(step.Sums.zero())
  at_best = dataclasses.replace(own, epoch=own.best_epoch, finished=own.best_epoch == own.epoch)
  checkpoints.save(own.best_step, {'state': best, 'sums': zero}, dataclasses.asdict(at_best))
  if int(latest.step) != own.best_step:
    checkpoints.save(int(latest.step), {'state': latest, 'sums': zero}, dataclasses.asdict(own),
                     keep=(own.best_step,))
  checkpoints.close()


def epoch_line(epoch: int, epochs: int, records: Sequence[dict[str, Any]]) -> str:
  """The records of an epoch, one a member, as a person reads them."""
  column = lambda name: np.array([record[name] for record in records])
  text = (f'epoch {epoch:>{len(str(epochs))}}/{epochs}  {len(records)} members  '
          f'{records[0]["images_per_second"]:>8,.0f} images/s  train loss '
          f'{column("train_loss").mean():.4f} acc {column("train_accuracy").mean():6.2%}')
  if 'validation_loss' in records[0]:
    accuracies = column('validation_accuracy')
    text += (f'  validation loss {column("validation_loss").mean():.4f} acc '
             f'{accuracies.mean():6.2%} ({accuracies.min():.2%} to {accuracies.max():.2%})')
  return text
