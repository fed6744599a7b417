"""One run: its state, and the loop that advances it."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from fmnist_jax import config as config_lib
from fmnist_jax import evaluation, report, step
from fmnist_jax import progress as progress_lib
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import CheckpointError, ConfigError
from fmnist_jax.interrupt import Interrupted, Signals
from fmnist_jax.programs import hyper_arrays
from fmnist_jax.storage import readback
from fmnist_jax.storage.checkpoint import Checkpoints
from fmnist_jax.storage.workdir import Workdir

Record = dict[str, Any]


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
    data: `describe(equipment)`.
    lost_epoch: the best epoch, where its checkpoint was damaged and another takes its place.
    init_from: what it started from: `transfer.Source.described`; None for random weights.
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
  lost_epoch: int | None = None
  init_from: dict[str, Any] | None = None

  @classmethod
  def from_json(cls, saved: Mapping[str, Any]) -> Progress:
    """What `dataclasses.asdict` made JSON of."""
    return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)
                  if field.name in saved})

  def decide(self, record: Mapping[str, Any], train: config_lib.Train) -> bool:
    """Takes in an epoch's record; returns whether it is the best so far.

    Of equals the first is the best. Without validation data the latest is.
    """
    self.epoch = record['epoch']
    value = record.get(train.monitor)
    better = value is None or self.best_value is None or (
        value < self.best_value if train.monitor == 'validation_loss' else value > self.best_value)
    if better:
      self.best_epoch, self.best_step = record['epoch'], record['step']
      self.best_value = value
      self.best_validation_accuracy = record.get('validation_accuracy')
    patience = train.early_stopping_patience
    self.finished = self.epoch >= train.epochs or bool(
        patience and self.epoch - self.best_epoch >= patience)
    return better


def describe(equipment: Equipment) -> dict[str, Any]:
  """What a checkpoint has to know of its data set, and of its teachers, as JSON values."""
  dataset = equipment.dataset
  described = {
      'name': dataset.name, 'synthetic': dataset.synthetic, 'sha256': dict(dataset.sha256),
      'class_names': list(dataset.class_names), 'image_shape': list(dataset.image_shape),
      'train_examples': len(dataset.train)}
  if equipment.teachers:
    described['teachers'] = dict(equipment.teachers)
  return described


class Stopwatch:
  """Books seconds of wall time as spent compiling its programs or, the rest, training."""

  def __init__(self, programs: Any):
    self._programs = programs
    self._began, self._compiled = time.perf_counter(), programs.compile_seconds
    self._paused = programs.paused_seconds

  def start(self, seconds: dict[str, float]) -> None:
    """Training begins: of the time until now only what was compiled is booked."""
    self._began, self._paused = time.perf_counter(), self._programs.paused_seconds
    self.book(seconds)

  def book(self, seconds: dict[str, float]) -> None:
    """Adds the seconds since the last call to `compile` and `train` of `Progress.seconds`."""
    now, compiled = time.perf_counter(), self._programs.compile_seconds
    paused = self._programs.paused_seconds
    seconds['compile'] += compiled - self._compiled
    seconds['train'] += now - self._began - (paused - self._paused)
    self._began, self._compiled, self._paused = now, compiled, paused


class Trainer:
  """Trains one run: `resume`, `fit`, `finish`.

  `population.vectorized.Group` derives from it: the same loop, with a member axis in front of
  every array.

  Attributes:
    config: of the run, with nothing left to 'auto'.
    workdir: its directory.
    progress: where it stands.
    taken: steps done.
    state: of training, on the devices.
    sums: of the epoch so far, on the devices.
  """

  def __init__(self, config: config_lib.Config, workdir: Workdir, equipment: Equipment,
               console: progress_lib.Console, signals: Signals):
    """Prepares the state before the first step.

    Args:
      config: with nothing left to 'auto'.
      workdir: of the run.
      equipment: programs and data.
      console: where to say what happens.
      signals: polled between dispatches.
    """
    self.config, self.workdir, self.equipment = config, workdir, equipment
    self.programs = equipment.programs
    self.console, self.signals = console, signals
    self.stopwatch = Stopwatch(self.programs)
    self.progress: Any = Progress(data=describe(equipment))
    self.checkpoints = Checkpoints(workdir.path / 'checkpoints', readback.PROGRESS, workdir.held)
    self.directory, self.history = workdir.path, workdir.history
    self.taken = 0
    self.saved: set[int] = set()  # Steps of the last checkpoint, and of the best that it knew.
    self.hyper = self.programs.put(hyper_arrays(config))
    self.state = self.programs.call(self.programs.init,
                                    self.programs.put(np.int32(config.train.seed)), self.hyper)
    self.sums = self.programs.zero()
    self.check_start()

  def check_start(self) -> None:
    """Raises ConfigError unless the weights to start from are finite."""
    if not _finite(self.state):
      raise ConfigError('The weights that the model starts from are not finite; look at its '
                        'initialisers.')

  @property
  def parameters(self) -> int:
    """How many numbers the model learns, frozen ones included."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

  @property
  def trained_parameters(self) -> int:
    """How many of them training adjusts."""
    return sum(leaf.size for leaf in self.programs.freezing.trained(self.state.params))

  # Where it stands, and on the disk.

  def carried(self) -> dict[str, Any]:
    """The arrays that a checkpoint holds."""
    return {'state': self.state, 'sums': self.sums}

  def restore(self, taken: int) -> None:
    """Takes the arrays from the checkpoint of a step."""
    restored, _ = self.checkpoints.restore(taken, jax.eval_shape(self.carried))
    for name, tree in self.programs.put(restored).items():
      setattr(self, name, tree)
    self.taken = taken

  def restore_best(self) -> None:
    """Takes the weights that validation chose; where they are damaged, the best intact ones."""
    try:
      self.restore(self.progress.best_step)
    except CheckpointError as error:
      if type(error) is not CheckpointError:  # Of a newer version: no damage.
        raise
      intact = set(self.checkpoints.intact()) - {self.progress.best_step}
      others = Progress()
      for record in self.history.read():
        if record['step'] in intact:
          others.decide(record, self.config.train)
      if not others.best_epoch:
        raise
      logging.warning('%s The best epoch, %d, is lost: epoch %d takes its place.', error,
                      self.progress.best_epoch, others.best_epoch)
      self.progress = dataclasses.replace(
          self.progress, best_epoch=others.best_epoch, best_step=others.best_step,
          best_value=others.best_value, lost_epoch=self.progress.best_epoch,
          best_validation_accuracy=others.best_validation_accuracy)
      taken, carried = self.taken, self.carried()
      self.restore(self.progress.best_step)
      # Whoever loads the run shall find it too.
      self.checkpoints.save(taken, carried, dataclasses.asdict(self.progress),
                            self.kept_beside(taken) | self.saved)

  def begin(self) -> None:
    """Takes over the weights of another run, where there is one to start from."""
    source, state = self.equipment.source, self.state
    if source is not None:
      variables = source.into(jax.device_get({'params': state.params, **state.model_state}))
      self.state = self.programs.call(self.programs.adopt, state, self.programs.put(variables),
                                      self.hyper)
      self.progress.init_from = source.described

  def resume(self) -> None:
    """Goes on from the newest intact checkpoint, or begins."""
    newest = self.checkpoints.latest_good()
    if newest is None:
      self.begin()
    else:
      saved = self.checkpoints.progress(newest)
      self.check_data(saved, self.directory)
      self.progress = self.take_up(saved)
      self.restore(newest)
      self.saved = self.kept_beside(newest)
    steps = self.progress.epoch * self.programs.horizon.steps_per_epoch
    self.history.rewind(self.progress.epoch, steps)

  def check_data(self, saved: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Raises CheckpointError unless a run, whose progress was saved, was trained on these data."""
    if saved['data']['sha256'] != self.progress.data['sha256']:
      raise CheckpointError(
          f'{directory} was trained on other data than {self.equipment.dataset.name} is now (the '
          'SHA-256 digests differ); give the data it was trained on, or another --workdir.')
    if saved['data'].get('teachers') != self.progress.data.get('teachers'):
      raise CheckpointError(f'{directory} was taught by other models than are now in '
                            f'{", ".join(self.equipment.teachers)}; put those back, or give '
                            'another --workdir.')

  def take_up(self, saved: Mapping[str, Any]) -> Any:
    """The progress that a checkpoint holds."""
    return dataclasses.replace(Progress.from_json(saved), data=self.progress.data)

  def kept_beside(self, taken: int) -> set[int]:
    """The checkpoints that must stay while that of step `taken` is the newest."""
    return {taken, self.progress.best_step}

  def save(self) -> None:
    """Saves the run; it is written while training goes on."""
    self.stopwatch.book(self.progress.seconds)
    self.check_weights()
    now = self.kept_beside(self.taken)
    # The one before stays, with its best: should this one be damaged, that is what is left.
    self.checkpoints.save_async(self.taken, self.carried(), dataclasses.asdict(self.progress),
                                now | self.saved)
    self.saved = now

  # The loop.

  @property
  def finished(self) -> bool:
    """Whether training is over."""
    return self.progress.finished

  def fit(self) -> None:
    """Trains to the end; a signal saves and leaves.

    Raises:
      Interrupted: after everything is saved.
      DivergenceError: naming the first step whose loss or gradient was not finite.
      UserError: when a file cannot be written.
    """
    total = self.config.train.epochs * self.programs.horizon.steps_per_epoch
    self.console.start(total, self.taken)
    self.stopwatch.start(self.progress.seconds)
    with self.signals.deferred():
      try:
        while not self.finished:
          self.finish_epoch(self.train_epoch())
      except Interrupted:
        self.check(jax.device_get(self.sums))
        self.save()
        self.checkpoints.wait()
        raise
      self.checkpoints.wait()

  def train_epoch(self) -> float:
    """Runs the steps that are left of the current epoch; returns images a second."""
    before = self.progress.epoch * self.programs.horizon.steps_per_epoch
    first, previous = self.taken - before, None
    began, paused = time.perf_counter(), self.programs.paused_seconds
    every, steps = self.config.train.checkpoint_every_seconds, self.programs.horizon.steps_per_epoch
    calls = self.equipment.train(self.state, self.sums, self.hyper, self.progress.epoch, first,
                                 *self.extra())
    for done, self.state, self.sums in calls:
      self.taken = before + done
      if previous:  # One call late, so that the device never waits for this.
        self.show(*previous)
      previous = self.taken, self.sums
      if self.checkpoints.due(every) and done < steps:
        self.show(*previous)
        self.save()
      self.signals.check()
    if previous:
      self.show(*previous)
    seconds = time.perf_counter() - began - (self.programs.paused_seconds - paused)
    images = (self.taken - before - first) * self.config.data.batch_size
    return images / seconds if images else 0.0

  def extra(self) -> tuple[Any, ...]:
    """Further arguments of `programs.train` in this epoch."""
    return ()

  def show(self, taken: int, sums: step.Sums) -> None:
    """Waits for a dispatch, checks its numbers and moves the bar."""
    on_host = jax.device_get(sums)
    self.check(on_host)
    count = max(np.sum(on_host.count), 1)
    self.console.update(taken, self.progress.epoch + 1, self.config.train.epochs,
                        np.sum(on_host.loss) / count, np.sum(on_host.correct) / count)

  def finish_epoch(self, images_per_second: float) -> None:
    """The barrier: measure, decide, write the record, save."""
    measured = self.measure()
    sums = jax.device_get(self.sums)
    self.stopwatch.book(self.progress.seconds)
    record, line = self.decide(sums, measured, images_per_second)
    self.sums = self.programs.zero()
    # The record first: a checkpoint never knows of an epoch that the history lacks.
    self.history.append(record)
    self.save()
    self.console.say(line)

  def measure(self) -> dict[str, Any]:
    """Loss and accuracy of the clean training and the validation examples, as a record has them."""
    measured: dict[str, Any] = {}
    for name, batches in self.equipment.measured.items():
      measured[f'{name}_loss'], measured[f'{name}_accuracy'] = evaluation.measure(
          self.programs, self.state.variables(), batches, self.signals.check)
    return measured

  def decide(self, sums: step.Sums, measured: Mapping[str, Any],
             images_per_second: float) -> tuple[Record, str]:
    """What an epoch's numbers mean: its line of the history, and one for a person."""
    record = self.record(self.config, sums, measured, self.progress.seconds['train'],
                         images_per_second)
    wrong = not_finite(record)
    if wrong:
      self.give_up(f'{wrong} is not finite after step {self.taken}')
    best = self.progress.decide(record, self.config.train)
    return record, progress_lib.epoch_line(record, self.config.train.epochs, best)

  def record(self, config: config_lib.Config, sums: step.Sums, measured: Mapping[str, Any],
             seconds: float, images_per_second: float, taken: int | None = None) -> Record:
    """A line of metrics.jsonl.

    Args:
      config: of the run.
      sums: of the epoch, on the host.
      measured: clean_train_loss and what else was measured after it.
      seconds: of training so far, over all starts.
      images_per_second: of the epoch's training steps.
      taken: steps done, where these are not `self.taken`.
    """
    taken = self.taken if taken is None else taken
    rate = config.optim.rate(self.programs.horizon)(jnp.asarray(taken - 1))
    return {'epoch': taken // self.programs.horizon.steps_per_epoch, 'step': taken,
            'seconds': round(seconds, 3), 'images_per_second': round(images_per_second, 1),
            'learning_rate': float(rate), 'train_loss': float(sums.loss) / int(sums.count),
            'train_accuracy': int(sums.correct) / int(sums.count),
            **{name: float(value) for name, value in measured.items()}}

  # What is not finite.

  def check(self, sums: step.Sums) -> None:
    """Raises DivergenceError if a step so far was not finite."""
    if sums.bad_step >= 0:
      self.give_up(f'The loss or its gradient is not finite at step {int(sums.bad_step)}')

  def check_weights(self) -> None:
    """Raises DivergenceError unless the weights are finite: the loss can be where they are not."""
    if not _finite(self.state):
      self.give_up(f'The weights are not finite after step {self.taken}')

  def give_up(self, what: str) -> NoReturn:
    """Raises DivergenceError."""
    self.checkpoints.abandon(f'{what} (epoch {self.progress.epoch + 1})',
                             'lower optim.learning_rate or set optim.clip_norm')

  # After training.

  def finish(self, *, with_report: bool = True) -> dict[str, Any]:
    """Measures the best checkpoint; writes predictions, report and, last, results.json."""
    self.restore_best()
    probabilities, seconds = self.predict(self.state)
    results = self.write(self.workdir, self.config, self.progress, probabilities, seconds,
                         self.state.variables(), with_report=with_report)
    if with_report:
      self.console.say(report.classification_table(results))
    page = self.workdir.path / 'report' / 'report.html'
    shown = f'; report: {page}' if with_report and page.exists() else ''
    self.console.say(f'{self.config.evaluate.split} accuracy {results["accuracy"]:.2%}, loss '
                     f'{results["loss"]:.4f}, of epoch {results["best_epoch"]}{shown}')
    return results

  def predict(self, state: step.TrainState) -> tuple[np.ndarray, dict[str, float]]:
    """Class probabilities of the split to evaluate, and seconds by phase, this one included."""
    began, programs = time.perf_counter(), self.programs
    compiled, paused = programs.compile_seconds, programs.paused_seconds
    split = evaluation.split_of(self.equipment.dataset, self.config.evaluate.split)
    batches = evaluation.Batches(split, self.config.evaluate.batch_size, self.equipment.mesh,
                                 resident=False)
    probabilities = evaluation.predict(self.programs, state.variables(), batches,
                                       self.signals.check)
    seconds = self.progress.seconds
    return probabilities, {
        **seconds, 'compile': seconds['compile'] + programs.compile_seconds - compiled,
        'evaluate': time.perf_counter() - began - (programs.paused_seconds - paused)}

  def write(self, workdir: Workdir, config: config_lib.Config, progress: Progress,
            probabilities: np.ndarray, seconds: Mapping[str, float], variables: Any, *,
            with_report: bool) -> dict[str, Any]:
    """Writes what a run leaves behind; returns the contents of results.json.

    Args:
      workdir: of the run, its history complete.
      config: of the run.
      progress: of the run.
      probabilities: float32 [N, K], of the split to evaluate.
      seconds: by phase.
      variables: of the module, that gave them.
      with_report: whether to write report/ too.
    """
    dataset = self.equipment.dataset
    results = evaluation.results(
        described=self.progress.data, split=config.evaluate.split, probabilities=probabilities,
        labels=evaluation.split_of(dataset, config.evaluate.split).labels,
        parameters=self.parameters, trained=self.trained_parameters,
        progress=dataclasses.asdict(progress), config=config, seconds=seconds,
        mesh=self.equipment.mesh)
    evaluation.write(workdir, config, dataset, results, probabilities, variables,
                     with_report=with_report)
    return results


def not_finite(record: Mapping[str, Any]) -> str | None:
  """The first number of a record that is infinite or none: weights can be so while no loss was."""
  return next((name for name, value in record.items() if not math.isfinite(value)), None)


def _finite(state: step.TrainState) -> bool:
  """Whether weights and averages are."""
  weights = jax.device_get((state.params, state.variables()))
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)
             if jnp.issubdtype(leaf.dtype, jnp.floating))
