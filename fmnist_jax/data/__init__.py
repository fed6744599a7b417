"""Data: find, verify, prepare, deal out, order, stream, augment."""

from fmnist_jax.data.dataset import Dataset, Split
from fmnist_jax.data.pipeline import epoch_order, is_resident, load
from fmnist_jax.data.prefetch import stream
from fmnist_jax.data.sources import DataUnavailable

__all__ = ['DataUnavailable', 'Dataset', 'Split', 'epoch_order', 'is_resident', 'load', 'stream']
