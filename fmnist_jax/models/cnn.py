"""Convolutional networks: blocks of convolutions and pools, then dense layers."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import config as config_lib
from fmnist_jax import ops
from fmnist_jax.models.layers import ACTIVATIONS, Dropout


class CNN(nn.Module):
  """Blocks of convolution (+ BatchNorm), activation, pool and dropout; dense layers; linear head.

  Attributes:
    config: one entry a block in `channels`, `pool` and (unless empty) `dropout`.
    num_classes: size of the output.
    dtype: compute precision; parameters, BatchNorm statistics and logits are float32.
    implementation: 'matmul' or 'native', how convolutions and pools are computed (see `ops`).
  """
  config: config_lib.CNN
  num_classes: int
  dtype: jnp.dtype
  implementation: str

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    config = self.config
    activation = ACTIVATIONS[config.activation]
    # Between blocks images keep the order of axes in which nothing has to be transposed.
    layout = ops.preferred_layout(self.implementation)
    how: dict[str, Any] = {'implementation': self.implementation, 'dtype': self.dtype}
    pool = {'max': ops.max_pool, 'average': ops.avg_pool}[config.pooling]
    # Rectifying and pooling in one operation does a quarter of the elementwise work.
    fuse = (config.pooling, config.activation) == ('max', 'relu')
    # Parameters have the same names however the layers are fused.
    conv_names = map('Conv_{}'.format, itertools.count())
    norm_names = map('BatchNorm_{}'.format, itertools.count())
    x = ops.pixels(ops.to_layout(images_BxHxWxC, layout))
    for block, (channels, window) in enumerate(zip(config.channels, config.pool)):
      kernel: dict[str, Any] = {'features': channels, 'kernel_size': (config.kernel,) * 2}
      where: dict[str, Any] = {'padding': config.padding, 'layout': layout}
      for last in [False] * (config.convolutions - 1) + [True]:
        if config.batch_norm and fuse:
          weights = ops.ConvKernel(**kernel, name=next(conv_names))(x.shape[layout.index('C')])
          side = (window if last else 0) or 1
          x = ops.ConvBatchNormReluMaxPool((side, side), use_running_average=not train, **where,
                                           **how, name=next(norm_names))(x, weights)
          continue
        if last and window and fuse:
          x = ops.ConvReluMaxPool(**kernel, **where, **how, window=(window, window),
                                  name=next(conv_names),
                                  limit=_needed(config, block, x.shape[1:3]))(x)
          continue
        # BatchNorm has a shift of its own, which makes the bias redundant.
        x = ops.Conv(**kernel, **where, **how, use_bias=not config.batch_norm,
                     name=next(conv_names))(x)
        if config.batch_norm:
          x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis=layout.index('C'),
                           dtype=self.dtype, name=next(norm_names))(x)
        x = activation(x)
        if last and window:
          x = pool(x, (window, window), implementation=self.implementation, layout=layout)
      if config.dropout:
        x = Dropout(config.dropout[block])(x, train=train)
    shape: str | None = layout
    for width in config.dense:
      x = activation(ops.Dense(width, **how, layout=shape)(x))
      x = Dropout(config.dense_dropout)(x, train=train)
      shape = None
    return ops.Dense(self.num_classes, **how, layout=shape)(x).astype(jnp.float32)


def _needed(config: config_lib.CNN, block: int, size: tuple[int, ...]) -> tuple[int, int] | None:
  """Rows and columns of a block's result that the next block reads; None: all of them.

  A pool leaves out the rows that do not fill a window, so the block before need not make them.
  """
  after = block + 1
  if (config.padding != 'VALID' or config.convolutions != 1 or after == len(config.pool)
      or not config.pool[after]):
    return None
  kernel, window, following = config.kernel, config.pool[block], config.pool[after]
  made = [(side - kernel + 1) // window for side in size]
  pooled = [(side - kernel + 1) // following for side in made]
  height, width = ops.useful_size(pooled, kernel, (following, following))
  return height, width
