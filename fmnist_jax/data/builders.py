"""TFDS builders without TensorFlow, and the one place that prepares and opens their data.

Data is prepared once, under `$TFDS_DATA_DIR` or `~/tensorflow_datasets`, as array_record files in
the original order, so test image i here is test image i in Keras and torchvision. Preparing holds
a lock; the finished folder appears by a rename; the SHA-256 of the content is recorded. What is
trained on are the arrays that `kept` decodes these files to, and verifies.

This module imports tensorflow_datasets, which takes a while: import it where data is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from fmnist_jax import locks
from fmnist_jax.data import idx, sources, synthetic
from fmnist_jax.data.kept import ARRAYS, CHUNK, SPLITS, Chunks, DamagedError


class _Info(tfds.core.DatasetInfo):
  """TFDS's description of a set, without looking at a bucket and leaving a folder in /tmp."""

  def initialize_from_bucket(self) -> None:
    """Does nothing."""


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Images and labels as this library keeps them; a base class, no data set itself."""
  VERSION = tfds.core.Version('1.0.0')
  CLASS_NAMES: tuple[str, ...]
  IMAGE_SHAPE: tuple[int, int, int]

  def _info(self) -> tfds.core.DatasetInfo:
    return _Info(
        builder=self,
        features=tfds.features.FeaturesDict({
            # As bytes every record has the same length; as a list of integers it would not.
            'image': tfds.features.Tensor(shape=self.IMAGE_SHAPE, dtype=np.uint8,
                                          encoding=tfds.features.Encoding.BYTES),
            'label': tfds.features.ClassLabel(names=list(self.CLASS_NAMES)),
        }),
        supervised_keys=('image', 'label'),
        metadata=tfds.core.MetadataDict(sha256={}),
        disable_shuffling=True)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # `sources` downloads: with a time limit, mirrors and one error message.
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    examples, chunks = self.chunks(split)
    shape = examples, *self.IMAGE_SHAPE
    # Of the IDX files that images and labels would make.
    digests = hashlib.sha256(idx.header(shape)), hashlib.sha256(idx.header(shape[:1]))
    number = 0
    for images, labels in chunks:
      for digest, array in zip(digests, (images, labels)):
        digest.update(np.ascontiguousarray(array, np.uint8).data)
      for image, label in zip(images, labels.tolist()):
        yield number, {'image': image, 'label': label}
        number += 1
    self.info.metadata['sha256'][split] = [digest.hexdigest() for digest in digests]

  def chunks(self, split: str) -> tuple[int, Chunks]:
    """How many examples the split has; and they in order, images uint8 [n, H, W, C], labels [n]."""
    raise NotImplementedError

  def sha256(self) -> dict[str, str]:
    """Array -> the hash noted when the copy was prepared; see `kept.Content`."""
    noted = self.info.metadata['sha256']
    return dict(zip(ARRAYS, [*noted['train'], *noted['test']]))


class _Published(Builder, skip_registration=True):  # type: ignore[call-arg]
  """A published set, prepared from `files`; looked for when they are None."""
  KEY: str
  files: sources.Files | None = None

  def __init_subclass__(cls, **options: Any):
    cls.CLASS_NAMES = sources.ORIGINALS[cls.KEY].class_names
    cls.IMAGE_SHAPE = sources.ORIGINALS[cls.KEY].image_shape
    super().__init_subclass__(**options)

  def chunks(self, split: str) -> tuple[int, Chunks]:
    """See `Builder`."""
    if self.files is None:
      self.files = sources.obtain(self.KEY)
    images, labels = self.files.arrays(split)
    return len(labels), iter([(images, labels)])


class FmnistJaxSynthetic(Builder):
  """The drawn garments of `synthetic.py`; the name of the builder config says how many."""
  VERSION = tfds.core.Version(synthetic.VERSION)
  CLASS_NAMES = synthetic.CLASS_NAMES
  IMAGE_SHAPE = (28, 28, 1)

  def chunks(self, split: str) -> tuple[int, Chunks]:
    """See `Builder`."""
    examples = int(self.builder_config.name.split('_')[SPLITS.index(split)])
    return examples, (
        synthetic.draw(np.arange(start, min(start + CHUNK, examples)), split=split)
        for start in range(0, examples, CHUNK))


# FmnistJaxFashionMnist, which TFDS calls fmnist_jax_fashion_mnist, and so on.
BUILDERS: dict[str, type[Builder]] = {'synthetic': FmnistJaxSynthetic} | {
    key: type(f'FmnistJax{key.title().replace("_", "")}', (_Published,),
              {'KEY': key, '__doc__': original.title})
    for key, original in sources.ORIGINALS.items()}


def folder(name: str, *counts: int) -> pathlib.Path:
  """Where the prepared copy of a set lies, or will lie; arguments as those of `builder`."""
  config = [_config_name(counts)] * bool(counts)
  return sources.tfds_folder().joinpath(BUILDERS[name].name, *config, str(BUILDERS[name].VERSION))


def builder(name: str, files: sources.Files | None, *counts: int) -> Builder:
  """Makes the builder of a set, quietly.

  Args:
    name: 'synthetic', or one of `sources.ORIGINALS`.
    files: to prepare a published set from; None: look for them, but only then.
    *counts: how many garments to draw, for training and for testing.
  """
  config = tfds.core.BuilderConfig(name=_config_name(counts)) if counts else None
  with _quiet():
    made = BUILDERS[name](data_dir=sources.tfds_folder(), config=config,
                          file_format='array_record')
  if isinstance(made, _Published):
    made.files = files
  return made


def _config_name(counts: tuple[int, ...]) -> str:
  return '_'.join(map(str, counts))


def prepare(path: pathlib.Path, make: Callable[[], Builder]) -> None:
  """Prepares a set, unless a finished copy is there or another process makes one meanwhile.

  Args:
    path: where the copy goes.
    make: makes its builder; called when there is no copy, because a builder reads what there is.

  Raises:
    DataError: when there is nothing to prepare from.
    Exception: whatever TFDS raises when the folder cannot be written.
  """
  if path.is_dir():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with locks.locked(path.parent / '.lock'):
    if path.is_dir():
      return
    for leftover in path.parent.glob('incomplete.*'):  # Of a dead process: a live one has the lock.
      shutil.rmtree(leftover, ignore_errors=True)
    made = make()
    if isinstance(made, _Published) and made.files is None:
      made.files = sources.obtain(made.KEY)
    logging.info('Preparing %s, this once, in %s.', made.name, path)
    with _quiet():
      made.download_and_prepare()


def discard(path: pathlib.Path) -> None:
  """Removes a damaged copy; a process that is reading it keeps the files it has open."""
  with locks.locked(path.parent / '.lock'):
    doomed = path.with_name(f'incomplete.damaged_{path.name}')
    shutil.rmtree(doomed, ignore_errors=True)
    if path.exists():
      path.rename(doomed)
      shutil.rmtree(doomed, ignore_errors=True)


def decoded(made: Builder, split: str) -> Chunks:
  """A prepared split ('train' or 'test'), decoded by TFDS; raises DamagedError."""
  try:
    with _quiet():
      source = made.as_data_source(split)
    for start in range(0, len(source), CHUNK):
      examples = source.__getitems__(list(range(start, min(start + CHUNK, len(source)))))
      yield (np.stack([example['image'] for example in examples]),
             np.array([example['label'] for example in examples]))
  except Exception as error:  # TFDS and array_record raise what they please.
    raise DamagedError(f'The prepared copy in {made.data_dir} is damaged ({error})') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS from printing, drawing bars and warning about what is meant."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)
