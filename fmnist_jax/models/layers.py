"""Layers that the model families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.models.base import Compute
from fmnist_jax.ops import onednn
from fmnist_jax.settings import is_on

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': nn.relu, 'gelu': nn.gelu, 'silu': nn.silu, 'tanh': jnp.tanh}
WIDEST = 2**20  # Channels of a layer: beyond it shapes overflow.


class Dropout(nn.Module):
  """Zeroes each entry with probability `rate` and divides the others by 1 - rate (JMLR 15:1929).

  Unlike `nn.Dropout`, the rate may be a traced scalar, so that members of a population can differ
  in it; a rate of the Python number 0 is absent from the program. Draws from the 'dropout' RNG,
  16 bits an entry: rates are exact to 1/65536.

  Attributes:
    rate: in [0, 1).
    implementation: of `ops`; 'onednn' draws the same bits in less time.
  """
  rate: float | jax.Array
  implementation: str = 'native'

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Drops entries of `inputs`, of any shape, while training; else returns them as they are."""
    if not train or not is_on(self.rate):
      return inputs
    keep_rate = 1.0 - jnp.asarray(self.rate, jnp.float32)
    below = jnp.round(keep_rate * 65536.0).astype(jnp.uint32)
    # A product: a quotient XLA may turn into one or not, which would be other bits.
    scale = (1.0 / keep_rate).astype(inputs.dtype)
    key = self.make_rng('dropout')
    if self.implementation == 'onednn':
      return onednn.dropout(inputs, jax.random.key_data(key), below, scale.astype(jnp.float32))
    # Two entries share a 32-bit word: drawing the bits is what dropout costs on a CPU.
    *leading, features = inputs.shape
    words = jax.random.bits(key, (*leading, -(-features // 2)), jnp.uint32)
    keep = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :features] < below
    return jnp.where(keep, inputs * scale, jnp.zeros_like(inputs))


class StochasticDepth(nn.Module):
  """Zeroes a whole example with probability `rate` and divides the others by 1 - rate.

  So the branch of a residual block is left out at random (arXiv:1603.09382, which draws once for a
  batch, and multiplies by 1 - rate afterwards instead). The rate may be traced; see `Dropout`.

  Attributes:
    rate: in [0, 1).
  """
  rate: float | jax.Array

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """[N, ...]: drops examples while training; else returns them as they are."""
    if not train or not is_on(self.rate):
      return inputs
    keep_rate = 1.0 - jnp.asarray(self.rate, jnp.float32)
    shape = (len(inputs),) + (1,) * (inputs.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng('dropout'), keep_rate, shape)
    return inputs * jnp.where(keep, 1.0 / keep_rate, 0.0).astype(inputs.dtype)


class SqueezeExcitation(nn.Module):
  """Each channel times a gate in (0, 1) made of the means of all channels (arXiv:1709.01507).

  Attributes:
    width: of the layer between means and gates.
    compute: how.
    activation: of that layer, a name of `ACTIVATIONS`.
  """
  width: int
  compute: Compute
  activation: str = 'relu'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> the same shape."""
    means = ops.avg_pool(x, (x.shape[1], x.shape[2]),
                         implementation=self.compute.implementation)
    y = ops.Dense(self.width, **self.compute._asdict())(means.reshape(len(x), -1))
    y = ops.Dense(x.shape[-1], **self.compute._asdict())(ACTIVATIONS[self.activation](y))
    return x * nn.sigmoid(y)[:, None, None]


def conv_norm(x: jax.Array, features: int, kernel_size: tuple[int, int], *, train: bool,
              compute: Compute, names: tuple[str, str], residual: jax.Array | None = None,
              relu: bool = True, window: tuple[int, int] = (1, 1), padding: str = 'SAME',
              strides: tuple[int, int] = (1, 1), groups: int = 1,
              kernel_init: nn.initializers.Initializer = ops.Conv.kernel_init) -> jax.Array:
  """Convolution, BatchNorm, a sum, ReLU, max-pool: one operation on CPUs, layers elsewhere.

  To be called in a compact module, whose submodules it makes.

  Args:
    x: [N, H, W, C].
    features: channels of the result.
    kernel_size: height and width, pixels.
    train: whether to normalise by the batch's statistics.
    compute: how.
    names: of the convolution and the BatchNorm among the module's parameters.
    residual: what to add; None: nothing.
    relu: whether to rectify.
    window: of the pool, pixels; (1, 1) for none.
    padding: of the convolution.
    strides: of the convolution, pixels.
    groups: of the convolution, of channels that do not mix.
    kernel_init: what the kernel starts as.
  """
  how: dict[str, Any] = {**compute._asdict(), 'padding': padding, 'strides': strides,
                         'groups': groups}
  if compute.implementation != 'native':
    kernel = ops.ConvKernel(features, kernel_size, kernel_init, name=names[0])(
        x.shape[-1] // groups)
    return ops.ConvBatchNorm(use_running_average=not train, relu=relu, window=window, **how,
                             name=names[1])(x, kernel, residual)
  x = ops.Conv(features, kernel_size, use_bias=False, kernel_init=kernel_init, **how,
               name=names[0])(x)
  x = _norm(train, compute, names[1])(x)
  x = x if residual is None else x + residual
  x = nn.relu(x) if relu else x
  return x if window == (1, 1) else ops.MaxPool(window, 'native')(x)


def norm(x: jax.Array, *, train: bool, compute: Compute, name: str,
         relu: bool = True) -> jax.Array:
  """BatchNorm of [N, H, W, C], and ReLU if asked for: as `conv_norm`, without a convolution."""
  if compute.implementation != 'native':
    return ops.BatchNorm(use_running_average=not train, relu=relu, **compute._asdict(),
                         name=name)(x)
  x = _norm(train, compute, name)(x)
  return nn.relu(x) if relu else x


def _norm(train: bool, compute: Compute, name: str) -> nn.BatchNorm:
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=compute.dtype, name=name)
