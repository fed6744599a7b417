"""In what files published sets come, and how a file is known to be genuine.

Nothing is used whose SHA-256 differs: people have been served digit MNIST in place of
Fashion-MNIST.
"""

from __future__ import annotations

import abc
import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Collection
from typing import Any

import numpy as np

from fmnist_jax.data import idx
from fmnist_jax.errors import DataError

FILES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte',
         't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')
_MAX_BYTES = 1 << 27  # The largest file inside has 97,843,216 bytes.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Original(abc.ABC):
  """A published data set.

  Attributes:
    title: what people call it.
    folder: what its folder is called; torchvision has names of its own.
    class_names: by label.
    files: as published.
    packed_sha256: of `files`.
    packed_bytes: their sizes.
    mirrors: addresses that the names in `files` are appended to.
    image_shape: height, width, channels.
    mirrored_alike: whether an image seen in a mirror is still of its class.
    sha256: of the unpacked arrays, where they are published too.
    licence: under which it is published; empty where that is not said.
    hub: its name on the Hugging Face hub; empty where it has none of its publishers.
  """
  title: str
  folder: str
  torchvision_folder: str
  class_names: tuple[str, ...]
  files: tuple[str, ...] = tuple(f'{file}.gz' for file in FILES)
  packed_sha256: tuple[str, ...]
  packed_bytes: tuple[int, ...]
  mirrors: tuple[str, ...]
  image_shape: tuple[int, int, int] = (28, 28, 1)
  mirrored_alike: bool = False
  sha256: tuple[str, ...] = ()
  licence: str = ''
  hub: str = ''

  @abc.abstractmethod
  def arrays(self, paths: tuple[str, ...], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split, 'train' or 'test': images uint8 [N, H, W, C] and labels int32 [N].

    Args:
      paths: of the files, which are genuine.
      split: which.
    """

  def find(self, folder: str | os.PathLike, i: int) -> str | None:
    """Where a folder has file `i`; None where it has not."""
    place = os.path.join(folder, self.files[i])
    return place if os.path.isfile(place) else None

  def check(self, i: int, path: str, others: Collection[Original]) -> None:
    """Raises DataError unless a file is file `i`; `others` are sets that it may be taken for."""
    del others
    digest = file_sha256(path)
    published = self.published(i).values()
    if digest not in published:
      raise self._wrong(path, digest, *published)

  def published(self, i: int) -> dict[int, str]:
    """Size -> SHA-256 of the files, as published, that file `i` may be."""
    return {self.packed_bytes[i]: self.packed_sha256[i]}

  def _wrong(self, path: str, found: str, *right: str) -> DataError:
    rights = ' or '.join(f'{one[:16]}...' for one in right)
    return DataError(f'{path} is not the published {self.title} file (SHA-256 {found[:16]}... in '
                     f'place of {rights}); fetch it again.')


class IdxFiles(Original):
  """Four IDX files, as MNIST has them."""

  def arrays(self, paths: tuple[str, ...], split: str) -> tuple[np.ndarray, np.ndarray]:
    """See `Original`."""
    first = 0 if split == 'train' else 2
    images, labels = (idx.read(paths[i], max_bytes=_MAX_BYTES) for i in (first, first + 1))
    return images[..., None], labels.astype(np.int32)

  def find(self, folder: str | os.PathLike, i: int) -> str | None:
    """See `Original`; packed or not."""
    place = os.path.join(folder, FILES[i])
    return super().find(folder, i) or (place if os.path.isfile(place) else None)

  def check(self, i: int, path: str, others: Collection[Original]) -> None:
    """See `Original`; cheap where it is as published, else what is inside decides."""
    if path.endswith('.gz') and file_sha256(path) == self.packed_sha256[i]:
      return
    digest = idx.sha256(idx.read(path, max_bytes=_MAX_BYTES))
    if digest in self.sha256[i:i + 1]:
      return
    for other in others:
      if digest in other.sha256:
        what = (f'{other.title}, not {self.title}' if other is not self else
                f'the file {FILES[other.sha256.index(digest)]} under another name')
        raise DataError(f'{path} is {what}; put the real {self.files[i]} there.')
    if not self.sha256:
      raise DataError(f'{path} is not {self.files[i]} as {self.title} was published, and only that '
                      'is known by its SHA-256; fetch it again.')
    raise self._wrong(path, digest, self.sha256[i])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cifar(Original):
  """An archive of records: labels, of which the last counts, then red, green and blue planes.

  The version for Python, which Keras and torchvision download, will do as well.

  Attributes:
    members: names of files inside, for each split.
    label_bytes: of a record.
    python_bytes: size of the archive for Python.
    python_sha256: of it.
  """
  image_shape: tuple[int, int, int] = (32, 32, 3)
  mirrored_alike: bool = True
  members: tuple[tuple[str, ...], tuple[str, ...]]
  label_bytes: int
  python_bytes: int
  python_sha256: str

  def find(self, folder: str | os.PathLike, i: int) -> str | None:
    """See `Original`; either version."""
    place = os.path.join(folder, self.files[i].replace('binary', 'python'))
    return super().find(folder, i) or (place if os.path.isfile(place) else None)

  def published(self, i: int) -> dict[int, str]:
    """See `Original`."""
    return super().published(i) | {self.python_bytes: self.python_sha256}

  def arrays(self, paths: tuple[str, ...], split: str) -> tuple[np.ndarray, np.ndarray]:
    """See `Original`."""
    height, width, channels = self.image_shape
    names = self.members[split == 'test']
    with tarfile.open(paths[0], 'r:gz') as archive:
      if names[0] in archive.getnames():
        content = b''.join(_member(archive, name) for name in names)
        records = np.frombuffer(content, np.uint8).reshape(
            -1, self.label_bytes + height * width * channels)
        pixels, labels = records[:, self.label_bytes:], records[:, self.label_bytes - 1]
      else:
        inside = [name.removesuffix('.bin').replace('batches-bin', 'batches-py').replace(
            'binary', 'python') for name in names]
        # Of Python 2, hence the encoding.
        batches = [_Arrays(io.BytesIO(_member(archive, name)), encoding='latin1').load()
                   for name in inside]
        kind = 'labels' if self.label_bytes == 1 else 'fine_labels'
        pixels = np.concatenate([batch['data'] for batch in batches])
        labels = np.concatenate([batch[kind] for batch in batches])
    planes = pixels.reshape(-1, channels, height, width)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emnist(Original):
  """A part of EMNIST's archive (arXiv:1702.05373), whose images lie on their sides there.

  Attributes:
    part: of the archive, such as 'letters'.
    first_label: the label of the first class.
  """
  part: str
  first_label: int

  def arrays(self, paths: tuple[str, ...], split: str) -> tuple[np.ndarray, np.ndarray]:
    """See `Original`."""
    found = []
    with zipfile.ZipFile(paths[0]) as archive:
      for kind in ('images-idx3', 'labels-idx1'):
        name = f'gzip/emnist-{self.part}-{split}-{kind}-ubyte.gz'
        content = io.BytesIO(gzip.decompress(archive.read(name)))
        found.append(idx.parse(content, f'{name} of {paths[0]}', max_bytes=_MAX_BYTES))
    images, labels = found
    return (np.ascontiguousarray(images.transpose(0, 2, 1))[..., None],
            labels.astype(np.int32) - self.first_label)


class _Arrays(pickle.Unpickler):
  """Of arrays and plain values alone: a pickle of anything else could run whatever it says."""

  def find_class(self, module: str, name: str) -> Any:
    """See `pickle`."""
    if (module.replace('._core', '.core'), name) in (
        ('numpy.core.multiarray', '_reconstruct'), ('numpy', 'ndarray'), ('numpy', 'dtype'),
        ('_codecs', 'encode')):
      return super().find_class(module, name)
    raise pickle.UnpicklingError(f'it names {module}.{name}')


def _member(archive: tarfile.TarFile, name: str) -> bytes:
  content = archive.extractfile(name)
  return content.read() if content else b''


def file_sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file as it lies there, in hex; DataError when it cannot be read."""
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror}; check its permissions.') from error
