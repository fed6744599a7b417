"""Multi-layer perceptrons."""

from __future__ import annotations

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
  """
  config: config_lib.MLP
  num_classes: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits, float32 [B, num_classes]."""
    x = images_BxHxWxC.reshape(images_BxHxWxC.shape[0], -1)
    for width in self.config.hidden:
      x = ops.Dense(width, dtype=self.dtype)(x)
      x = ACTIVATIONS[self.config.activation](x)
      x = Dropout(self.config.dropout)(x, train=train)
    return ops.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
