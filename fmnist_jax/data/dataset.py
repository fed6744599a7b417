"""What a data set is to the rest of the library: splits that can be read at random."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np


class Source(Protocol):
  """Examples that can be read at random.

  Attributes:
    shape: of an image: height, width, channels.
  """
  shape: tuple[int, int, int]

  def __len__(self) -> int: ...

  def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, H, W, C] and labels int32 [n] of the examples at `indices` [n]."""
    ...


class MemorySource:
  """Examples held in memory: images uint8 [N, H, W, C] and labels int32 [N]."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self.images, self.labels = images, labels
    self.shape: tuple[int, int, int] = images.shape[1:]

  def __len__(self) -> int:
    return len(self.labels)

  def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `Source`."""
    return self.images[indices], self.labels[indices]


class Split:
  """Some examples of a source, in a fixed order.

  Attributes:
    labels: int32 [N].
  """

  def __init__(self, source: Source, indices: np.ndarray, labels: np.ndarray):
    """Takes the examples at `indices` [N] of `source`, whose labels are `labels` [N]."""
    self._source, self._indices, self.labels = source, indices, labels

  def __len__(self) -> int:
    return len(self._indices)

  def fetch(self, indices: np.ndarray) -> np.ndarray:
    """Reads the images of the examples at `indices` [n] of the split: uint8 [n, H, W, C]."""
    return self._source.fetch(self._indices[np.asarray(indices)])[0]

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 [N, H, W, C], and labels, int32 [N]."""
    return self._source.fetch(self._indices)[0], self.labels

  def subset(self, indices: np.ndarray) -> Split:
    """The examples at `indices` [n] of this split."""
    return Split(self._source, self._indices[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set, dealt out.

  Attributes:
    name: as the config calls it.
    class_names: by label.
    synthetic: whether it is drawn, not photographed.
    sha256: file -> SHA-256 of its unpacked content, in hex.
    image_shape: height, width, channels.
    resident: whether the splits are to be kept on the device, rather than streamed.
    train: what is trained on.
    validation: class-balanced, the same for every seed; may be empty.
    clean_train: up to 5,000 examples of `train`, class-balanced, to be measured without
      augmentation and dropout.
    open_test: reads the test split.
  """
  name: str
  class_names: tuple[str, ...]
  synthetic: bool
  sha256: dict[str, str]
  image_shape: tuple[int, int, int]
  resident: bool
  train: Split
  validation: Split
  clean_train: Split
  open_test: Callable[[], Split]

  @property
  def num_classes(self) -> int:
    """How many classes there are."""
    return len(self.class_names)

  @functools.cached_property
  def test(self) -> Split:
    """The test split, which is read when it is first asked for.

    Raises:
      DataError: when it cannot be read.
    """
    return self.open_test()
