"""Where images come from: the `data` section of a config, and the sets that this library knows."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import numpy as np

from fmnist_jax import photograph, settings
from fmnist_jax.data import folder, npz, prepared, sources, tfds_sets
from fmnist_jax.data.augmentations import Augmentation
from fmnist_jax.data.dataset import Dataset
from fmnist_jax.errors import ConfigError
from fmnist_jax.settings import setting, shown


@dataclasses.dataclass
class DataSource(settings.Section):
  """A dataclass of settings that loads a data set; one of one's own adds `load`."""
  train_examples: int = setting(0, 'use only the first N training examples, validation included; '
                                '0: all (synthetic: 60,000)', low=0, high=2**30)
  test_examples: int = setting(0, 'use only the first N test examples; 0: all (synthetic: 10,000)',
                               low=0, high=2**30)
  validation_examples: int = setting(5000, 'taken from the training set, stratified, the same '
                                     'for every seed; 0: no validation, the last epoch is kept',
                                     low=0)
  batch_size: int = setting(128, 'training examples a step, over all devices', low=1)
  residency: str = setting('auto', 'resident: the whole set on the device; streamed: batches are '
                           'read ahead from disk; auto: resident when it fits',
                           choices=('auto', 'resident', 'streamed'))
  augment: tuple[Augmentation, ...] = ()

  @abc.abstractmethod
  def load(self) -> Dataset:
    """The whole set; the loop takes from it what `train_examples` and the like say.

    Raises:
      DataError: one sentence on what is wrong and what to do.
    """

  def fallback(self) -> DataSource | None:
    """What to train on, loudly, when `load` raises DataUnavailable; None: nothing."""
    return None

  def preparation(self) -> Callable[..., np.ndarray]:
    """What makes of a picture, uint8 [h, w, 3], and the model's (H, W, C) what the model takes."""
    return photograph.to_input

  def check_settings(self, name: str) -> None:
    """Raises ConfigError when no training example would be left."""
    if self.train_examples and self.validation_examples >= self.train_examples:
      raise ConfigError(f'{name}.validation_examples is {self.validation_examples}, but '
                        f'{name}.train_examples is {self.train_examples}: nothing is left to train '
                        'on.')


@dataclasses.dataclass
class Data(DataSource):
  """A public set, drawn garments, or one's own: a .npz, or a folder of pictures."""
  name: str = setting('fashion_mnist', f'{", ".join(sources.ORIGINALS)}, synthetic; tfds:NAME or '
                      'tfds:NAME:CONFIG, prepared by TFDS; or the path of one\'s own: a .npz, or a '
                      'folder/ of pictures, a folder for each class in it')
  data_dir: str = setting('', 'folder holding the original files of a public set; empty: look in '
                          '$FMNIST_DATA_DIR, then in the usual caches, then download',
                          location=True)
  offline_fallback: bool = setting(False, 'train on the synthetic set, loudly, when the data set '
                                   'cannot be had', location=True)
  size: int = setting(64, 'height and width that pictures get, pixels', low=1,
                      high=1024)
  channels: Literal[1, 3] = setting(3, 'of pictures of a folder; 1: grey, 3: colour')
  frame: str = setting('fit', 'pictures of a folder; fit: all of each, on black; crop: its middle '
                       'fills the frame', choices=('fit', 'crop'))
  damaged: str = setting('refuse', 'pictures of a folder that cannot be read: refuse the folder, '
                         'or skip them', choices=('refuse', 'skip'))

  def check_settings(self, name: str) -> None:
    """Raises ConfigError for a set that is not known."""
    super().check_settings(name)
    known = (*sources.ORIGINALS, 'synthetic')
    if not (self.name in known or self.name.endswith(('.npz', '/'))
            or tfds_sets.NAME.fullmatch(self.name)):
      raise ConfigError(f'{name}.name is {shown(self.name)}; it must be one of '
                        f'{", ".join(known)}, or tfds:NAME or tfds:NAME:CONFIG, or the path of a '
                        '.npz file, or that of a folder of pictures, with a / at its end.')

  def load(self) -> Dataset:
    """Finds, verifies and opens the set; see `DataSource`."""
    if self.name.endswith('.npz'):
      return npz.read(self.name)
    shape = (self.size, self.size, self.channels)
    if self.name.endswith('/'):
      return folder.read(self.name, shape, self.frame, skip=self.damaged == 'skip')
    if tfds_sets.NAME.fullmatch(self.name):
      return tfds_sets.read(self.name, shape, self.frame)
    if self.name == 'synthetic':
      return prepared.drawn(self.train_examples or 60_000, self.test_examples or 10_000)
    # First: a folder that somebody named and that is wrong is told, whatever is prepared.
    return prepared.published(self.name, sources.named(self.name, self.data_dir))

  def preparation(self) -> Callable[..., np.ndarray]:
    """See `DataSource`; for what was trained on pictures, as those were prepared."""
    if self.name.endswith('/') or tfds_sets.NAME.fullmatch(self.name):
      return functools.partial(photograph.framed, frame=self.frame)
    return super().preparation()

  def fallback(self) -> DataSource | None:
    """The drawn garments, if the config allows it."""
    return dataclasses.replace(self, name='synthetic') if self.offline_fallback else None
