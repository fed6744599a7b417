"""The published data sets: what they are called, hold and hash to."""

from __future__ import annotations

import dataclasses
import os
import string

import numpy as np

from fmnist_jax.data.formats import FILES, Cifar, Emnist, IdxFiles, Original, file_sha256
from fmnist_jax.errors import DataError

__all__ = ['FILES', 'ORIGINALS', 'DataUnavailable', 'Files', 'Original', 'check', 'file_sha256',
           'verified']


class DataUnavailable(DataError):
  """The data set is nowhere to be had: not damaged, just not there."""


def _emnist(part: str, characters: str, first_label: int) -> Emnist:
  return Emnist(
      title=f'EMNIST ({part})', folder='emnist', torchvision_folder='EMNIST',
      class_names=tuple(characters), files=('gzip.zip',),
      packed_sha256=('fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e',),
      packed_bytes=(561753746,), mirrors=('https://biometrics.nist.gov/cs_links/EMNIST/',),
      part=part, first_label=first_label)


ORIGINALS: dict[str, Original] = {
    'fashion_mnist': IdxFiles(
        title='Fashion-MNIST',
        folder='fashion-mnist',
        torchvision_folder='FashionMNIST',
        mirrored_alike=True,
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
    'mnist': IdxFiles(
        title='MNIST (handwritten digits)',
        folder='mnist',
        torchvision_folder='MNIST',
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
    'kmnist': IdxFiles(
        title='Kuzushiji-MNIST',
        folder='kmnist',
        torchvision_folder='KMNIST',
        class_names=('o', 'ki', 'su', 'tsu', 'na', 'ha', 'ma', 'ya', 're', 'wo'),
        packed_sha256=('51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4',
                       'e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17',
                       'edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5',
                       '20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c'),
        packed_bytes=(18165135, 29497, 3041136, 5120),
        mirrors=('http://codh.rois.ac.jp/kmnist/dataset/kmnist/',),
        licence='CC BY-SA 4.0'),
    'cifar10': Cifar(
        title='CIFAR-10',
        folder='cifar10',
        torchvision_folder='cifar10',
        class_names=('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse',
                     'ship', 'truck'),
        files=('cifar-10-binary.tar.gz',),
        packed_sha256=('c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',),
        packed_bytes=(170052171,),
        mirrors=('https://www.cs.toronto.edu/~kriz/',),
        members=(tuple(f'cifar-10-batches-bin/data_batch_{i}.bin' for i in range(1, 6)),
                 ('cifar-10-batches-bin/test_batch.bin',)),
        label_bytes=1,
        python_bytes=170498071,
        python_sha256='6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce'),
    'cifar100': Cifar(
        title='CIFAR-100',
        folder='cifar100',
        torchvision_folder='cifar100',
        class_names=(
            'apple', 'aquarium_fish', 'baby', 'bear', 'beaver', 'bed', 'bee', 'beetle',
            'bicycle', 'bottle', 'bowl', 'boy', 'bridge', 'bus', 'butterfly', 'camel',
            'can', 'castle', 'caterpillar', 'cattle', 'chair', 'chimpanzee', 'clock',
            'cloud', 'cockroach', 'couch', 'crab', 'crocodile', 'cup', 'dinosaur',
            'dolphin', 'elephant', 'flatfish', 'forest', 'fox', 'girl', 'hamster',
            'house', 'kangaroo', 'keyboard', 'lamp', 'lawn_mower', 'leopard', 'lion',
            'lizard', 'lobster', 'man', 'maple_tree', 'motorcycle', 'mountain',
            'mouse', 'mushroom', 'oak_tree', 'orange', 'orchid', 'otter', 'palm_tree',
            'pear', 'pickup_truck', 'pine_tree', 'plain', 'plate', 'poppy',
            'porcupine', 'possum', 'rabbit', 'raccoon', 'ray', 'road', 'rocket',
            'rose', 'sea', 'seal', 'shark', 'shrew', 'skunk', 'skyscraper', 'snail',
            'snake', 'spider', 'squirrel', 'streetcar', 'sunflower', 'sweet_pepper',
            'table', 'tank', 'telephone', 'television', 'tiger', 'tractor', 'train',
            'trout', 'tulip', 'turtle', 'wardrobe', 'whale', 'willow_tree', 'wolf',
            'woman', 'worm'),
        files=('cifar-100-binary.tar.gz',),
        packed_sha256=('58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',),
        packed_bytes=(168513733,),
        mirrors=('https://www.cs.toronto.edu/~kriz/',),
        members=(('cifar-100-binary/train.bin',), ('cifar-100-binary/test.bin',)),
        label_bytes=2,
        python_bytes=169001437,
        python_sha256='85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7'),
    'emnist_letters': _emnist('letters', string.ascii_uppercase, first_label=1),
    'emnist_balanced': _emnist(
        'balanced', f'{string.digits}{string.ascii_uppercase}abdefghnqrt', first_label=0),
}


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of a data set, each known to be genuine.

  Attributes:
    original: the data set.
    paths: of the files, in its order.
  """
  original: Original
  paths: tuple[str, ...]

  def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split, 'train' or 'test': images uint8 [N, H, W, C] and labels int32 [N]."""
    return self.original.arrays(self.paths, split)


def verified(original: Original, folder: str | os.PathLike) -> Files:
  """The files of a set in `folder`, each checked against its SHA-256.

  Raises:
    DataError: naming the file that is missing, damaged, or of another data set.
  """
  paths = []
  for i, file in enumerate(original.files):
    place = original.find(folder, i)
    if place is None:
      raise DataError(f'{folder} lacks {file}; put all {original.title} files there.')
    check(original, i, place)
    paths.append(place)
  return Files(original, tuple(paths))


def check(original: Original, i: int, path: str) -> None:
  """Raises DataError unless the file is file `i` of a data set; cheap where it is as published."""
  original.check(i, path, list(ORIGINALS.values()))
