"""Flax layers over the operations, with the parameters of `nn.Conv` and `nn.Dense`.

Names ('kernel', 'bias'), shapes and initialisers are theirs and parameters are float32 always, so a
checkpoint does not say which implementation or precision made it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fmnist_jax.ops.block import conv_relu_max_pool
from fmnist_jax.ops.convolution import Padding, conv2d
from fmnist_jax.ops.normalization import batch_norm, line
from fmnist_jax.ops.pooling import avg_pool, max_pool
from fmnist_jax.ops.products import dense

_KERNEL, _BIAS = nn.initializers.lecun_normal(), nn.initializers.zeros_init()


class Conv(nn.Module):
  """2-D convolution, [N, H, W, C] -> [N, H', W', features].

  Attributes:
    features: channels of the output.
    kernel_size: height and width, pixels.
    implementation: 'onednn', 'matmul' or 'native'; see the package.
    padding: 'SAME', 'VALID' or pairs of pixels.
    strides: steps of the kernel, pixels.
    dilation: distance between its taps, pixels.
    groups: groups of channels that do not mix; as many as there are: a depthwise convolution.
    use_bias: whether to add one.
    dtype: of operands and result; None: what input and parameters promote to.
    kernel_init: what the kernel starts as.
  """
  features: int
  kernel_size: tuple[int, int]
  implementation: str
  padding: Padding = 'SAME'
  strides: tuple[int, int] = (1, 1)
  dilation: tuple[int, int] = (1, 1)
  groups: int = 1
  use_bias: bool = True
  dtype: Any = None
  kernel_init: nn.initializers.Initializer = _KERNEL

  @nn.compact
  def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
    """Convolves, and adds `residual`."""
    kernel = self.param('kernel', self.kernel_init,
                        (*self.kernel_size, x.shape[-1] // self.groups, self.features), jnp.float32)
    bias = self.param('bias', _BIAS, (self.features,), jnp.float32) if self.use_bias else None
    return conv2d(x, kernel, bias=bias, residual=residual, padding=self.padding,
                  strides=self.strides, dilation=self.dilation, groups=self.groups,
                  dtype=self.dtype, implementation=self.implementation)


class ConvReluMaxPool(nn.Module):
  """`Conv` with bias, ReLU and a max-pool of windows that do not overlap, as one operation.

  Attributes:
    features, kernel_size, implementation, padding, dtype: as in `Conv`.
    window: of the pool, pixels.
    limit: rows and columns of the result that are needed (see `useful_size`); None: all.
  """
  features: int
  kernel_size: tuple[int, int]
  window: tuple[int, int]
  implementation: str
  padding: Padding = 'SAME'
  limit: tuple[int, int] | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves, adds the bias, rectifies and pools."""
    kernel = self.param('kernel', _KERNEL, (*self.kernel_size, x.shape[-1], self.features),
                        jnp.float32)
    bias = self.param('bias', _BIAS, (self.features,), jnp.float32)
    return conv_relu_max_pool(x, kernel, bias, window=self.window, padding=self.padding,
                              limit=self.limit, dtype=self.dtype,
                              implementation=self.implementation)


class ConvKernel(nn.Module):
  """The kernel of a convolution that another layer computes, with the name it has in `nn.Conv`.

  Attributes:
    features: channels of the convolution's output.
    kernel_size: height and width, pixels.
    kernel_init: what it starts as.
  """
  features: int
  kernel_size: tuple[int, int]
  kernel_init: nn.initializers.Initializer = _KERNEL

  @nn.compact
  def __call__(self, channels: int) -> jax.Array:
    """float32 [h, w, channels, features]."""
    return self.param('kernel', self.kernel_init, (*self.kernel_size, channels, self.features),
                      jnp.float32)


class _Channels(NamedTuple):
  """What BatchNorm keeps of each channel, float32 [C]: two variables and two parameters."""
  mean: Any
  variance: Any
  scale: jax.Array
  bias: jax.Array


