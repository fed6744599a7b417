"""From a name to splits that batches are drawn from, and the order in which they are drawn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmnist_jax import config as config_lib
from fmnist_jax.data import npz, sources, splits
from fmnist_jax.data.dataset import Dataset, MemorySource, Source, Split
from fmnist_jax.errors import DataError

CLEAN_TRAIN_EXAMPLES = 5000
# A training set up to this size is kept on the device. Where the device says how much memory it
# has, a quarter of that counts instead, so that the model and its activations have room.
RESIDENT_BYTES = 1 << 30


def load(config: config_lib.Data) -> Dataset:
  """Finds, verifies and opens the data set that the config names, and deals it out.

  Raises:
    DataUnavailable: when it is nowhere to be had; the message says what was tried.
    DataError: when it is damaged, or not what it claims to be.
  """
  if config.name.endswith('.npz'):
    return _own(config)
  if config.name == 'synthetic':
    files, counts = None, (config.train_examples or 60_000, config.test_examples or 10_000)
  else:
    # Before the slow import: a folder that somebody named and that is wrong is told at once.
    files = sources.named(config.name, config.data_dir)
    counts = sources.ORIGINALS[config.name].examples
  resident = is_resident(config.residency, counts[0] * 28 * 28)
  from fmnist_jax.data import prepared  # Imports TFDS, which takes a while.
  opened = prepared.Prepared(config.name, files, *counts)
  source, labels = opened.open('train', resident)
  open_test = lambda: _first(*opened.open('test', resident), config.test_examples)
  return _dealt(config, _first(source, labels, config.train_examples), open_test=open_test,
                class_names=opened.class_names, synthetic=config.name == 'synthetic',
                sha256=opened.sha256(), image_shape=source.shape, resident=resident)


def _own(config: config_lib.Data) -> Dataset:
  """The user's own .npz."""
  own = npz.read(config.name)
  test = MemorySource(own.test_images, own.test_labels)
  return _dealt(config, _first(MemorySource(own.images, own.labels), own.labels,
                               config.train_examples),
                open_test=lambda: _first(test, own.test_labels, config.test_examples),
                class_names=own.class_names, synthetic=False, sha256=own.sha256,
                image_shape=own.images.shape[1:],
                resident=is_resident(config.residency, own.images.nbytes))


def _first(source: Source, labels: np.ndarray, examples: int) -> Split:
  """The first examples of a source; 0: all."""
  count = min(examples or len(source), len(source))
  return Split(source, np.arange(count), labels[:count])


def _dealt(config: config_lib.Data, everything: Split, **description: Any) -> Dataset:
  """Divides the training examples into training and validation."""
  total, wanted = len(everything), config.validation_examples
  if wanted + config.batch_size > total:
    raise DataError(
        f'{config.name} has {total:,} training examples, of which data.validation_examples='
        f'{wanted:,} takes its part: too few are left for one step of data.batch_size='
        f'{config.batch_size:,}; lower one of them.')
  held = splits.balanced(everything.labels, wanted, splits.VALIDATION)
  train = everything.subset(np.setdiff1d(np.arange(total), held))
  clean = splits.balanced(train.labels, min(CLEAN_TRAIN_EXAMPLES, len(train)),
                          splits.CLEAN_TRAIN)
  return Dataset(name=config.name, train=train, validation=everything.subset(held),
                 clean_train=train.subset(clean), **description)


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
