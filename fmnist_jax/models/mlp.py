"""Multi-layer perceptrons."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.models.base import Compute, Model
from fmnist_jax.models.layers import ACTIVATIONS, WIDEST, Dropout
from fmnist_jax.settings import setting


@dataclasses.dataclass
class MLP(Model):
  """Flatten, then dense layers, each followed by activation and dropout; a linear head."""
  takes_bytes = True
  hidden: tuple[int, ...] = setting((128,), 'width of each hidden layer', low=1, high=WIDEST)
  activation: str = setting('relu', 'non-linearity', choices=tuple(ACTIVATIONS))
  dropout: float = setting(0.0, 'rate after each hidden layer', low=0, high=1, open_high=True,
                           continuous=True)

  def build(self, num_classes: int, compute: Compute) -> nn.Module:
    """See `Model`."""
    return MLPModule(self, num_classes, compute)


class MLPModule(nn.Module):
  """The network that `MLP` describes, of `num_classes` outputs."""
  settings: MLP
  num_classes: int
  compute: Compute

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    how: dict[str, Any] = self.compute._asdict()
    x = ops.pixels(images_BxHxWxC, self.compute.dtype).reshape(images_BxHxWxC.shape[0], -1)
    for width in self.settings.hidden:
      x = ops.Dense(width, **how)(x)
      x = ACTIVATIONS[self.settings.activation](x)
      x = Dropout(self.settings.dropout, self.compute.implementation)(x, train=train)
    return ops.Dense(self.num_classes, **how)(x).astype(jnp.float32)
