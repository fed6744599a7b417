"""What a data set is to the rest of the library: splits that can be read at random."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fmnist_jax.data import idx, splits
from fmnist_jax.errors import DataError, is_tame


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

  def sha256(self) -> list[str]:
    """Of images and labels, each as an IDX file would hold them, in hex."""
    return [idx.sha256(self.images), idx.sha256(idx.labels_array(self.labels))]


class Split:
  """Some examples of a source, in a fixed order.

  Attributes:
    labels: int32 [N]; see also `labelled`.
    shape: of an image: height, width, channels.
  """

  def __init__(self, source: Source, indices: np.ndarray, labels: np.ndarray):
    """Takes the examples at `indices` [N] of `source`, whose labels are `labels` [N]."""
    self._source, self._indices, self.labels = source, indices, labels
    self.shape = source.shape

  @classmethod
  def of(cls, source: Source, labels: np.ndarray) -> Split:
    """A whole source, whose labels are `labels` [N]."""
    return cls(source, np.arange(len(source)), labels)

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

  def labelled(self, labels: np.ndarray) -> Split:
    """The same examples with other labels: int32 [N], or class probabilities, float32 [N, K]."""
    return Split(self._source, self._indices, labels)

  def first(self, count: int) -> Split:
    """The first examples; 0: all."""
    return self.subset(np.arange(min(count or len(self), len(self))))


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set: as a source loads it, and once dealt out by `pipeline.deal`.

  Attributes:
    name: as people call it.
    class_names: by label.
    train: to be trained on; validation examples are among them until it is dealt out.
    open_test: reads the test split.
    sha256: file or array -> SHA-256 of its unpacked content, in hex: by that a run knows its data.
    synthetic: whether it is drawn, not photographed.
    mirrored_alike: whether an image seen in a mirror is still of its class, as far as is known.
    validation: stratified, the same for every seed; empty until it is dealt out.
    clean_train: up to 5,000 examples of `train`, stratified, to be measured without
      augmentation and dropout; likewise.
  """
  name: str
  class_names: tuple[str, ...]
  train: Split
  open_test: Callable[[], Split]
  sha256: Mapping[str, str]
  synthetic: bool = False
  mirrored_alike: bool = True
  validation: Split | None = None
  clean_train: Split | None = None

  def __post_init__(self) -> None:
    """Raises DataError for names that nobody could tell apart, or that a terminal would obey."""
    seen: set[str] = set()
    for name in (self.name, *self.class_names):
      if not is_tame(name):
        raise DataError(f'The data set or class {name!r} has control characters in its name; '
                        'rename it.')
    for name in self.class_names:
      if name in seen:
        raise DataError(f'{self.name} has two classes of the name {name!r}; rename one.')
      seen.add(name)

  @classmethod
  def of_arrays(cls, name: str, images: Any, labels: Any, test_images: Any = None,
                test_labels: Any = None, class_names: Any = None, *,
                sha256: Mapping[str, str] | None = None, synthetic: bool = False) -> Dataset:
    """A data set of arrays in memory.

    Args:
      name: as people call it.
      images: uint8 [N, H, W] or [N, H, W, C].
      labels: integers [N], 0 to K - 1.
      test_images: like `images`; None: a tenth of the examples, the same every time and
        stratified, is set aside.
      test_labels: likewise.
      class_names: K strings; None: numbers.
      sha256: see the class; None: of the arrays.
      synthetic: see the class.

    Raises:
      DataError: for whatever is wrong with them.
    """
    if (test_images is None) != (test_labels is None):
      raise DataError(f'{name} has one of test_images and test_labels, but not the other; give '
                      'both or neither.')
    images, labels = _pair(name, images, labels, '')
    if sha256 is None:
      sha256 = {'images': _digest(images), 'labels': _digest(labels)}
      if test_images is not None:
        sha256 |= {'test_images': _digest(np.asarray(test_images)),
                   'test_labels': _digest(np.asarray(test_labels))}
    if test_images is not None:
      test_images, test_labels = _pair(name, test_images, test_labels, 'test_')
      if test_images.shape[1:] != images.shape[1:]:
        raise DataError(f'{name}: test_images are {test_images.shape[1:]}, but images are '
                        f'{images.shape[1:]}; make them alike.')
    else:
      if len(labels) < 2:
        raise DataError(f'{name} has one image; there must be two at least, one to train on and '
                        'one to test on.')
      held = splits.stratified(labels, max(len(labels) // 10, 1), splits.TEST)
      test_images, test_labels = images[held], labels[held]
      kept = np.setdiff1d(np.arange(len(labels)), held)
      images, labels = images[kept], labels[kept]
    names = _class_names(name, class_names, labels, test_labels)
    test = Split.of(MemorySource(test_images, test_labels), test_labels)
    return cls(name, names, Split.of(MemorySource(images, labels), labels), lambda: test, sha256,
               synthetic)

  @property
  def num_classes(self) -> int:
    """How many classes there are."""
    return len(self.class_names)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width, channels."""
    return self.train.shape

  @property
  def train_bytes(self) -> int:
    """Of the training images."""
    return len(self.train) * math.prod(self.image_shape)

  @functools.cached_property
  def test(self) -> Split:
    """The test split, which is read when it is first asked for.

    Raises:
      DataError: when it cannot be read.
    """
    return self.open_test()


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _pair(name: str, images: Any, labels: Any, prefix: str) -> tuple[np.ndarray, np.ndarray]:
  images, labels = np.asarray(images), np.asarray(labels)
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise DataError(f'{name}: {prefix}images are {images.dtype} {list(images.shape)}; they must be '
                    'uint8 [N, H, W] or [N, H, W, C], 0 to 255.')
  if labels.ndim == 2 and labels.shape[1] == 1:  # As in Keras's CIFAR.
    labels = labels[:, 0]
  if labels.dtype.kind not in 'iu' or labels.ndim != 1:
    raise DataError(f'{name}: {prefix}labels are {labels.dtype} {list(labels.shape)}; they must be '
                    'integers [N].')
  if len(images) != len(labels):
    raise DataError(f'{name}: there are {len(images):,} {prefix}images, but {len(labels):,} '
                    f'{prefix}labels; give one label an image.')
  if not images.size:
    raise DataError(f'{name}: {prefix}images is empty, {list(images.shape)}; give it some.')
  if labels.min() < 0 or labels.max() >= 1000:
    raise DataError(f'{name}: {prefix}labels go from {labels.min()} to {labels.max()}; they must '
                    'count the classes from 0, and be below 1,000.')
  return images[..., None] if images.ndim == 3 else images, labels.astype(np.int32)


def _class_names(name: str, names: Sequence[Any] | np.ndarray | None, labels: np.ndarray,
                 test_labels: np.ndarray) -> tuple[str, ...]:
  present = np.unique(labels)
  classes = int(max(labels.max(), test_labels.max())) + 1
  if names is not None:
    names = np.asarray(names)
    if names.ndim != 1 or names.dtype.kind not in 'US' or len(names) < classes:
      raise DataError(f'{name}: class_names is {names.dtype} {list(names.shape)}; it must hold one '
                      f'string for each of the {classes} classes.')
    classes = len(names)
  if classes < 2:
    raise DataError(f'{name}: every label is 0; there must be two classes at least.')
  absent = np.setdiff1d(np.arange(classes), present)
  if absent.size:
    raise DataError(f'{name}: class {absent[0]} has no training example, although labels count up '
                    f'to {classes - 1}; number the classes without a gap.')
  if names is None:
    return tuple(str(i) for i in range(classes))
  # Half characters, which numpy allows, can be neither printed nor drawn.
  return tuple(entry.decode('utf-8', 'replace') if isinstance(entry, bytes)
               else entry.encode('utf-8', 'replace').decode() for entry in names.tolist())
