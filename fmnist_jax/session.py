"""The work of one process on one run: its state, and the epochs that advance it."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fmnist_jax import config as config_lib
from fmnist_jax import data, evaluate, optim, processes, readback, sharding, step, workdir
from fmnist_jax import progress as progress_lib
from fmnist_jax.checkpoint import Checkpoints
from fmnist_jax.epoch import Programs, hyper_arrays
from fmnist_jax.errors import CheckpointError, ConfigError, DivergenceError
from fmnist_jax.interrupt import Interrupt, Interrupted

# Streamed calls hold at most this many bytes of images, however many steps a dispatch has.
_STREAM_BYTES = 64 * 2**20


@dataclasses.dataclass
class Progress:
  """Where a run stands: what a checkpoint stores beside the arrays.

  Attributes:
    epoch: epochs completed.
    best_epoch: the epoch that validation chose so far; 0 before the first.
    best_step: its checkpoint.
    best_value: what it was chosen for: the monitored metric.
    best_validation_accuracy: of that epoch; None without validation data.
    finished: whether training is over.
    seconds: spent so far, over all starts: data, compile, train.
    data: `describe(dataset)`.
  """
  epoch: int = 0
  best_epoch: int = 0
  best_step: int = 0
  best_value: float | None = None
  best_validation_accuracy: float | None = None
  finished: bool = False
  seconds: dict[str, float] = dataclasses.field(
      default_factory=lambda: {'data': 0.0, 'compile': 0.0, 'train': 0.0})
  data: dict[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_json(cls, saved: Mapping[str, Any]) -> Progress:
    """What `dataclasses.asdict` made JSON of."""
    return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)})

  def decide(self, record: Mapping[str, Any], config: config_lib.Config) -> bool:
    """Takes in an epoch's record; returns whether it is the best so far.

    Of equals the first is the best. Without validation data the latest is.
    """
    self.epoch = record['epoch']
    monitor = config.train.monitor
    value = record.get(monitor)
    better = value is None or self.best_value is None or (
        value < self.best_value if monitor == 'validation_loss' else value > self.best_value)
    if better:
      self.best_epoch, self.best_step = record['epoch'], record['step']
      self.best_value = value
      self.best_validation_accuracy = record.get('validation_accuracy')
    patience = config.train.early_stopping_patience
    self.finished = self.epoch >= config.train.epochs or bool(
        patience and self.epoch - self.best_epoch >= patience)
    return better


def describe(dataset: data.Dataset) -> dict[str, Any]:
  """What a checkpoint has to know of its data set, as JSON values."""
  return {'name': dataset.name, 'synthetic': dataset.synthetic, 'sha256': dataset.sha256,
          'class_names': list(dataset.class_names), 'image_shape': list(dataset.image_shape),
          'train_examples': len(dataset.train)}


class Equipment:
  """What runs that differ in seed and continuous settings share: programs, data on the devices.

  Attributes:
    dataset: what is trained on.
    mesh: where.
    programs: compiled once for all of them.
    resident: whether the training set is on the devices.
    images: uint8 [N, H, W, C], where it is.
    labels: int32 [N], likewise.
    validation: to measure on.
    clean_train: likewise.
  """

  def __init__(self, config: config_lib.Config, dataset: data.Dataset, mesh: Mesh):
    """Args: `config` with nothing left to 'auto'."""
    self.dataset, self.mesh = dataset, mesh
    self.programs = Programs(config, mesh, dataset.image_shape, dataset.num_classes,
                             len(dataset.train))
    if not self.programs.steps_per_epoch:
      raise ConfigError(f'data.batch_size is {config.data.batch_size}, but there are only '
                        f'{len(dataset.train)} training examples; use a smaller batch.')
    self.resident = config.data.residency == 'resident'
    self.validation, self.clean_train = (
        evaluate.Batches(split, config.evaluate.batch_size, mesh, resident=self.resident)
        for split in (dataset.validation, dataset.clean_train))
    if self.resident:
      self.images, self.labels = sharding.put(dataset.train.arrays(), sharding.replicated(mesh))

  def with_features_of(self, config: config_lib.Config) -> Equipment:
    """The same data with the programs of a config that has other features switched on."""
    other = copy.copy(self)
    other.programs = Programs(config, self.mesh, self.dataset.image_shape,
                              self.dataset.num_classes, len(self.dataset.train))
    return other


def epoch_record(config: config_lib.Config, steps_per_epoch: int, taken: int, seconds: float,
                 images_per_second: float, sums: step.Sums,
                 measured: Mapping[str, float]) -> dict[str, Any]:
  """A line of metrics.jsonl.

  Args:
    config: of the run.
    steps_per_epoch: of the run.
    taken: steps at the end of the epoch.
    seconds: of training so far, over all starts.
    images_per_second: of the epoch's training steps.
    sums: of the epoch, on the host.
    measured: clean_train_loss and what else was measured after it.
  """
  rate = optim.learning_rate(config.optim, steps_per_epoch, config.train.epochs)
  return {'epoch': taken // steps_per_epoch, 'step': taken, 'seconds': round(seconds, 3),
          'images_per_second': round(images_per_second, 1),
          'learning_rate': float(rate(jnp.asarray(taken - 1))),
          'train_loss': float(sums.loss) / int(sums.count),
          'train_accuracy': int(sums.correct) / int(sums.count), **measured}


def not_finite(record: Mapping[str, Any]) -> str | None:
  """The first number of a record that is infinite or none: weights can be so while no loss was."""
  return next((name for name, value in record.items() if not math.isfinite(value)), None)


class Stopwatch:
  """Books seconds of wall time as spent compiling its programs or, the rest, training."""

  def __init__(self, programs: Programs):
    self._programs = programs
    self._began, self._compiled = time.perf_counter(), programs.compile_seconds

  def start(self, seconds: dict[str, float]) -> None:
    """Training begins: of the time until now only what was compiled is booked."""
    self._began = time.perf_counter() - (self._programs.compile_seconds - self._compiled)
    self.book(seconds)

  def book(self, seconds: dict[str, float]) -> None:
    """Adds the seconds since the last call to `compile` and `train` of `Progress.seconds`."""
    now, compiled = time.perf_counter(), self._programs.compile_seconds
    compiling = compiled - self._compiled
    seconds['compile'] += compiling
    seconds['train'] += now - self._began - compiling
    self._began, self._compiled = now, compiled


class Session:
  """One process's work on one run: the state and what it takes to advance it."""

  def __init__(self, config: config_lib.Config, directory: workdir.Workdir, equipment: Equipment,
               display: progress_lib.Display, interrupt: Interrupt | processes.Agreed):
    """Args: `config` with nothing left to 'auto'; the others are what it works with."""
    self.config, self.directory, self.display = config, directory, display
    self.equipment, self.interrupt = equipment, interrupt
    self.dataset, self.mesh, self.programs = (
        equipment.dataset, equipment.mesh, equipment.programs)
    self.checkpoints = Checkpoints(directory.path / 'checkpoints', readback.PROGRESS)
    self.progress = Progress(data=describe(self.dataset))
    self._saved: tuple[int, ...] = ()  # The last checkpoint's step and the best it knew.
    self.stopwatch = Stopwatch(self.programs)
    whole = sharding.replicated(self.mesh)
    self.hyper = sharding.put(hyper_arrays(config), whole)
    self.zero = step.Sums.zero()
    seed = sharding.put(np.int32(config.train.seed), whole)
    self.state = self.programs.compiled(self.programs.init, seed, self.hyper)(seed, self.hyper)
    self.sums = sharding.put(self.zero, whole)

  def resume(self) -> None:
    """Goes on from the newest intact checkpoint, if there is one."""
    newest = self.checkpoints.latest_good()
    if newest is None:
      # Records of epochs whose checkpoint was never finished.
      processes.of_primary(lambda: len(self.directory.history.truncate(0)))
      return
    saved = processes.of_primary(lambda: self._progress_at(newest))
    self.restore(newest)
    self.progress = dataclasses.replace(Progress.from_json(saved), data=self.progress.data)
    self._saved = newest, self.progress.best_step
    processes.of_primary(self._rewind_history)

  def _progress_at(self, taken: int) -> dict[str, Any]:
    saved = self.checkpoints.progress(taken)
    if saved['data']['sha256'] != self.progress.data['sha256']:
      raise CheckpointError(f'{self.directory.path} was trained on other data than '
                            f'{self.dataset.name} is now (the SHA-256 digests differ); give the '
                            'data it was trained on, or another --workdir.')
    return saved

  def _rewind_history(self) -> None:
    kept = self.directory.history.truncate(self.progress.epoch * self.programs.steps_per_epoch)
    if len(kept) != self.progress.epoch:
      raise CheckpointError(f'{self.directory.history.path} has {len(kept)} epochs, but the '
                            f'checkpoint was saved after {self.progress.epoch}; put the file back, '
                            'or choose another --workdir.')
    found = readback.history_problem(kept)
    if found:
      raise CheckpointError(f'{self.directory.history.path} is damaged ({found}); put the file '
                            'back, or choose another --workdir.')

  def restore(self, taken: int) -> None:
    """Takes the state from the checkpoint of a step."""
    like = jax.eval_shape(lambda: {'state': self.state, 'sums': self.sums})
    restored = processes.arrays_of_primary(lambda: self.checkpoints.restore(taken, like)[0], like)
    restored = sharding.put(restored, sharding.replicated(self.mesh))
    self.state, self.sums = restored['state'], restored['sums']

  @property
  def parameters(self) -> int:
    """How many numbers training adjusts."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

  def save(self) -> None:
    """Saves the state; it is written while training goes on."""
    self.stopwatch.book(self.progress.seconds)
    taken = int(self.state.step)
    weights = jax.device_get((self.state.params, self.state.variables()))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)):
      self._give_up(f'The weights are not finite after step {taken}')
    # The one before stays, with its best: should this one be damaged, that is what is left.
    keep = {self.progress.best_step, *self._saved}
    self.checkpoints.save_async(taken, {'state': self.state, 'sums': self.sums},
                                dataclasses.asdict(self.progress), keep)
    self._saved = taken, self.progress.best_step

  def fit(self) -> None:
    """Trains to the end; a signal saves and leaves.

    Raises:
      Interrupted: after everything is saved.
      DivergenceError: see `train_epoch`.
      UserError: when a file cannot be written.
    """
    self.stopwatch.start(self.progress.seconds)
    with self.interrupt.deferred():
      try:
        while not self.progress.finished:
          self.finish_epoch(self.train_epoch())
      except Interrupted:
        self.check(jax.device_get(self.sums))
        self.save()
        self.checkpoints.wait()
        raise
      self.checkpoints.wait()

  def calls(self, order: jax.Array, start: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The dispatches of an epoch from step `start`: (steps done after it, what it trains on)."""
    steps, size = self.programs.steps_per_epoch, self.config.train.steps_per_dispatch
    as_scalar = lambda n: sharding.put(np.int32(n), sharding.replicated(self.mesh))
    if self.equipment.resident:
      images, labels = self.equipment.images, self.equipment.labels
      while start < steps:
        # Boundaries depend on the config alone, not on where this process began.
        stop = min((start // size + 1) * size, steps)
        yield stop, (images, labels, order, as_scalar(start), as_scalar(stop))
        start = stop
      return
    batch_bytes = self.config.data.batch_size * math.prod(self.programs.image_shape)
    size = min(size, max(1, _STREAM_BYTES // batch_bytes))
    # Every process reads what its own devices work on.
    examples = self.config.data.batch_size
    own = sharding.own_examples(self.mesh, examples)
    place = lambda arrays: sharding.put_own(arrays, self.mesh, own, examples)
    wanted = jax.device_get(order)[:, own]
    with data.stream(self.dataset.train, wanted, start, size, place) as chunks:
      for images, labels in chunks:
        start += images.shape[0]
        yield start, (images, labels, None, as_scalar(0), as_scalar(images.shape[0]))

  def train_epoch(self) -> float:
    """Runs the steps that are left of the current epoch.

    Returns:
      Images a second.

    Raises:
      Interrupted: between dispatches, with the state as it is there.
      DivergenceError: naming the first step whose loss or gradient was not finite.
    """
    programs, epoch = self.programs, self.progress.epoch
    done = first = int(self.state.step) - epoch * programs.steps_per_epoch
    number = sharding.put(np.int32(epoch), sharding.replicated(self.mesh))
    order = programs.compiled(programs.order, self.state.key, number)(self.state.key, number)
    began = saved_at = time.perf_counter()
    compiled_before = programs.compile_seconds
    previous: tuple[int, step.Sums] | None = None
    due = processes.Late()
    for done, what in self.calls(order, first):
      args = (self.state, self.sums, self.hyper, *what)
      self.state, self.sums = programs.compiled(programs.train, *args, donate=(0,))(*args)
      if previous:  # One call late, so that the device never waits for this.
        self.show(*previous)
      previous = done, self.sums
      every = self.config.train.checkpoint_every_seconds
      late = processes.is_primary() and time.perf_counter() - saved_at > every
      if every and due(late) and done < programs.steps_per_epoch:
        self.show(*previous)
        self.save()
        saved_at, due = time.perf_counter(), processes.Late()
      self.interrupt.check()
    if previous:
      self.show(*previous)
    seconds = time.perf_counter() - began - (programs.compile_seconds - compiled_before)
    return (done - first) * self.config.data.batch_size / seconds if done > first else 0.0

  def show(self, done: int, sums: step.Sums) -> None:
    """Waits for a dispatch, checks its numbers and moves the bar."""
    found = jax.device_get(sums)
    self.check(found)
    steps = self.programs.steps_per_epoch
    self.display.update(self.progress.epoch * steps + done, self.progress.epoch + 1,
                        self.config.train.epochs, found.loss / max(found.count, 1),
                        found.correct / max(found.count, 1))

  def check(self, sums: step.Sums) -> None:
    """Raises DivergenceError if a step so far was not finite."""
    if sums.bad_step >= 0:
      self._give_up(f'The loss or its gradient is not finite at step {int(sums.bad_step)}')

  def _give_up(self, what: str) -> None:
    """Raises DivergenceError, in every process."""
    self.checkpoints.wait()
    processes.of_primary(lambda: self._diverged(what))

  def _diverged(self, what: str) -> NoReturn:
    kept = self.checkpoints.steps()
    where = (f'the checkpoint of step {kept[-1]} is kept in {self.checkpoints.directory}'
             if kept else 'nothing had been saved yet')
    raise DivergenceError(f'{what} (epoch {self.progress.epoch + 1}); {where}; lower '
                          'optim.learning_rate or set optim.clip_norm.')

  def finish_epoch(self, images_per_second: float) -> None:
    """The barrier: measure, decide, write the record, save.

    Args:
      images_per_second: of the training steps.
    """
    config, programs = self.config, self.programs
    variables = self.state.variables()
    measured: dict[str, float] = {}
    for name, batches in (('clean_train', self.equipment.clean_train),
                          ('validation', self.equipment.validation)):
      if batches.examples:
        loss, accuracy = evaluate.measure(programs, variables, batches, self.interrupt.check)
        measured |= {f'{name}_loss': loss, f'{name}_accuracy': accuracy}
    sums = jax.device_get(self.sums)
    taken = int(self.state.step)
    self.stopwatch.book(self.progress.seconds)
    record = epoch_record(config, programs.steps_per_epoch, taken, self.progress.seconds['train'],
                          images_per_second, sums, measured)
    wrong = not_finite(record)
    if wrong:
      self._give_up(f'{wrong} is not finite after step {taken}')
    best = self.progress.decide(record, config)
    self.sums = sharding.put(self.zero, sharding.replicated(self.mesh))
    # The record first: a checkpoint never knows of an epoch that the history lacks.
    processes.of_primary(lambda: self.directory.history.append(record))
    self.save()
    self.display.say(progress_lib.epoch_line(record, config.train.epochs, best))
