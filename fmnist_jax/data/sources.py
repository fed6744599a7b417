"""Where the original files are: find them, verify them, download them.

The order: the folder of the config, `$FMNIST_DATA_DIR`, (our prepared TFDS copy, see
`pipeline.py`), raw files in the caches of TFDS, Keras and torchvision, download. A folder somebody
named must be right; a cache that is wrong is passed over with a line in the log. Nothing is used
whose SHA-256 differs: people have been served digit MNIST in place of Fashion-MNIST.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from absl import logging

from fmnist_jax.data import idx
from fmnist_jax.errors import DataError

ENVIRONMENT = 'FMNIST_DATA_DIR'
FILES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte',
         't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')
_MAX_BYTES = 1 << 26  # The largest file has 47,040,016 bytes.


class DataUnavailable(DataError):
  """The data set is nowhere to be had: not damaged, just not there."""


@dataclasses.dataclass(frozen=True)
class Original:
  """A published data set of four IDX files.

  Attributes:
    title: what people call it.
    folder: what its folder is called; torchvision has names of its own.
    examples: for training and for testing.
    class_names: by label.
    sha256: of the unpacked files, in the order of `FILES`.
    packed_sha256: of the .gz files as published, in the order of `FILES`.
    packed_bytes: their sizes.
    mirrors: addresses that the names in `FILES` plus '.gz' are appended to.
  """
  title: str
  folder: str
  torchvision_folder: str
  examples: tuple[int, int]
  class_names: tuple[str, ...]
  sha256: tuple[str, ...]
  packed_sha256: tuple[str, ...]
  packed_bytes: tuple[int, ...]
  mirrors: tuple[str, ...]

  def split_sha256(self, split: str) -> tuple[str, ...]:
    """The hashes of a split's unpacked images and labels; `split` is 'train' or 'test'."""
    return self.sha256[:2] if split == 'train' else self.sha256[2:]


ORIGINALS = {
    'fashion_mnist': Original(
        title='Fashion-MNIST',
        folder='fashion-mnist',
        torchvision_folder='FashionMNIST',
        examples=(60_000, 10_000),
        class_names=('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt',
                     'Sneaker', 'Bag', 'Ankle boot'),
        sha256=('c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
                'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
                '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
                '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34'),
        packed_sha256=('3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84',
                       'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845',
                       '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073',
                       '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5'),
        packed_bytes=(26421880, 29515, 4422102, 5148),
        mirrors=('http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
                 'https://storage.googleapis.com/tensorflow/tf-keras-datasets/',
                 'https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/'
                 'fashion/')),
    'mnist': Original(
        title='MNIST (handwritten digits)',
        folder='mnist',
        torchvision_folder='MNIST',
        examples=(60_000, 10_000),
        class_names=tuple(str(digit) for digit in range(10)),
        sha256=('ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
                '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
                '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
                'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
        packed_sha256=('440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
                       '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
                       '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
                       'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6'),
        packed_bytes=(9912422, 28881, 1648877, 4542),
        mirrors=('https://storage.googleapis.com/cvdf-datasets/mnist/',
                 'https://ossci-datasets.s3.amazonaws.com/mnist/')),
}


@dataclasses.dataclass(frozen=True)
class Files:
  """The four files of a data set, each known to be genuine.

  Attributes:
    original: the data set.
    paths: of the files, in the order of `FILES`.
  """
  original: Original
  paths: tuple[str, ...]

  def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split, 'train' or 'test': images uint8 [N, 28, 28, 1] and labels int32 [N]."""
    first = 0 if split == 'train' else 2
    images, labels = (_genuine(self.original, i, self.paths[i]) for i in (first, first + 1))
    return images[..., None], labels.astype(np.int32)


def tfds_folder() -> pathlib.Path:
  """`$TFDS_DATA_DIR`, or `~/tensorflow_datasets`: where TFDS keeps prepared data."""
  return pathlib.Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def named(name: str, data_dir: str) -> Files | None:
  """The files in the folder somebody named, or None where nobody did.

  Args:
    name: 'fashion_mnist' or 'mnist'.
    data_dir: the config's folder, or ''. The folder holds the four files, packed or not, or has a
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
                    f'four {original.title} files.')
  held = _holding(original, folder, itself=name == 'fashion_mnist' or bool(data_dir))
  if held is None:
    raise DataError(f'{origin} is {folder!r}, which holds no {original.title} files; it must hold '
                    f'{", ".join(f"{file}.gz" for file in FILES)}.')
  return verified(original, held)


