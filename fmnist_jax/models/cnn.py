"""Convolutional networks: blocks of convolutions and pools, then dense layers."""

from __future__ import annotations

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
    """Returns logits, float32 [B, num_classes]."""
    config = self.config
    activation = ACTIVATIONS[config.activation]
    pool = {'max': ops.max_pool, 'average': ops.avg_pool}[config.pooling]
    x = images_BxHxWxC
    for block, (channels, window) in enumerate(zip(config.channels, config.pool)):
      for _ in range(config.convolutions):
        # BatchNorm has a shift of its own, which makes the bias redundant.
        x = ops.Conv(channels, (config.kernel, config.kernel), padding=config.padding,
                     use_bias=not config.batch_norm, dtype=self.dtype,
                     implementation=self.implementation)(x)
        if config.batch_norm:
          x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        x = activation(x)
      if window:
        x = pool(x, (window, window), implementation=self.implementation)
      if config.dropout:
        x = Dropout(config.dropout[block])(x, train=train)
    x = x.reshape(x.shape[0], -1)
    for width in config.dense:
      x = activation(ops.Dense(width, dtype=self.dtype)(x))
      x = Dropout(config.dense_dropout)(x, train=train)
    return ops.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
