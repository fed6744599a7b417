"""Data: find, verify, prepare, decode, deal out, order, stream, augment."""

from fmnist_jax.data.augmentations import (
    Affine,
    AlternatingFlip,
    Augmentation,
    CutMix,
    Flip,
    MixUp,
    Place,
    RandomErasing,
    Shift,
    augment,
)
from fmnist_jax.data.dataset import Dataset, MemorySource, Source, Split
from fmnist_jax.data.pipeline import deal, epoch_order, is_resident, load
from fmnist_jax.data.prefetch import stream
from fmnist_jax.data.rand_augment import RandAugment
from fmnist_jax.data.source import Data, DataSource
from fmnist_jax.data.sources import DataUnavailable

__all__ = ['Affine', 'AlternatingFlip', 'Augmentation', 'CutMix', 'Data', 'DataSource',
           'DataUnavailable', 'Dataset', 'Flip', 'MemorySource', 'MixUp', 'Place', 'RandAugment',
           'RandomErasing', 'Shift', 'Source', 'Split', 'augment', 'deal', 'epoch_order',
           'is_resident', 'load', 'stream']
