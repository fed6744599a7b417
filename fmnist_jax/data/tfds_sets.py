"""Any set of labelled images that TFDS has prepared on this machine as array_record files."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from fmnist_jax import photograph
from fmnist_jax.data import decoding, sources
from fmnist_jax.data.dataset import Dataset
from fmnist_jax.data.kept import SPLITS, Content, DamagedError, Kept
from fmnist_jax.data.mapped import Chunks
from fmnist_jax.errors import DataError, first_line

# 'tfds:NAME' or 'tfds:NAME:CONFIG'.
NAME = re.compile(r'tfds:(\w+)(?::([\w.+-]+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_TESTED = 10  # Where there is no test split, one example in so many is set aside.


def read(name: str, image_shape: tuple[int, int, int], frame: str) -> Dataset:
  """Reads a set; what it decodes to is kept.

  Args:
    name: 'tfds:NAME' or 'tfds:NAME:CONFIG'.
    image_shape: (H, W, C) that images become where they are not all of one shape.
    frame: how, see `photograph.framed`.

  Raises:
    DataError: when it is not there, or is no set of labelled images.
  """
  folder = _folder(name)
  import tensorflow_datasets as tfds  # Takes a while.
  try:
    builder = tfds.builder_from_directory(str(folder))
    file_format = builder.info.file_format
  except Exception as error:  # TFDS raises what it pleases.
    raise DataError(f'{name} in {folder} cannot be opened ({first_line(error)}); prepare it again.'
                    ) from error
  if file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise DataError(f'{name} in {folder} is not of array_record files, which alone can be read '
                    "without TensorFlow; prepare it with file_format='array_record'.")
  image, label = _keys(name, builder.info, tfds)
  shape = builder.info.features[image].shape
  if None not in shape and shape[2] in (1, 3):
    image_shape = shape
  decoder = _Decoder(name, builder, (image, label), image_shape, frame)
  how = f'{"x".join(map(str, image_shape))}-{frame}'
  kept = Kept(name, f'{name.replace(":", "-")}-{folder.name}-{how}', _digest(folder),
              decoder.contents)
  return kept.dataset(builder.info.features[label].names)


def _folder(name: str) -> pathlib.Path:
  """Where the newest version lies."""
  found = NAME.fullmatch(name)
  if found is None:
    raise DataError(f'{name!r} names no set of TFDS; it must be tfds:NAME or tfds:NAME:CONFIG.')
  place = sources.tfds_folder().joinpath(*(part for part in found.groups() if part))
  inside = [path for path in place.glob('*') if path.is_dir()]
  versions = [path for path in inside if _VERSION.fullmatch(path.name)]
  if not versions:
    configs = ', '.join(f'{name}:{path.name}' for path in sorted(inside)[:5])
    raise DataError(f'TFDS has not prepared {name}: {place} holds no version of it'
                    f'{f"; there is {configs}" if inside else ""}; prepare it with '
                    "tfds.builder(..., file_format='array_record').download_and_prepare().")
  return max(versions, key=lambda path: tuple(map(int, path.name.split('.'))))


def _keys(name: str, info: Any, tfds: Any) -> tuple[str, str]:
  """What image and label are called."""
  features = info.features
  kinds = (tfds.features.Image, tfds.features.ClassLabel)
  found = [[key for key, feature in features.items() if isinstance(feature, kind)]
           for kind in kinds] if isinstance(features, tfds.features.FeaturesDict) else [[], []]
  supervised = info.supervised_keys
  if supervised and all(key in keys for key, keys in zip(supervised, found)):
    return supervised[0], supervised[1]
  if [len(keys) for keys in found] != [1, 1]:
    raise DataError(f'{name} has {len(found[0])} images and {len(found[1])} class labels an '
                    'example; there must be one of each.')
  return found[0][0], found[1][0]


def _digest(folder: pathlib.Path) -> str:
  """Of names, sizes and times of change of the files."""
  digest = hashlib.sha256()
  for path in sorted(folder.iterdir()):
    status = path.stat()
    digest.update(os.fsencode(f'{path.name}\0{status.st_size} {status.st_mtime_ns} '
                              f'{status.st_ctime_ns}\0'))
  return digest.hexdigest()


class _Decoder:
  """Decodes what TFDS prepared."""

  def __init__(self, name: str, builder: Any, keys: tuple[str, str],
               image_shape: tuple[int, int, int], frame: str):
    self._name, self._builder, self._shape = name, builder, image_shape
    self._image, self._label = keys
    self._prepare = functools.partial(photograph.framed, frame=frame)

  def contents(self) -> Iterator[Content]:
    """See `Kept`."""
    splits = {split: info.num_examples for split, info in self._builder.info.splits.items()}
    if 'train' not in splits:
      raise DataError(f'{self._name} has no split train, but {", ".join(splits) or "none"}.')
    test = next((split for split in ('test', 'validation') if split in splits), None)
    train = np.arange(splits['train'])
    set_aside = (train % _TESTED == _TESTED - 1) & (test is None)
    parts = {'train': ('train', train[~set_aside]),
             'test': (test, np.arange(splits[test])) if test else ('train', train[set_aside])}
    if test != 'test':
      logging.info('%s has no test split: %s takes its place.', self._name,
                   test or 'one training example in ten')
    for split, (_, indices) in parts.items():
      if not indices.size:
        raise DataError(f'{self._name} has no example in its split {split}; it must have some (of '
                        'a set without a test split, every tenth one for training is set aside).')
    yield Content({split: functools.partial(self._labelled, *parts[split]) for split in SPLITS}, {})

  def _labelled(self, split: str, indices: np.ndarray) -> Chunks:
    """The examples at `indices` of a split of TFDS's."""
    for images, labels in self._chunks(split, indices):
      if labels.min() < 0:  # As those of a competition's test split are.
        raise DataError(f'{self._name} has examples of no class in its split {split}; all '
                        'must have one.')
      yield images, labels

  def _chunks(self, split: str, indices: np.ndarray) -> Chunks:
    import tensorflow_datasets as tfds
    step = decoding.chunk(self._shape)
    try:
      source = self._builder.as_data_source(
          split, decoders={self._image: tfds.decode.SkipDecoding()})
      lots = (source.__getitems__(indices[start:start + step].tolist())
              for start in range(0, len(indices), step))
      for found in decoding.decoded(self._decode, lots, len(indices), self._name):
        images, labels = zip(*found)
        yield np.stack(images), np.array(labels)
    except Exception as error:  # TFDS and array_record raise what they please.
      raise DamagedError(f'What TFDS prepared of {self._name} cannot be read '
                         f'({first_line(error)}).') from error

  def _decode(self, example: Any) -> tuple[np.ndarray, int]:
    return photograph.read(io.BytesIO(example[self._image]), self._shape, 'an image',
                           self._prepare), int(example[self._label])
