"""Decoded images kept in array files, verified by SHA-256 and mapped into memory.

What a data set comes in (records of TFDS, a folder of pictures) is decoded once, into
`<split>-images.npy` and `<split>-labels.npy`. Resident and streamed training both read those, and
no more of them is in memory than was asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from fmnist_jax import locks, machine
from fmnist_jax.data import mapped, sources
from fmnist_jax.data.dataset import Dataset, MemorySource, Split
from fmnist_jax.data.mapped import Chunks, MappedSource
from fmnist_jax.errors import DataError, WorkdirError
from fmnist_jax.storage import files

SPLITS = ('train', 'test')
ARRAYS = tuple(f'{split}-{kind}' for split in SPLITS for kind in ('images', 'labels'))
CHUNK = 4096  # Examples decoded at once.
_FORM = {'made_of': str, 'sha256': dict.fromkeys(ARRAYS, str)}


class DamagedError(Exception):
  """What a set was to be decoded from is damaged."""


class Content(NamedTuple):
  """What array files are made of.

  Attributes:
    splits: 'train' and 'test', in this order, each decoded by a call.
    sha256: what the arrays must hash to, by their names; empty where nobody knows.
  """
  splits: Mapping[str, Callable[[], Chunks]]
  sha256: Mapping[str, str]


class Kept:
  """The decoded arrays of a data set: read from where they are kept, or made and kept.

  Where they cannot be kept (a full or read-only disk), they are held in memory instead.

  Attributes:
    folder: where they are kept.
  """

  def __init__(self, name: str, folder: str, made_of: str,
               contents: Callable[[], Iterator[Content]], known: Mapping[str, str] | None = None):
    """Nothing is read yet.

    Args:
      name: of the set, for people.
      folder: a name for its arrays, of its own.
      made_of: what they are made of, in words or a digest; those made of something else are old.
      contents: gives what to make them of; and, where that turns out to be damaged, what else.
      known: array -> its published SHA-256; none by default.
    """
    self._name, self._made_of, self._contents = name, made_of, contents
    self.folder = sources.tfds_folder() / 'fmnist_jax_arrays' / folder
    self._known = known or {}
    self._sha256: dict[str, str] = {}
    self._held: dict[str, MemorySource] | None = None
    self._opened: dict[str, MappedSource] = {}

  def dataset(self, class_names: Sequence[str], *, names: Sequence[str] = ARRAYS,
              sha256: Mapping[str, str] | None = None, synthetic: bool = False) -> Dataset:
    """The data set; its test split is read when it is asked for.

    Args:
      class_names: by label.
      names: what its hashes are called, in the order of `ARRAYS`.
      sha256: further hashes that tell it from others.
      synthetic: see `Dataset`.

    Raises:
      DataUnavailable: when there are no good arrays and nothing to make them of.
      DataError: when what they are made of is wrong.
    """
    train, noted = self.open('train'), self._sha256
    hashes = dict(zip(names, (noted[array] for array in ARRAYS)))

    def open_test() -> Split:
      test = self.open('test')
      if self._sha256 != noted:
        raise DataError(f'{self._name} has changed since it was trained on, and its test images '
                        'with it; put back what was there, or train again.')
      return Split.of(test, test.labels)

    return Dataset(self._name, tuple(class_names), Split.of(train, train.labels), open_test,
                   hashes | dict(sha256 or {}), synthetic)

  def open(self, split: str) -> MappedSource | MemorySource:
    """Opens 'train' or 'test', every byte of it verified; see `dataset`."""
    for _ in range(2):
      if self._held is not None:
        return self._held[split]
      try:
        if split in self._opened or self.folder.is_dir():
          return self._read(split)
      except (OSError, ValueError, WorkdirError) as error:
        logging.warning('The decoded copy of %s in %s is not used (%s): making it anew.',
                        self._name, self.folder, error)
      self._make()
    raise DataError(f'The decoded copy of {self._name} in {self.folder} is damaged as soon as it '
                    'is made; check the disk.')

  def _read(self, split: str) -> MappedSource:
    """Raises OSError, ValueError or WorkdirError for arrays that are not as they should be."""
    if split not in self._opened:
      noted = files.read_json(self.folder / 'arrays.json', _FORM, sealed=True)
      if noted['made_of'] != self._made_of:
        raise ValueError(f'{self._name} has changed')
      self._sha256 = {**noted['sha256'], **self._known}
      # Both, unread: what another process puts there while this one trains changes nothing here.
      self._opened = {each: mapped.load(self.folder, each) for each in SPLITS}
    source = self._opened.pop(split)
    if source.sha256() != [self._sha256[f'{split}-{kind}'] for kind in ('images', 'labels')]:
      raise ValueError(f'the SHA-256 of its {split} split differs')
    return source

  def _make(self) -> None:
    try:
      self.folder.parent.mkdir(parents=True, exist_ok=True)
      with locks.locked(self.folder.with_name(f'.{self.folder.name}.lock')):
        if not self._is_whole():  # Another process may have made them meanwhile.
          self._write()
    except (OSError, WorkdirError) as error:
      logging.warning('%s cannot be kept in %s (%s): holding it in memory.', self._name,
                      self.folder, getattr(error, 'strerror', None) or error)
      self._held = self._decoded(self._hold)

  def _is_whole(self) -> bool:
    try:
      return all(self._read(split) for split in SPLITS)
    except (OSError, ValueError, WorkdirError):
      return False

  def _write(self) -> None:
    with files.fresh_folder(self.folder) as fresh:
      logging.info('Decoding %s, this once, into %s.', self._name, self.folder)
      self._decoded(functools.partial(mapped.save, fresh))
      files.write_json(fresh / 'arrays.json', {'made_of': self._made_of, 'sha256': self._sha256},
                       sealed=True)
    self._opened = {}

  def _decoded(self, put: Callable[[str, Chunks], Any]) -> dict[str, Any]:
    """Puts the first content that is not damaged where `put` does; notes its hashes."""
    for content in self._contents():
      try:
        found = {split: put(split, chunks()) for split, chunks in content.splits.items()}
      except DamagedError as error:
        logging.warning('%s', error)
        continue
      self._sha256 = dict(zip(ARRAYS, [sha for source in found.values()
                                       for sha in source.sha256()]))
      wrong = [array for array, right in {**content.sha256, **self._known}.items()
               if self._sha256[array] != right]
      if not wrong:
        return found
      logging.warning('What %s was decoded from is damaged: the SHA-256 of %s differs.',
                      self._name, ', '.join(wrong))
    raise DataError(f'Nothing that {self._name} could be decoded from is sound; fetch it again.')

  def _hold(self, split: str, chunks: Chunks) -> MemorySource:
    """Collects a split in memory, of which it may take half."""
    kept, left = [], machine.memory() // 2
    for images, labels in chunks:
      left -= images.nbytes
      if left < 0:
        raise DataError(f'The {split} split of {self._name} takes more than half of the memory '
                        f'there is; make room in {self.folder.parent}, or set TFDS_DATA_DIR.')
      kept.append((images, labels))
    images, labels = (np.concatenate(parts) for parts in zip(*kept))
    return MemorySource(images, labels.astype(np.int32))