def cached(name: str) -> tuple[Files | None, list[str]]:
  """Looks through the caches of this library, TFDS, Keras and torchvision.

  Returns:
    The files, or None; and what was looked at, for people.
  """
  original, looked = ORIGINALS[name], []
  for folder in _caches(original):
    looked.append(str(folder))
    if not any(_path(folder, file) for file in FILES):
      continue
    try:
      return verified(original, str(folder)), looked
    except DataError as error:
      logging.warning('Passing over a cache: %s', error)
      looked[-1] += ' (unusable)'
  downloads = tfds_folder() / 'downloads'
  looked.append(str(downloads))
  paths = [_by_content(downloads, original.packed_bytes[i], original.packed_sha256[i])
           for i in range(len(FILES))]
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
  from fmnist_jax.data import download  # It needs the table above.
  try:
    download.fetch(original, folder)
    return verified(original, str(folder))
  except DataUnavailable as error:
    raise DataUnavailable(
        f'{original.title} is not to be had: looked in {", ".join(looked)}; {error}; put the four '
        f'files ({", ".join(f"{file}.gz" for file in FILES)}) in a folder and name it with '
        f'--config.data.data_dir=FOLDER, or set ${ENVIRONMENT} to it, or train on drawn garments '
        'with --config.data.name=synthetic.') from error


def verified(original: Original, folder: str) -> Files:
  """The four files of `folder`, each checked against its SHA-256.

  Raises:
    DataError: naming the file that is missing, damaged, or of another data set.
  """
  paths = []
  for i, file in enumerate(FILES):
    path = _path(folder, file)
    if path is None:
      raise DataError(f'{folder} lacks {file}.gz; put all four {original.title} files there.')
    check(original, i, path)
    paths.append(path)
  return Files(original, tuple(paths))


def check(original: Original, i: int, path: str) -> None:
  """Raises DataError unless the file is file `i` of a data set; cheap where it is as published."""
  if not path.endswith('.gz') or _file_sha256(path) != original.packed_sha256[i]:
    _genuine(original, i, path)  # Packed anew, or not packed: what is inside decides.


def _genuine(original: Original, i: int, path: str) -> np.ndarray:
  """File `i` of a data set, unpacked; raises DataError unless it is the genuine one."""
  array = idx.read(path, max_bytes=_MAX_BYTES)
  found = idx.sha256(array)
  if found == original.sha256[i]:
    return array
  for other in ORIGINALS.values():
    if found in other.sha256:
      what = (f'{other.title}, not {original.title}' if other is not original else
              f'the file {FILES[other.sha256.index(found)]} under another name')
      raise DataError(f'{path} is {what}; put the real {FILES[i]}.gz there.')
  raise DataError(f'{path} is not the published {original.title} file (SHA-256 {found[:16]}... '
                  f'in place of {original.sha256[i][:16]}...); fetch it again.')


def _path(folder: str | os.PathLike, file: str) -> str | None:
  for name in (f'{file}.gz', file):
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  return None


def _holding(original: Original, folder: str, itself: bool) -> str | None:
  """`folder` or the subfolder of it that has files of the data set's names."""
  folder = os.path.expanduser(folder)
  subfolders = (original.folder, os.path.join(original.torchvision_folder, 'raw'))
  places = [os.path.join(folder, sub) for sub in subfolders] + [folder] * itself
  return next((place for place in places if any(_path(place, file) for file in FILES)), None)


def download_folder(original: Original) -> pathlib.Path:
  """Where downloads of this library go."""
  return tfds_folder() / 'downloads' / 'fmnist_jax' / original.folder


def _caches(original: Original) -> Iterator[pathlib.Path]:
  yield download_folder(original)
  keras = pathlib.Path(os.environ.get('KERAS_HOME') or '~/.keras').expanduser()
  yield keras / 'datasets' / original.folder
  for root in ('data', '.', '~/data', '~/.cache/torchvision', '~/.torch'):
    yield pathlib.Path(root).expanduser() / original.torchvision_folder / 'raw'


def _by_content(folder: pathlib.Path, size: int, sha256: str) -> pathlib.Path | None:
  """A file of this size and hash in TFDS's downloads, whose names are TFDS's own affair."""
  try:
    places = [folder, *(entry for entry in folder.iterdir() if entry.is_dir())]
    for place in places:
      for entry in place.iterdir():
        if entry.is_file() and entry.stat().st_size == size and _file_sha256(entry) == sha256:
          return entry
  except OSError as error:
    if folder.exists():
      logging.warning('Passing over %s: %s.', folder, error.strerror)
  return None


def _file_sha256(path: str | os.PathLike) -> str:
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror}; check its permissions.') from error
