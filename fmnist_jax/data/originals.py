"""The published data sets: what they are called, hold and hash to, and how a file is checked.

Nothing is used whose SHA-256 differs: people have been served digit MNIST in place of
Fashion-MNIST.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np

from fmnist_jax.data import idx
from fmnist_jax.errors import DataError

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
    licence: under which it is published.
    hub: its name on the Hugging Face hub.
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
  licence: str
  hub: str

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
                 'fashion/'),
        licence='MIT', hub='zalando-datasets/fashion_mnist'),
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
                 'https://ossci-datasets.s3.amazonaws.com/mnist/'),
        licence='CC BY-SA 3.0', hub='ylecun/mnist'),
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


def verified(original: Original, folder: str) -> Files:
  """The four files of `folder`, each checked against its SHA-256.

  Raises:
    DataError: naming the file that is missing, damaged, or of another data set.
  """
  paths = []
  for i, file in enumerate(FILES):
    place = path(folder, file)
    if place is None:
      raise DataError(f'{folder} lacks {file}.gz; put all four {original.title} files there.')
    check(original, i, place)
    paths.append(place)
  return Files(original, tuple(paths))


def check(original: Original, i: int, path: str) -> None:
  """Raises DataError unless the file is file `i` of a data set; cheap where it is as published."""
  if not path.endswith('.gz') or file_sha256(path) != original.packed_sha256[i]:
    _genuine(original, i, path)  # Packed anew, or not packed: what is inside decides.


def _genuine(original: Original, i: int, path: str) -> np.ndarray:
  """File `i` of a data set, unpacked; raises DataError unless it is the genuine one."""
  array = idx.read(path, max_bytes=_MAX_BYTES)
  digest = idx.sha256(array)
  if digest == original.sha256[i]:
    return array
  for other in ORIGINALS.values():
    if digest in other.sha256:
      what = (f'{other.title}, not {original.title}' if other is not original else
              f'the file {FILES[other.sha256.index(digest)]} under another name')
      raise DataError(f'{path} is {what}; put the real {FILES[i]}.gz there.')
  raise DataError(f'{path} is not the published {original.title} file (SHA-256 {digest[:16]}... '
                  f'in place of {original.sha256[i][:16]}...); fetch it again.')


def path(folder: str | os.PathLike, file: str) -> str | None:
  """Where a folder has a file of `FILES`, packed or not; None where it has not."""
  for name in (f'{file}.gz', file):
    place = os.path.join(folder, name)
    if os.path.isfile(place):
      return place
  return None


def file_sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file as it lies there, in hex; DataError when it cannot be read."""
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror}; check its permissions.') from error
