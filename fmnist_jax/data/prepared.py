"""Opens the prepared copy of a set: made where it is missing, made anew where it is damaged."""

from __future__ import annotations

import math

import numpy as np
from absl import logging

from fmnist_jax.data import builders, sources
from fmnist_jax.data.dataset import MemorySource, Source
from fmnist_jax.errors import DataError


class Prepared:
  """Fashion-MNIST, MNIST or the drawn garments, read back through TFDS.

  Where no copy can be prepared (a full or read-only disk), the set is read into memory instead.

  Attributes:
    class_names: by label.
    bytes: of the training images.
  """

  def __init__(self, name: str, files: sources.Files | None, train_examples: int,
               test_examples: int):
    """See `builders.builder`; nothing is read yet."""
    self._make = lambda: builders.builder(name, files, train_examples, test_examples)
    self._folder = builders.folder(name, train_examples, test_examples)
    self._name = name
    self._usable = True
    self.class_names = builders.BUILDERS[name].CLASS_NAMES
    self.bytes = train_examples * math.prod(builders.SHAPE)

  def open(self, split: str, in_memory: bool) -> tuple[Source, np.ndarray]:
    """Opens 'train' or 'test', having verified every example of it.

    Args:
      split: which.
      in_memory: whether to keep the images, or to read them again when they are asked for.

    Returns:
      The source and its labels, int32 [N].

    Raises:
      DataUnavailable: when there is no good copy and nothing to prepare one from.
      DataError: when the original files turn out to be damaged.
    """
    for _ in range(2):
      self._prepare()
      if not self._usable:
        break
      try:
        return self._read(split, in_memory)
      except Exception as error:  # TFDS and array_record raise what they please.
        logging.warning('The prepared copy of %s in %s is damaged (%s): preparing it anew.',
                        self._name, self._folder, _first_line(error))
        self._discard()
    images, labels = (np.concatenate(parts) for parts in zip(*self._make().chunks(split)))
    labels = labels.astype(np.int32)
    return MemorySource(images, labels), labels

  def sha256(self) -> dict[str, str]:
    """File -> SHA-256, in hex, of the unpacked IDX files that hold the set's content."""
    builder = self._make()
    hashes: list[str] = []
    for split in builders.SPLITS:
      hashes += (builder.published_sha256(split)
                 or (builder.recorded_sha256(split) if self._usable else builder.digest(split)))
    return dict(zip(sources.FILES, hashes))

  def _prepare(self) -> None:
    try:
      builders.prepare(self._folder, self._make)
    except DataError:
      raise
    except Exception as error:  # A full or read-only disk, however TFDS or C++ tell it.
      logging.warning('%s cannot be prepared in %s (%s): reading it without a prepared copy.',
                      self._name, self._folder, _first_line(error))
      self._usable = False

  def _discard(self) -> None:
    try:
      builders.discard(self._folder)
    except OSError as error:
      logging.warning('It cannot be removed (%s): reading %s without it.', _first_line(error),
                      self._name)
      self._usable = False

  def _read(self, split: str, in_memory: bool) -> tuple[Source, np.ndarray]:
    builder = self._make()
    source = builders.source(builder, split)
    if len(source) != builder.examples(split):
      raise DataError(f'it has {len(source):,} examples of {builder.examples(split):,}')
    digest = builders.Digest(len(source))
    kept, labels = [], []
    for images, some_labels in source.scan():
      digest.update(images, some_labels)
      labels.append(some_labels)
      if in_memory:
        kept.append(images)
    right = builder.published_sha256(split) or builder.recorded_sha256(split)
    if digest.hexdigests() != right:
      raise DataError(f'the SHA-256 of its {split} split differs')
    all_labels = np.concatenate(labels)
    if in_memory:
      return MemorySource(np.concatenate(kept), all_labels), all_labels
    return source, all_labels


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).split('\n', maxsplit=1)[0]
