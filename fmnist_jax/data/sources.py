"""Where the original files are: find them, verify them, download them.

The order: the folder of the config, `$FMNIST_DATA_DIR`, (our prepared TFDS copy, see
`pipeline.py`), raw files in the caches of TFDS, Keras and torchvision, download. A folder somebody
named must be right; a cache that is wrong is passed over with a line in the log.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping

from absl import logging

from fmnist_jax.data import download, originals
from fmnist_jax.data.originals import ORIGINALS, DataUnavailable, Files, Original, verified
from fmnist_jax.errors import DataError

ENVIRONMENT = 'FMNIST_DATA_DIR'


def tfds_folder() -> pathlib.Path:
  """`$TFDS_DATA_DIR`, or `~/tensorflow_datasets`: where TFDS keeps prepared data."""
  folder = os.path.expanduser(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
  if folder.startswith('~'):
    raise DataError('There is no place for prepared data, as this user has no home directory; set '
                    'TFDS_DATA_DIR to a folder.')
  return pathlib.Path(folder)


def named(name: str, data_dir: str) -> Files | None:
  """The files in the folder somebody named, or None where nobody did.

  Args:
    name: of one of `ORIGINALS`.
    data_dir: the config's folder, or ''. The folder holds the set's files, packed or not, or has a
      subfolder that does (`fashion-mnist`, `mnist`, or torchvision's).

  Raises:
    DataError: when the folder does not hold this data set, whole and genuine.
  """
  original = ORIGINALS[name]
  folder, origin = data_dir, 'data.data_dir'
  if not folder:
    folder, origin = os.environ.get(ENVIRONMENT, ''), f'${ENVIRONMENT}'
    if not folder:
      return None
    if name != 'fashion_mnist' and not _holding(original, folder, itself=False):
      # The variable is Fashion-MNIST's first of all: it need not hold the digits too.
      logging.info('%s=%s has no %s folder: looking elsewhere.', origin, folder, original.folder)
      return None
  if not os.path.isdir(os.path.expanduser(folder)):
    raise DataError(f'{origin} is {folder!r}, which is not a folder; name the one that holds the '
                    f'{original.title} files.')
  held = _holding(original, folder, itself=name == 'fashion_mnist' or bool(data_dir))
  if held is None:
    raise DataError(f'{origin} is {folder!r}, which holds no {original.title} files; it must hold '
                    f'{", ".join(original.files)}.')
  return verified(original, held)


def cached(name: str) -> tuple[Files | None, list[str]]:
  """Looks through the caches of this library, TFDS, Keras and torchvision.

  Returns:
    The files, or None; and what was looked at, for people.
  """
  original, looked = ORIGINALS[name], []
  for folder in _caches(original):
    looked.append(str(folder))
    if not _any_of(original, folder):
      continue
    try:
      return verified(original, str(folder)), looked
    except DataError as error:
      logging.warning('Passing over a cache: %s', error)
      looked[-1] += ' (unusable)'
  for folder in (tfds_folder() / 'downloads', _keras(), *_torchvision()):
    looked.append(str(folder))
    paths = [_by_content(folder, original.published(i)) for i in range(len(original.files))]
    if all(paths):
      return Files(original, tuple(str(path) for path in paths)), looked
  return None, looked


def obtain(name: str) -> Files:
  """The files of a set nobody named a folder for: from a cache, or downloaded.

  Raises:
    DataUnavailable: naming what was tried, and the ways out.
  """
  original = ORIGINALS[name]
  files, looked = cached(name)
  if files is not None:
    return files
  folder = download_folder(original)
  try:
    download.fetch(original, folder)
    return verified(original, str(folder))
  except DataUnavailable as error:
    raise DataUnavailable(
        f'{original.title} is not to be had: looked in {", ".join(looked)}; {error}; put its '
        f'files ({", ".join(original.files)}) in a folder and name it with '
        f'--config.data.data_dir=FOLDER, or set ${ENVIRONMENT} to it, or train on drawn garments '
        'with --config.data.name=synthetic.') from error


def _holding(original: Original, folder: str, itself: bool) -> str | None:
  """`folder` or the subfolder of it that has files of the data set's names."""
  folder = os.path.expanduser(folder)
  subfolders = (original.folder, os.path.join(original.torchvision_folder, 'raw'))
  places = [os.path.join(folder, sub) for sub in subfolders] + [folder] * itself
  return next((place for place in places if _any_of(original, place)), None)


def _any_of(original: Original, folder: str | os.PathLike) -> bool:
  return any(original.find(folder, i) for i in range(len(original.files)))


def download_folder(original: Original) -> pathlib.Path:
  """Where downloads of this library go."""
  return tfds_folder() / 'downloads' / 'fmnist_jax' / original.folder


def _caches(original: Original) -> Iterator[pathlib.Path]:
  yield download_folder(original)
  yield _keras() / original.folder
  for root in (*_torchvision(), pathlib.Path()):
    yield root / original.torchvision_folder / 'raw'


def _keras() -> pathlib.Path:
  home = os.path.expanduser(os.environ.get('KERAS_HOME') or '~/.keras')
  return pathlib.Path(home, 'datasets')


def _torchvision() -> list[pathlib.Path]:
  """Folders that people name as torchvision's root."""
  return [pathlib.Path(os.path.expanduser(root))
          for root in ('data', '~/data', '~/.cache/torchvision', '~/.torch')]


def _by_content(folder: pathlib.Path, published: Mapping[int, str]) -> pathlib.Path | None:
  """A file of one of these sizes and its hash, in a folder whose names are others' own affair."""
  try:
    places = [folder, *(entry for entry in folder.iterdir() if entry.is_dir())]
    for place in places:
      for entry in place.iterdir():
        size = entry.stat().st_size if entry.is_file() else -1  # A link may lead nowhere.
        try:
          if size in published and originals.file_sha256(entry) == published[size]:
            return entry
        except DataError as error:
          logging.warning('Passing over a cache: %s', error)
  except OSError as error:
    if folder.exists():
      logging.warning('Passing over %s: %s.', folder, error.strerror)
  return None
