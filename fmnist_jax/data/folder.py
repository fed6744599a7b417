"""One's own data: a folder of pictures, in which each class has a folder.

Either `FOLDER/CLASS/...` or `FOLDER/train/CLASS/...` and `FOLDER/test/CLASS/...`; pictures may lie
deeper still. Their order, and without `test/` which tenth is set aside for testing, goes by a hash
of each picture's name: adding some moves none of the others.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from fmnist_jax import photograph
from fmnist_jax.data import decoding
from fmnist_jax.data.dataset import Dataset
from fmnist_jax.data.kept import SPLITS, Content, Kept
from fmnist_jax.data.mapped import Chunks
from fmnist_jax.errors import DataError
from fmnist_jax.storage import readback

_VERSION = '1'  # To be raised whenever pictures become other pixels.
_MOST_CLASSES = 1000
_MOST_TOLD = 100  # pictures that cannot be read, one by one
_TESTED = 10  # One picture in so many is set aside for testing.


class Picture(NamedTuple):
  """A file that should be a picture."""
  rank: bytes  # of its place in the order
  path: str
  label: int


class Listing(NamedTuple):
  """What a folder holds.

  Attributes:
    class_names: in alphabetical order.
    splits: 'train' and 'test', in the order of examples.
    digest: of all names, sizes and times of change.
  """
  class_names: list[str]
  splits: dict[str, list[Picture]]
  digest: str


def read(root: str, image_shape: tuple[int, int, int], frame: str, *, skip: bool) -> Dataset:
  """Reads a folder; what it decodes to is kept until a file in it changes.

  Args:
    root: the folder.
    image_shape: (H, W, C) that pictures become.
    frame: how, see `photograph.framed`.
    skip: whether pictures that cannot be read are left out; they are named either way.

  Raises:
    DataError: for whatever is wrong with it.
  """
  found = listing(root)
  how = (os.path.realpath(os.path.expanduser(root)), *map(str, image_shape), frame, str(skip))
  key = hashlib.sha256(b'\0'.join(map(os.fsencode, how))).hexdigest()[:16]
  decoder = _Decoder(root, found, image_shape, frame, skip)
  kept = Kept(root, f'folder-{key}', f'{_VERSION}: {found.digest}', decoder.contents)
  names = hashlib.sha256('\0'.join(found.class_names).encode(errors='surrogateescape'))
  dataset = kept.dataset(found.class_names, sha256={'class_names': names.hexdigest()})
  if skip:
    _check_classes(root, found.class_names, dataset.train.labels)
  return dataset


def listing(root: str) -> Listing:
  """What is in a folder; raises DataError when that is no data set."""
  place = os.path.expanduser(root)
  try:
    inside = _folders(place)
    split = {name: _folders(os.path.join(place, name)) for name in SPLITS if name in inside}
  except OSError as error:
    raise DataError(f'{error.filename} cannot be read: {error.strerror}; data.name must be that of '
                    'a folder of pictures.') from error
  if inside == sorted(SPLITS) and not any(split.values()):
    raise DataError(f'{root} has train/ and test/, but no folders of classes in them; put the '
                    'pictures of each class into a folder there.')
  if not any(split.values()):
    names, parts = inside, {'': inside}
  else:
    if inside != sorted(SPLITS) or not split['train']:
      others = [name for name in inside if name not in SPLITS]
      places = '/ and '.join(filter(split.get, split))
      raise DataError(f'{root} has folders of classes in {places}/, '
                      f'{f"and {others[0]!r} beside them" if others else "but no others"}; it must '
                      'have train/ and test/ and nothing else, or a folder for each class.')
    names, parts = split['train'], split
    strange = sorted({*split['test']} - {*names})
    if strange:
      raise DataError(f'{root} has the class {strange[0]!r} in test/, but not in train/; a class '
                      'must have pictures to train on.')
  if not 2 <= len(names) <= _MOST_CLASSES:
    raise DataError(f'{root} has {len(names):,} folders of classes; there must be 2 at least and '
                    f'{_MOST_CLASSES:,} at most, each holding the pictures of a class.')
  digest = hashlib.sha256()
  splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
  for part, classes in parts.items():
    for name in classes:
      _list(place, os.path.join(part, name), names.index(name), splits, digest)
  _check_classes(root, names, np.array([picture.label for picture in splits['train']], np.int32))
  absent = [name for label, name in enumerate(names)
            if label not in {picture.label for picture in splits['test']}]
  if len(absent) == len(names):
    raise DataError(f'{root} has no picture to test on (without test/, one in ten is set aside by '
                    'its name); give it more.')
  if absent:
    logging.warning('%d of the %d classes of %s have no picture to test on: %s.', len(absent),
                    len(names), root, _some(absent))
  return Listing(names, {name: sorted(pictures) for name, pictures in splits.items()},
                 digest.hexdigest())


def _folders(place: str) -> list[str]:
  with os.scandir(place) as entries:
    return sorted(entry.name for entry in entries
                  if entry.is_dir() and not _is_of_the_system(entry.name))


def _is_of_the_system(name: str) -> bool:
  return name.startswith('.') or name in ('__MACOSX', 'Thumbs.db', 'desktop.ini')


def _list(root: str, part: str, label: int, splits: dict[str, list[Picture]],
          digest: hashlib._Hash) -> None:
  """Adds the pictures below a class's folder."""
  def unreadable(error: OSError) -> None:
    raise DataError(f'{error.filename} cannot be read: {error.strerror}; put it right, or remove '
                    'it.') from error
  others: list[str] = []
  for place, inside, names in os.walk(os.path.join(root, part), onerror=unreadable):
    inside[:] = sorted(name for name in inside if not _is_of_the_system(name))
    for file in sorted(names):
      path = os.path.join(place, file)
      if not file.lower().endswith(photograph.SUFFIXES):
        others += [path] * (not _is_of_the_system(file))
        continue
      try:
        status = os.stat(path)
      except OSError as error:
        unreadable(error)
      name = os.fsencode(os.path.relpath(path, root))
      digest.update(b'%s\0%d %d %d\0' % (name, status.st_size, status.st_mtime_ns,
                                         status.st_ctime_ns))
      rank = hashlib.sha256(name).digest()
      split = part.split(os.sep)[0] if os.sep in part else (
          'test' if rank[0] * 256 + rank[1] < 65536 // _TESTED else 'train')
      splits[split].append(Picture(rank, path, label))
  if others:
    logging.warning('%d files of %s are none of %s and are left out: %s.', len(others),
                    os.path.join(root, part), ', '.join(photograph.SUFFIXES), _some(others))


def _check_classes(root: str, names: Sequence[str], labels: np.ndarray) -> None:
  without = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
  if without.size:
    raise DataError(f'The class {names[without[0]]!r} of {root} has no picture to train on '
                    '(without test/, one in ten is set aside by its name); give it some, or remove '
                    'its folder.')


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:5]) + ' ...' * (len(names) > 5)


