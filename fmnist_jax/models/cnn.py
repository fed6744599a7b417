"""Convolutional networks: blocks of convolutions and pools, then dense layers."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.errors import ConfigError
from fmnist_jax.models.base import Compute, Model
from fmnist_jax.models.layers import ACTIVATIONS, WIDEST, Dropout, conv_norm, norm
from fmnist_jax.settings import setting


@dataclasses.dataclass
class CNN(Model):
  """Blocks of convolution (+ BatchNorm), activation, pool, dropout; then dense layers; a head.

  The tuples `channels` and `pool` have one entry a block; `dropout` too, or it is empty.
  """
  takes_bytes = True
  cached_examples = 128  # Measured fastest.
  channels: tuple[int, ...] = setting((32, 64), 'output channels of each block', low=1,
                                      high=WIDEST)
  convolutions: int = setting(1, 'convolutions in each block', low=1, high=16)
  kernel: int = setting(3, 'side of the square kernels, pixels', low=1, high=31)
  padding: str = setting('VALID', 'SAME keeps height and width, VALID crops',
                         choices=('SAME', 'VALID'))
  pool: tuple[int, ...] = setting((2, 2), 'side and stride of the pool that ends each block; '
                                  '0: no pool', low=0, high=64)
  pooling: str = setting('max', 'kind of pool', choices=('max', 'average'))
  batch_norm: bool = setting(False, 'BatchNorm between convolution and activation')
  norm_after_pool: bool = setting(False, 'BatchNorm of a convolution that is pooled stands after '
                                  'activation and pool, where it has fewer pixels to normalise')
  activation: str = setting('relu', 'non-linearity', choices=tuple(ACTIVATIONS))
  dropout: tuple[float, ...] = setting((), 'rate after each block; empty: none', low=0, high=1,
                                       open_high=True, continuous=True)
  dense: tuple[int, ...] = setting((128,), 'width of each dense layer after the blocks', low=1,
                                   high=WIDEST)
  dense_dropout: float = setting(0.0, 'rate after each dense layer', low=0, high=1,
                                 open_high=True, continuous=True)

  def check_settings(self, name: str) -> None:
    """Raises ConfigError when tuples have another number of entries than there are blocks."""
    blocks = len(self.channels)
    if len(self.pool) != blocks:
      raise ConfigError(f'{name}.pool has {len(self.pool)} entries for {blocks} blocks in '
                        f'{name}.channels; give one entry a block, 0 for no pool.')
    if self.dropout and len(self.dropout) != blocks:
      raise ConfigError(f'{name}.dropout has {len(self.dropout)} entries for {blocks} blocks in '
                        f'{name}.channels; give one entry a block, or () for none.')
    if self.norm_after_pool and not self.batch_norm:
      raise ConfigError(f'{name}.norm_after_pool says where BatchNorm stands, but there is none; '
                        f'set {name}.batch_norm too.')

  def check(self, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError when a block leaves no pixel of an image."""
    side = min(image_shape[:2])
    for block, window in enumerate(self.pool):
      if self.padding == 'VALID':
        side -= self.convolutions * (self.kernel - 1)
      if window:
        side //= window
      if side < 1:
        raise ConfigError(
            f'Block {block + 1} of the model leaves no pixel of a {image_shape[0]}x'
            f'{image_shape[1]} image; use model.padding=SAME, fewer blocks or smaller model.kernel '
            'and model.pool.')

  def build(self, num_classes: int, compute: Compute) -> nn.Module:
    """See `Model`."""
    return CNNModule(self, num_classes, compute)


class CNNModule(nn.Module):
  """The network that `CNN` describes, of `num_classes` outputs."""
  settings: CNN
  num_classes: int
  compute: Compute

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    settings, implementation = self.settings, self.compute.implementation
    activation = ACTIVATIONS[settings.activation]
    how: dict[str, Any] = {**self.compute._asdict(), 'padding': settings.padding}
    pool = {'max': ops.MaxPool, 'average': ops.AvgPool}[settings.pooling]
    # Rectifying and pooling in one operation does a quarter of the elementwise work.
    fuse = (settings.pooling, settings.activation) == ('max', 'relu')
    # Parameters have the same names however the layers are fused.
    conv_names = map('Conv_{}'.format, itertools.count())
    norm_names = map('BatchNorm_{}'.format, itertools.count())
    x = ops.pixels(images_BxHxWxC, self.compute.dtype)
    for block, (channels, side) in enumerate(zip(settings.channels, settings.pool)):
      kernel: dict[str, Any] = {'features': channels, 'kernel_size': (settings.kernel,) * 2}
      for last in [False] * (settings.convolutions - 1) + [True]:
        window = (side, side) if last and side else (1, 1)
        norm_last = settings.norm_after_pool and window != (1, 1)
        norm_first = settings.batch_norm and not norm_last
        if norm_first and fuse:
          x = conv_norm(x, **kernel, train=train, compute=self.compute, window=window,
                        padding=settings.padding, names=(next(conv_names), next(norm_names)))
          continue
        if window != (1, 1) and fuse and implementation != 'native':
          limit = None if settings.batch_norm else _needed(settings, block, x.shape[1:3])
          x = ops.ConvReluMaxPool(**kernel, **how, window=window, limit=limit,
                                  name=next(conv_names))(x)
        else:
          # A shift of BatchNorm's own makes the bias before it redundant.
          x = ops.Conv(**kernel, **how, use_bias=not norm_first, name=next(conv_names))(x)
          if norm_first:
            x = norm(x, train=train, compute=self.compute, relu=False, name=next(norm_names))
          x = activation(x)
          if window != (1, 1):
            x = pool(window, implementation)(x)
        if norm_last:
          x = norm(x, train=train, compute=self.compute, relu=False, name=next(norm_names))
      if settings.dropout:
        x = Dropout(settings.dropout[block], implementation)(x, train=train)
    x = x.reshape(len(x), -1)
    for width in settings.dense:
      x = activation(ops.Dense(width, **self.compute._asdict())(x))
      x = Dropout(settings.dense_dropout, implementation)(x, train=train)
    x = ops.Dense(self.num_classes, **self.compute._asdict())(x)
    return x.astype(jnp.float32)


def _needed(settings: CNN, block: int, size: tuple[int, ...]) -> tuple[int, int] | None:
  """Rows and columns of a block's result that the next block reads; None: all of them.

  A pool leaves out the rows that do not fill a window, so the block before need not make them.
  """
  after = block + 1
  if (settings.padding != 'VALID' or settings.convolutions != 1 or after == len(settings.pool)
      or not settings.pool[after]):
    return None
  kernel, window, following = settings.kernel, settings.pool[block], settings.pool[after]
  made = [(side - kernel + 1) // window for side in size]
  pooled = [(side - kernel + 1) // following for side in made]
  height, width = ops.useful_size(pooled, kernel, (following, following))
  return height, width
