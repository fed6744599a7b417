"""Layers that the model families share."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax.config import is_on

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': nn.relu, 'gelu': nn.gelu, 'silu': nn.silu, 'tanh': jnp.tanh}


class Dropout(nn.Module):
  """Zeroes each entry with probability `rate` and divides the others by 1 - rate (JMLR 15:1929).

  Unlike `nn.Dropout`, the rate may be a traced scalar, so that members of a population can differ
  in it; a rate of the Python number 0 is absent from the program. Draws from the 'dropout' RNG,
  16 bits an entry: rates are exact to 1/65536.

  Attributes:
    rate: in [0, 1).
  """
  rate: float | jax.Array

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Drops entries of `inputs`, of any shape, while training; else returns them as they are."""
    if not train or not is_on(self.rate):
      return inputs
    keep_rate = 1.0 - jnp.asarray(self.rate, jnp.float32)
    # Two entries share a 32-bit word: drawing the bits is what dropout costs on a CPU.
    *leading, features = inputs.shape
    words = jax.random.bits(self.make_rng('dropout'), (*leading, -(-features // 2)), jnp.uint32)
    bits = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :features]
    keep = bits < jnp.round(keep_rate * 65536.0).astype(jnp.uint32)
    return jnp.where(keep, inputs / keep_rate.astype(inputs.dtype), jnp.zeros_like(inputs))
