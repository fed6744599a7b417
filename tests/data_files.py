"""A small published data set for tests, and folders of its files."""

import dataclasses
import gzip
import hashlib

import numpy as np

from fmnist_jax.data import formats, idx, sources

EXAMPLES = (60, 20)


def arrays(seed):
  """Four arrays like those of `formats.FILES`, small; every class is there."""
  random = np.random.default_rng(seed)
  result = []
  for examples in EXAMPLES:
    result.append(random.integers(0, 256, (examples, 28, 28), np.uint8))
    result.append((np.arange(examples) % 10).astype(np.uint8))
  return result


def packed(array):
  """The .gz file of an array, the same bytes each time."""
  return gzip.compress(idx.header(array.shape) + array.tobytes(), mtime=0)


def write(folder, some_arrays, pack=packed, suffix='.gz'):
  """Writes the four files into a folder, which is made; returns it."""
  folder.mkdir(parents=True, exist_ok=True)
  for file, array in zip(formats.FILES, some_arrays):
    (folder / f'{file}{suffix}').write_bytes(pack(array))
  return folder


def publish(monkeypatch, tmp_path):
  """Puts small sets in place of the published ones, and empty caches in place of the user's.

  Returns:
    name -> its four arrays.
  """
  published = {}
  for seed, name in enumerate(('fashion_mnist', 'mnist')):
    published[name] = arrays(seed)
    files = [packed(array) for array in published[name]]
    monkeypatch.setitem(sources.ORIGINALS, name, dataclasses.replace(
        sources.ORIGINALS[name], mirrors=(),
        sha256=tuple(idx.sha256(array) for array in published[name]),
        packed_sha256=tuple(hashlib.sha256(file).hexdigest() for file in files),
        packed_bytes=tuple(len(file) for file in files)))
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  for variable in (sources.ENVIRONMENT, 'KERAS_HOME'):
    monkeypatch.delenv(variable, raising=False)
  (tmp_path / 'home').mkdir(exist_ok=True)
  monkeypatch.chdir(tmp_path)  # torchvision's usual folder is relative.
  return published
