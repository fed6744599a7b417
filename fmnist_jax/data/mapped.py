"""Examples in array files, `<split>-images.npy` and `<split>-labels.npy`, mapped into memory."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import mmap
import os
import pathlib
import weakref
from collections.abc import Iterator

import numpy as np

from fmnist_jax.data import idx
from fmnist_jax.errors import DataError
from fmnist_jax.storage import readback

# Images uint8 [n, H, W, C] and labels [n] of some examples, and so on to the end of a split.
Chunks = Iterator[tuple[np.ndarray, np.ndarray]]

_PIECE = 1 << 20
_ALIGNED = 64  # bytes; jax takes an array that begins at a multiple as it is, without a copy.
# Bytes of a file. Of what is mapped all that is touched, and much around it, counts as memory of
# this process.
_MOST_MAPPED = 1 << 30


class MappedSource:
  """Examples in array files: random access that reads only those asked for.

  Attributes:
    shape: of an image: height, width, channels.
  """

  def __init__(self, images: _ArrayFile, labels: _ArrayFile):
    self._files = images, labels
    height, width, channels = images.array.shape[1:]
    self.shape = height, width, channels

  def __len__(self) -> int:
    return len(self._files[1].array)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int32 [N]."""
    return self._files[1].array.astype(np.int32)

  def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, H, W, C] and labels int32 [n] of the examples at `indices` [n].

    Raises:
      DataError: when the file is no longer what was verified.
    """
    size = len(indices) * math.prod(self.shape)
    # Not used again: jax on CPUs computes from it where it lies. Lending it out anew once nobody
    # holds it saved 1 us of the 100 that an image of 64x64x3 took to train on, and took a fifth
    # more memory.
    room = np.empty(size + _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    found = room[start:start + size].reshape(-1, *self.shape)
    self._files[0].take(np.asarray(indices), found)
    return found, self.labels[indices]

  def sha256(self) -> list[str]:
    """Of images and labels, as `Dataset.sha256` has them."""
    return [file.sha256() for file in self._files]


class _ArrayFile:
  """A .npy file of bytes or, for labels of more than 256 classes, big-endian integers."""

  def __init__(self, path: pathlib.Path):
    """Raises OSError and ValueError for what is no such file."""
    self._path = path
    with readback.open_regular(path) as file:
      shape, dtype = readback.array_header(file)
      self._start, size = file.tell(), math.prod(shape) * dtype.itemsize
      if dtype not in idx.KINDS or not size or (
          self._start + size != os.fstat(file.fileno()).st_size):
        raise ValueError(f'{path.name} does not hold what its header says')
      contents = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      self._descriptor = os.dup(file.fileno())
    weakref.finalize(self, os.close, self._descriptor)
    self._status = self._read_status()
    self.array = np.frombuffer(contents, dtype, offset=self._start).reshape(shape)

  def _read_status(self) -> tuple[int, int]:
    status = os.fstat(self._descriptor)
    return status.st_size, status.st_mtime_ns

  def sha256(self) -> str:
    """Of the IDX file that would hold the array, in hex."""
    digest = hashlib.sha256(idx.header(self.array.shape, self.array.dtype))
    at = self._start  # Read, not touched: what is mapped and touched counts as used.
    while piece := os.pread(self._descriptor, _PIECE, at):
      digest.update(piece)
      at += len(piece)
    return digest.hexdigest()

  def take(self, indices: np.ndarray, found: np.ndarray) -> None:
    """Copies entries [n] to an array [n, ...], without the interpreter's lock.

    Raises:
      DataError: when the file was written to since it was opened. To touch what was cut off would
        end the process.
    """
    if self._read_status() != self._status:
      raise DataError(f'{self._path} was changed while it was in use; run the same command again, '
                      'and it is made anew.')
    if self._status[0] <= _MOST_MAPPED:
      np.take(self.array, indices, axis=0, out=found, mode='clip')  # 'raise' would copy twice.
      return
    size = self.array[0].nbytes
    starts = (indices.astype(np.int64) * size + self._start).tolist()
    if hasattr(os, 'posix_fadvise'):
      for start in starts:  # Asked for at once, they come from a disk ten times as fast.
        os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)
    for start, entry in zip(starts, found.reshape(len(indices), size)):
      if os.preadv(self._descriptor, [entry.data], start) != size:
        raise DataError(f'{self._path} was cut short while it was in use; run the same command '
                        'again, and it is made anew.')


def load(folder: pathlib.Path, split: str) -> MappedSource:
  """Opens a split; raises OSError and ValueError for files that are not as `save` leaves them."""
  images, labels = map(_ArrayFile, _paths(folder, split))
  if images.array.dtype != np.uint8 or images.array.ndim != 4 or (
      images.array.shape[:1] != labels.array.shape):
    raise ValueError(f'the arrays of its {split} split do not fit together')
  return MappedSource(images, labels)


def save(folder: pathlib.Path, split: str, chunks: Chunks) -> MappedSource:
  """Writes a split and opens it; raises OSError, and what `chunks` raise."""
  places = _paths(folder, split)
  with open(places[0], 'xb') as images_file, open(places[1], 'xb') as labels_file:
    count, every = 0, []
    for images, labels in chunks:
      if not count:
        shape = images.shape[1:]
        _write_header(images_file, (0, *shape), np.dtype(np.uint8))
      images_file.write(np.ascontiguousarray(images).data)
      every.append(labels)
      count += len(labels)
    _write_header(images_file, (count, *shape), np.dtype(np.uint8))
    labels = idx.labels_array(np.concatenate(every))
    _write_header(labels_file, labels.shape, labels.dtype)
    labels_file.write(labels.data)
  return load(folder, split)


def _paths(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path]:
  return folder / f'{split}-images.npy', folder / f'{split}-labels.npy'


def _write_header(file: io.BufferedWriter, shape: tuple[int, ...], dtype: np.dtype) -> None:
  """At the start of the file; numpy leaves room for any length of the first axis."""
  file.seek(0)
  np.lib.format.write_array_header_1_0(
      file, {'descr': dtype.str, 'fortran_order': False, 'shape': shape})
