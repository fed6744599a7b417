"""Vision transformers."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.errors import ConfigError
from fmnist_jax.models.base import Compute, Model
from fmnist_jax.models.layers import WIDEST, Dropout, StochasticDepth
from fmnist_jax.settings import setting


@dataclasses.dataclass
class ViT(Model):
  """A transformer of patches (arXiv:2010.11929): attention in place of convolutions.

  Patches become tokens by one dense layer, a token of its own is put before them and a position
  added to each; blocks of attention and of two dense layers follow, LayerNorm before each, and the
  first token goes to the head. Meant for accelerators. Of this form are

    ViT-S/16    ViT(patch=16, width=384, depth=12, heads=6)
    ViT-B/16    ViT(patch=16, width=768, depth=12, heads=12)
  """
  takes_bytes = True
  cached_examples = 128
  patch: int = setting(4, 'side of the square patches, pixels; images divide by it', low=1,
                       high=WIDEST)
  width: int = setting(128, 'numbers in a token', low=1, high=WIDEST)
  depth: int = setting(6, 'blocks', low=1, high=1000)
  heads: int = setting(4, 'heads of attention; the width divides by it', low=1, high=WIDEST)
  expansion: int = setting(4, 'how many times wider than a token the dense layers inside a block '
                           'are', low=1, high=1000)
  dropout: float = setting(0.0, 'rate after attention and dense layers', low=0, high=1,
                           open_high=True, continuous=True)
  stochastic_depth: float = setting(0.0, 'rate at which the last block is left out for an example '
                                    'in training; others less, in proportion to their depth '
                                    '(arXiv:1603.09382)', low=0, high=1, open_high=True,
                                    continuous=True)

  def check_settings(self, name: str) -> None:
    """Raises ConfigError when heads do not share the width."""
    if self.width % self.heads:
      raise ConfigError(f'{name}.width, {self.width}, does not divide by {name}.heads, '
                        f'{self.heads}.')

  def check(self, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError when images do not divide into patches."""
    height, width, _ = image_shape
    if height % self.patch or width % self.patch:
      raise ConfigError(f'A {height}x{width} image does not divide into patches of {self.patch}x'
                        f'{self.patch} pixels; use another model.patch.')

  def build(self, num_classes: int, compute: Compute) -> nn.Module:
    """See `Model`."""
    return ViTModule(self, num_classes, compute)


class ViTModule(nn.Module):
  """The network that `ViT` describes, of `num_classes` outputs."""
  settings: ViT
  num_classes: int
  compute: Compute

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    settings, dtype = self.settings, self.compute.dtype
    x = ops.pixels(images_BxHxWxC, dtype)
    x = ops.Conv(settings.width, (settings.patch,) * 2, strides=(settings.patch,) * 2,
                 **self.compute._asdict())(x)
    x = x.reshape(len(x), -1, settings.width)
    first = self.param('first', nn.initializers.zeros_init(), (1, 1, settings.width))
    x = jnp.concatenate([jnp.broadcast_to(first.astype(dtype), (len(x), 1, settings.width)), x], 1)
    positions = self.param('positions', nn.initializers.normal(0.02), (1, *x.shape[1:]))
    x = Dropout(settings.dropout, self.compute.implementation)(
        x + positions.astype(dtype), train=train)
    for block in range(settings.depth):
      x = TransformerBlock(settings.heads, settings.expansion, settings.dropout,
                           settings.stochastic_depth * ((block + 1) / settings.depth),
                           self.compute)(x, train=train)
    x = nn.LayerNorm(dtype=dtype)(x[:, 0])
    return ops.Dense(self.num_classes, **self.compute._asdict())(x).astype(jnp.float32)


class TransformerBlock(nn.Module):
  """x + attention, then x + two dense layers, with LayerNorm before each; see `ViT`.

  Attributes:
    heads: of attention.
    expansion: how many times wider than a token the dense layers inside are.
    dropout: rate after attention and each dense layer.
    stochastic_depth: rate at which either sum is left out.
    compute: how.
  """
  heads: int
  expansion: int
  dropout: float | jax.Array
  stochastic_depth: float | jax.Array
  compute: Compute

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, tokens, width] -> the same shape."""
    width, how = x.shape[-1], self.compute._asdict()

    def drop(y: jax.Array) -> jax.Array:
      return Dropout(self.dropout, self.compute.implementation)(y, train=train)

    def vary(y: jax.Array) -> jax.Array:
      return StochasticDepth(self.stochastic_depth)(y, train=train)

    y = nn.LayerNorm(dtype=self.compute.dtype)(x)
    # Query, key and value in one product.
    y = ops.Dense(3 * width, **how)(y)
    query, key, value = jnp.split(
        y.reshape(*x.shape[:2], 3 * self.heads, width // self.heads), 3, axis=2)
    y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    x = x + vary(drop(ops.Dense(width, **how)(y)))
    y = nn.LayerNorm(dtype=self.compute.dtype)(x)
    y = drop(nn.gelu(ops.Dense(self.expansion * width, **how)(y)))
    return x + vary(drop(ops.Dense(width, **how)(y)))
