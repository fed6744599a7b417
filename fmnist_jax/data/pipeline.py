"""From a data set to splits that batches are drawn from, and the order in which they are drawn."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from fmnist_jax import settings
from fmnist_jax.data import splits
from fmnist_jax.data.dataset import Dataset
from fmnist_jax.errors import DataError, UserError, told

CLEAN_TRAIN_EXAMPLES = 5000
_FEW = 5  # Validation examples of a class; of fewer, nothing can be said.
# A training set up to this size is kept on the device. Where the device says how much memory it
# has, a quarter of that counts instead, so that the model and its activations have room.
RESIDENT_BYTES = 1 << 30


def load(source: Any) -> Dataset:
  """Loads what a `data` section describes and deals it out.

  Raises:
    DataUnavailable: when it is nowhere to be had; the message says what was tried.
    DataError: when it is damaged, or not what it claims to be.
  """
  name = f'The data source {settings.kind_name(type(source))}'
  try:
    dataset = source.load()
  except UserError:
    raise
  except Exception as error:
    raise DataError(f'{name} could not be loaded: {told(error)}.') from error
  if not isinstance(dataset, Dataset):
    raise DataError(f'{name} loads a {type(dataset).__name__}; load() must return a '
                    'fmnist_jax.Dataset, such as Dataset.of_arrays(name, images, labels).')
  return deal(source, dataset)


def deal(source: Any, dataset: Dataset) -> Dataset:
  """Divides the training examples into training and validation, as a `data` section says.

  Raises:
    DataError: when too few are left.
  """
  everything = dataset.train.first(source.train_examples)
  total, wanted = len(everything), source.validation_examples
  labels = np.asarray(everything.labels)
  if len(dataset.image_shape) != 3 or labels.dtype.kind not in 'iu' or (total and not (
      labels.min() >= 0 and labels.max() < dataset.num_classes)):
    raise DataError(f'{dataset.name} has images of shape {list(dataset.image_shape)} and labels '
                    f'{labels.dtype}; images must have three axes and labels be integers from 0 to '
                    f'{dataset.num_classes - 1}.')
  if wanted + source.batch_size > total:
    raise DataError(
        f'{dataset.name} has {total:,} training examples, of which data.validation_examples='
        f'{wanted:,} takes its part: too few are left for one step of data.batch_size='
        f'{source.batch_size:,}; lower one of them.')
  held = splits.stratified(labels, wanted, splits.VALIDATION)
  train = everything.subset(np.setdiff1d(np.arange(total), held))
  _tell_of_few(dataset, train.labels, labels[held])
  clean = splits.stratified(train.labels, min(CLEAN_TRAIN_EXAMPLES, len(train)),
                            splits.CLEAN_TRAIN)
  return dataclasses.replace(
      dataset, train=train, validation=everything.subset(held), clean_train=train.subset(clean),
      open_test=lambda: dataset.test.first(source.test_examples))


def _tell_of_few(dataset: Dataset, train: np.ndarray, validation: np.ndarray) -> None:
  """Logs which classes are too rare to be trained on, or to be validated as the others are."""
  def tell(counts: np.ndarray, least: int, what: str) -> None:
    few = np.flatnonzero(counts < least)
    if few.size:
      shown = ', '.join(f'{dataset.class_names[i]!r} ({counts[i]})' for i in few[:5])
      more = f' and {few.size - 5} more' if few.size > 5 else ''
      logging.warning('Classes of %s with fewer than %d %s examples: %s%s.', dataset.name, least,
                      what, shown, more)
  count = functools.partial(np.bincount, minlength=dataset.num_classes)
  tell(count(train), 1, 'training')
  fair = max(len(validation) // dataset.num_classes, 1)
  tell(count(validation), min(_FEW, fair, len(validation)), 'validation')


def is_resident(residency: str, num_bytes: int) -> bool:
  """Whether a training set of `num_bytes` is kept on the device.

  Args:
    residency: the config's `data.residency`.
    num_bytes: of the images, as uint8.
  """
  if residency != 'auto':
    return residency == 'resident'
  stats = jax.local_devices()[0].memory_stats() or {}
  return num_bytes <= (stats['bytes_limit'] // 4 if 'bytes_limit' in stats else RESIDENT_BYTES)


def epoch_order(key_or_seed: jax.Array | int, epoch: jax.Array | int, num_examples: int,
                batch_size: int) -> jax.Array:
  """Which examples each step of an epoch takes: a permutation, pure in (key, epoch).

  The remainder that does not fill a batch is dropped; it differs every epoch. May be compiled and
  vectorised over key and epoch.

  Sorting is what this costs. XLA sorts one array of integers five times faster on CPU than it
  sorts by a key, so random bits and position share 32 bits; where positions leave fewer than 16
  for chance, it is shuffled more than once. (Two examples whose bits are equal, one pair in
  65,536, keep their order.)

  Args:
    key_or_seed: a typed key, or an integer.
    epoch: number of the epoch.
    num_examples: how many there are to order, 1 to 2**30.
    batch_size: examples a step.

  Returns:
    Indices, int32 [num_examples // batch_size, batch_size].
  """
  key = jnp.asarray(key_or_seed)
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key(key, impl='threefry2x32')
  key = jax.random.fold_in(key, epoch)
  position_bits = max(num_examples - 1, 1).bit_length()
  position = jnp.arange(num_examples, dtype=jnp.uint32)
  order = position.astype(jnp.int32)
  for shuffle in range(-(-16 // (32 - position_bits))):
    bits = jax.random.bits(jax.random.fold_in(key, shuffle), (num_examples,), jnp.uint32)
    mixed = jnp.sort((bits >> position_bits << position_bits) | position)
    order = order[(mixed & ((1 << position_bits) - 1)).astype(jnp.int32)]
  steps = num_examples // batch_size
  return order[:steps * batch_size].reshape(steps, batch_size)
