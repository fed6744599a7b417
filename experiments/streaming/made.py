"""A data set of any size: noise of 64x64x3, brighter from class to class."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator

import numpy as np

from fmnist_jax.config import MLP, AdamW, Config, DataSource, Train, setting
from fmnist_jax.data import kept
from fmnist_jax.data.dataset import Dataset
from fmnist_jax.data.mapped import Chunks

SHAPE = (64, 64, 3)
CLASSES = 10
TESTED = 1000


def drawn(count: int, key: int) -> Chunks:
  """So many examples, 1,000 at a time; the same bits everywhere."""
  for start in range(0, count, 1000):
    numbers = np.arange(start, min(start + 1000, count))
    size = len(numbers) * int(np.prod(SHAPE))
    noise = np.random.Philox(key=2 * start + key).random_raw(-(-size // 8)).view(np.uint8)[:size]
    labels = numbers % CLASSES
    yield (noise.reshape(-1, *SHAPE) >> 1) + np.uint8(12) * labels[:, None, None, None].astype(
        np.uint8), labels


@dataclasses.dataclass
class Made(DataSource):
  """Noise, kept in array files as every set is."""
  examples: int = setting(10_000, 'training examples, validation included', low=2000)

  def arrays(self) -> kept.Kept:
    """Where they are kept."""
    return kept.Kept('made', f'made-{self.examples}', 'noise 1', self._contents)

  def load(self) -> Dataset:
    """See `DataSource`."""
    return self.arrays().dataset([f'{n}' for n in range(CLASSES)])

  def _contents(self) -> Iterator[kept.Content]:
    counts = (self.examples, TESTED)
    yield kept.Content({split: functools.partial(drawn, count, key) for key, (split, count) in
                        enumerate(zip(kept.SPLITS, counts))}, {})


def get_config() -> Config:
  """What is trained."""
  return Config(data=Made(validation_examples=1000, batch_size=128, residency='streamed'),
                model=MLP(hidden=(128,)), optim=AdamW(), train=Train(epochs=2))


def forget(examples: int) -> str:
  """Has the system forget what it holds of the images; returns their file."""
  path = str(Made(examples=examples).arrays().folder / 'train-images.npy')
  descriptor = os.open(path, os.O_RDONLY)
  os.fsync(descriptor)
  os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
  os.close(descriptor)
  return path


def main() -> None:
  """Reads a file in its order, then two epochs of batches, each from the disk: JSON."""
  import json
  import resource
  import time

  from fmnist_jax import data
  source = Made(examples=int(sys.argv[1]))
  split = source.load().train
  order = np.asarray(data.epoch_order(0, 0, len(split), 128))
  began = time.perf_counter()
  with open(forget(source.examples), 'rb', buffering=0) as file:
    while file.read(1 << 22):
      pass
  found = {'disk': len(split) / (time.perf_counter() - began)}
  for name, prepare in (('cold', lambda: forget(source.examples)), ('warm', lambda: None)):
    prepare()
    began = time.perf_counter()
    with data.stream(split, order, 0, 42, lambda arrays: arrays) as chunks:
      count = sum(labels.size for _, labels in chunks)
    found[name] = count / (time.perf_counter() - began)
  found['peak'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps(found))


if __name__ == '__main__':
  main()