class _Decoder:
  """Decodes what a folder holds."""

  def __init__(self, root: str, found: Listing, image_shape: tuple[int, int, int], frame: str,
               skip: bool):
    self._root, self._splits, self._skip = root, found.splits, skip
    self._shape, self._frame = image_shape, frame
    self._bad: list[str] = []

  def contents(self) -> Iterator[Content]:
    """See `Kept`."""
    self._bad = []
    yield Content({split: functools.partial(self._chunks, split) for split in SPLITS}, {})

  def _chunks(self, split: str) -> Chunks:
    """Decodes a split on all cores; raises DataError after the last, where one was bad."""
    pictures, count = self._splits[split], 0
    step = decoding.chunk(self._shape)
    lots = [pictures[start:start + step] for start in range(0, len(pictures), step)]
    found = decoding.decoded(self._read, lots, len(pictures), f'{self._root} ({split})')
    for lot, images in zip(lots, found):
      for image in images:
        if isinstance(image, DataError):
          self._tell(image)
      good = [i for i, image in enumerate(images) if not isinstance(image, DataError)]
      if good:
        count += len(good)
        yield np.stack([images[i] for i in good]), np.array([lot[i].label for i in good])
    told = f'{len(self._bad):,} of the pictures in {self._root} cannot be read'
    if not count:
      raise DataError(f'{told}, which leaves none of {split}, such as this: {self._bad[0]}')
    if split == SPLITS[-1] and self._bad:
      if not self._skip:
        raise DataError(f'{told}, such as this: {self._bad[0].removesuffix(".")}; remove them, or '
                        'leave them out with --config.data.damaged=skip.')
      logging.warning('%s and are left out.', told)

  def _tell(self, error: DataError) -> None:
    self._bad.append(str(error))
    if len(self._bad) <= _MOST_TOLD:
      logging.warning('%s', error)

  def _read(self, picture: Picture) -> np.ndarray | DataError:
    """uint8 [H, W, C], or why there is none."""
    try:
      with readback.open_regular(picture.path) as file:
        if not os.fstat(file.fileno()).st_size:
          raise DataError(f'{picture.path} is empty.')
        return photograph.read(file, self._shape, picture.path,
                               functools.partial(photograph.framed, frame=self._frame))
    except DataError as error:
      return DataError(str(error))  # Without the picture that its traceback holds.
    except OSError as error:
      return DataError(f'{picture.path} cannot be read: {error.strerror}.')
