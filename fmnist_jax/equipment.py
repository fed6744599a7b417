"""What the runs of one program share: compiled functions, data on the devices, and one epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fmnist_jax import config as config_lib
from fmnist_jax import data, evaluation, settings, sharding, step
from fmnist_jax.errors import ConfigError
from fmnist_jax.programs import Programs
from fmnist_jax.transfer import Source

# Streamed calls hold at most this many bytes of images, however many steps a dispatch has.
_STREAM_BYTES = 64 * 2**20


class Equipment:
  """Programs and data of runs that differ in seed and continuous settings.

  Attributes:
    dataset: what is trained on, dealt out.
    mesh: where.
    programs: compiled once for all of them.
    source: weights of another run to start from; None: none.
    measured: what is measured after each epoch, by name: batches of the clean training examples
      and, where there is one, of the validation split.
    teachers: models that say what training examples are: work directory -> SHA-256 of the weights.
  """

  def __init__(self, config: config_lib.Config, dataset: data.Dataset, mesh: Mesh,
               source: Source | None = None):
    """Args: `config` with nothing left to 'auto'."""
    self.dataset, self.mesh, self.source = dataset, mesh, source
    self.programs: Any = self._programs(config)
    self.teachers: dict[str, str] = {}
    self._train = self._taught(config, dataset)
    resident = config.data.residency == 'resident'
    self.measured = {
        name: evaluation.Batches(split, config.evaluate.batch_size, mesh, resident=resident)
        for name, split in (('clean_train', dataset.clean_train),
                            ('validation', dataset.validation)) if split}
    self._resident = sharding.put(self._train.arrays(),
                                  sharding.replicated(mesh)) if resident else None

  def _programs(self, config: config_lib.Config) -> Programs:
    train, classes = self.dataset.train, self.dataset.num_classes
    programs = Programs(config, self.mesh, self.dataset.image_shape, classes, len(train),
                        np.bincount(train.labels, minlength=classes))
    if not programs.horizon.steps_per_epoch:
      raise ConfigError(f'data.batch_size is {config.data.batch_size}, but there are only '
                        f'{len(train)} training examples; use a smaller batch.')
    return programs

  def _taught(self, config: config_lib.Config, dataset: data.Dataset) -> data.Split:
    """The training examples with what the loss takes them for."""
    def said(directory: str) -> np.ndarray:
      probabilities, self.teachers[directory] = evaluation.said(directory, dataset)
      return probabilities

    targets = config.loss.targets(dataset.train.labels, said)
    if targets is None:
      return dataset.train
    shape = len(dataset.train), dataset.num_classes
    if targets.shape != shape or targets.dtype != np.float32:
      raise ConfigError(f'The loss {settings.kind_name(type(config.loss))} has targets '
                        f'{targets.dtype} {[*targets.shape]}; they must be float32 {[*shape]}.')
    return dataset.train.labelled(targets)

  def with_programs(self, programs: Any) -> Equipment:
    """The same data with other programs, such as those mapped over members."""
    other = copy.copy(self)
    other.programs = programs
    return other

  def of(self, config: config_lib.Config) -> Equipment:
    """The same data with the programs of another config, whose loss takes them for the same."""
    return self.with_programs(self._programs(config))

  def train(self, state: step.TrainState, sums: step.Sums, hyper: Any, epoch: Any, first: int = 0,
            *more: Any) -> Iterator[tuple[int, step.TrainState, step.Sums]]:
    """Trains an epoch from step `first` on, one call of the compiled program at a time.

    The only place where training steps are dispatched. Nothing here waits for the devices, and
    what is yielded may still be under way.

    Args:
      state: before step `first`; its memory is taken over.
      sums: of the epoch so far.
      hyper: values of the continuous settings, placed.
      epoch: its number, from 0; of members int [M], where each has its own.
      first: the first step, counted from the epoch's start.
      *more: further arguments of `programs.train`.

    Yields:
      How many steps of the epoch are done, the state and the sums.
    """
    programs = self.programs
    order = programs.call(programs.order, state.key, programs.epochs(epoch))
    for done, what in self._calls(order, first):
      state, sums = programs.call(programs.train, state, sums, hyper, *what, *more, donate=(0,))
      yield done, state, sums

  def _calls(self, order: jax.Array, start: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The calls of an epoch from step `start`: (steps done after it, what it trains on)."""
    programs, config = self.programs, self.programs.config
    steps, size = programs.horizon.steps_per_epoch, config.train.steps_per_dispatch
    if self._resident:
      while start < steps:
        # Boundaries depend on the config alone, not on where this process began.
        stop = min((start // size + 1) * size, steps)
        yield stop, (*self._resident, order, programs.number(start), programs.number(stop))
        start = stop
      return
    examples = config.data.batch_size
    size = min(size, max(1, _STREAM_BYTES // (examples * math.prod(self.dataset.image_shape))))
    # Every process reads what its own devices work on.
    own = sharding.own_examples(self.mesh, examples)
    place = lambda arrays: sharding.put_own(arrays, self.mesh, own, examples)
    wanted = jax.device_get(order)[:, own]
    with data.stream(self._train, wanted, start, size, place) as chunks:
      for images, labels in chunks:
        stop = start + images.shape[0]
        yield stop, (images, labels, order, programs.number(start), programs.number(stop))
        start = stop