class BatchNorm(nn.Module):
  """`nn.BatchNorm`, then a sum, ReLU, a max-pool of windows that do not overlap.

  Parameters 'scale' and 'bias' and the statistics 'mean' and 'var' in 'batch_stats' are those of
  `nn.BatchNorm`.

  Attributes:
    implementation: 'onednn', 'matmul' or 'native'; see the package.
    use_running_average: whether to use the running statistics in place of the batch's.
    relu: whether to rectify.
    window: of the pool, pixels; (1, 1) for none.
    momentum: share of the running statistics that stays, a step.
    epsilon: added to the variance.
    dtype: of the result; None: that of the input. Normalised in float32.
  """
  implementation: str
  use_running_average: bool
  relu: bool = True
  window: tuple[int, int] = (1, 1)
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
    """Normalises [N, H, W, C], adds `residual`, rectifies and pools."""
    channels = self._channels(x.shape[-1])
    if not self.use_running_average:
      return self._by_batch(x, residual, channels)
    factor, offset = self._line(channels)
    dtype = self.dtype or x.dtype
    y = (x.astype(jnp.float32) * factor.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1))
    y = y.astype(dtype)
    y = y if residual is None else y + residual.astype(dtype)
    return self._pooled(nn.relu(y) if self.relu else y)

  def _channels(self, count: int) -> _Channels:
    shape = (count,)
    return _Channels(
        self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32),
        self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32),
        self.param('scale', nn.initializers.ones_init(), shape, jnp.float32),
        self.param('bias', _BIAS, shape, jnp.float32))

  def _line(self, channels: _Channels) -> tuple[jax.Array, jax.Array]:
    """Factor and offset of each channel that running statistics come down to."""
    return line(channels.mean.value, channels.variance.value, channels.scale, channels.bias,
                self.epsilon)

  def _by_batch(self, x: jax.Array, residual: jax.Array | None, channels: _Channels) -> jax.Array:
    y, *new = batch_norm(x, channels.scale, channels.bias, residual=residual, relu=self.relu,
                         window=self.window, epsilon=self.epsilon, dtype=self.dtype,
                         implementation=self.implementation)
    if not self.is_initializing():
      for old, value in zip((channels.mean, channels.variance), new):
        old.value = self.momentum * old.value + (1 - self.momentum) * value
    return y

  def _pooled(self, y: jax.Array) -> jax.Array:
    return y if self.window == (1, 1) else max_pool(y, self.window,
                                                    implementation=self.implementation)


class ConvBatchNorm(BatchNorm):
  """Convolution and `BatchNorm`.

  The kernel is given. With running statistics BatchNorm is a factor and an offset of each channel,
  which become part of kernel and bias.

  Attributes:
    implementation, use_running_average, relu, window, momentum, epsilon: as in `BatchNorm`.
    dtype: of operands and result; None: what input and kernel promote to. Normalised in float32.
    padding: of the convolution: 'SAME', 'VALID' or pairs of pixels.
    strides: of the convolution, pixels.
    groups: of channels that do not mix.
  """
  padding: Padding = 'SAME'
  strides: tuple[int, int] = (1, 1)
  groups: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, kernel: jax.Array,  # type: ignore[override]
               residual: jax.Array | None = None) -> jax.Array:
    """Convolves with `kernel`, [h, w, C, O], normalises, adds `residual`, rectifies and pools."""
    channels = self._channels(kernel.shape[-1])
    how: dict[str, Any] = {'implementation': self.implementation, 'dtype': self.dtype}
    conv = {**how, 'padding': self.padding, 'strides': self.strides, 'groups': self.groups}
    if not self.use_running_average:
      return self._by_batch(conv2d(x, kernel, **conv), residual, channels)
    factor, offset = self._line(channels)
    kernel = kernel * factor.reshape(1, 1, 1, -1)
    if (self.window != (1, 1) and self.relu and residual is None and self.strides == (1, 1)
        and self.groups == 1):
      return conv_relu_max_pool(x, kernel, offset, window=self.window, padding=self.padding,
                                **how)
    return self._pooled(conv2d(x, kernel, bias=offset, residual=residual, relu=self.relu, **conv))


class MaxPool(nn.Module):
  """`max_pool` with windows that do not overlap, as a layer that tables of layers can list.

  Attributes:
    window: height and width, pixels.
    implementation: see the package.
  """
  window: tuple[int, int]
  implementation: str

  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools."""
    return max_pool(x, self.window, implementation=self.implementation)


class AvgPool(MaxPool):
  """`avg_pool`; see `MaxPool`."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools."""
    return avg_pool(x, self.window, implementation=self.implementation)


class Dense(nn.Module):
  """[..., I] -> [..., features].

  Attributes:
    features: width of the output.
    implementation: 'onednn', 'matmul' or 'native'; see the package.
    use_bias: whether to add one.
    dtype: of operands and result; None: what input and parameters promote to.
  """
  features: int
  implementation: str = 'native'
  use_bias: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Multiplies by the kernel and adds the bias."""
    kernel = self.param('kernel', _KERNEL, (x.shape[-1], self.features), jnp.float32)
    bias = self.param('bias', _BIAS, (self.features,), jnp.float32) if self.use_bias else None
    return dense(x, kernel, bias, dtype=self.dtype, implementation=self.implementation)
