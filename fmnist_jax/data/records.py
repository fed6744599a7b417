"""Prepared examples read back through TFDS, in bulk.

Decoding 60,000 records one by one through TFDS takes seconds. Each record is a small
`tf.train.Example` protocol buffer of an image and a label, so all records have the same length
and, but for the order of the two features, the same layout: they are read through TFDS as raw
bytes, compared with the two layouts, and cut out as arrays. A record of any other layout goes
through TFDS's own decoder.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fmnist_jax.errors import DataError

CHUNK = 8192  # Examples read at once where the whole split is wanted.


def _field(number: int, content: bytes) -> bytes:
  """A length-delimited protocol buffer field."""
  size, length = len(content), bytearray()
  while size > 127:
    length.append(size & 127 | 128)
    size >>= 7
  return bytes([number << 3 | 2, *length, size]) + content


@functools.lru_cache
def _layouts(image_bytes: int) -> tuple[tuple[np.ndarray, np.ndarray, int, int], ...]:
  """For each order of the features: a record, where it is constant, where image and label start.

  The layout is that of tensorflow/core/example/example.proto; a label below 128 is one byte.
  """
  image = _field(1, _field(1, b'image') + _field(2, _field(1, _field(1, bytes(image_bytes)))))
  label = _field(1, _field(1, b'label') + _field(2, _field(3, _field(1, bytes(1)))))
  layouts = []
  for features in ((image, label), (label, image)):
    record = np.frombuffer(_field(1, b''.join(features)), np.uint8)
    outer = len(record) - len(image) - len(label)
    ends = outer + np.cumsum([len(feature) for feature in features])
    image_end, label_end = (ends[features.index(feature)] for feature in (image, label))
    constant = np.ones(len(record), bool)
    constant[image_end - image_bytes:image_end] = False
    constant[label_end - 1] = False
    layouts.append((record, np.flatnonzero(constant), image_end - image_bytes, label_end - 1))
  return tuple(layouts)


def parse(records: Sequence[bytes], shape: tuple[int, int, int],
          decode: Any) -> tuple[np.ndarray, np.ndarray]:
  """Takes serialised examples apart.

  Args:
    records: serialised `tf.train.Example`s with features `image` (bytes) and `label`.
    shape: of an image: height, width, channels.
    decode: TFDS's decoder of one record, for records of an unusual layout.

  Returns:
    Images uint8 [N, H, W, C] and labels int32 [N].
  """
  size = math.prod(shape)
  images, labels = np.empty((len(records), size), np.uint8), np.empty(len(records), np.int32)
  left = np.ones(len(records), bool)
  length = len(_layouts(size)[0][0])
  if all(len(record) == length for record in records):
    rows = np.frombuffer(b''.join(records), np.uint8).reshape(len(records), length)
    for record, constant, image, label in _layouts(size):
      match = (rows[:, constant] == record[constant]).all(axis=1) & (rows[:, label] < 128)
      # Assigning everything is a plain copy; assigning a selection is not.
      where = slice(None) if match.all() else match
      images[where] = rows[where, image:image + size]
      labels[where] = rows[where, label]
      left &= ~match
      if not left.any():
        break
  for i in np.flatnonzero(left).tolist():
    example = decode(records[i])
    images[i], labels[i] = example['image'].reshape(-1), example['label']
  return images.reshape(-1, *shape), labels


class RecordSource:
  """One split of a prepared data set: random access that reads only the records asked for.

  Attributes:
    shape: of an image: height, width, channels.
  """

  def __init__(self, data_source: Any, decode: Any, shape: tuple[int, int, int], folder: str):
    """Wraps a TFDS data source of raw bytes in a folder and TFDS's decoder of one record."""
    self._data_source, self._decode, self.shape = data_source, decode, shape
    self._folder = folder
    self._lock = threading.Lock()  # One reader of a file is not meant for two threads.

  def __len__(self) -> int:
    return len(self._data_source)

  def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, H, W, C] and labels int32 [n] of the examples at `indices` [n].

    Raises:
      DataError: when the files cannot be read, or no longer hold what they should.
    """
    try:
      with self._lock:
        found = self._data_source.__getitems__(np.asarray(indices).tolist())
      return parse(found, self.shape, self._decode)
    except Exception as error:  # array_record and protobuf raise what they please.
      reason = str(error).split('\n', maxsplit=1)[0] or type(error).__name__
      raise DataError(f'The prepared data in {self._folder} cannot be read ({reason}); remove that '
                      'folder, and it is prepared anew.') from error

  def scan(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The whole split in order, `CHUNK` examples at a time."""
    for start in range(0, len(self), CHUNK):
      yield self.fetch(np.arange(start, min(start + CHUNK, len(self))))
