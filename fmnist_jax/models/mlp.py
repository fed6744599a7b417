"""Multi-layer perceptrons."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import config as config_lib
from fmnist_jax import ops
from fmnist_jax.models.layers import ACTIVATIONS, Dropout


class MLP(nn.Module):
  """Flatten, dense layers, linear head.

  Attributes:
    config: widths, activation and dropout.
    num_classes: size of the output.
    dtype: compute precision; parameters and logits are float32.
    implementation: 'matmul' or 'native', how products are computed (see `ops`).
  """
  config: config_lib.MLP
  num_classes: int
  dtype: jnp.dtype
  implementation: str

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    dense = functools.partial(ops.Dense, implementation=self.implementation, dtype=self.dtype)
    x = ops.pixels(images_BxHxWxC).reshape(images_BxHxWxC.shape[0], -1)
    for width in self.config.hidden:
      x = dense(width)(x)
      x = ACTIVATIONS[self.config.activation](x)
      x = Dropout(self.config.dropout)(x, train=train)
    return dense(self.num_classes)(x).astype(jnp.float32)
