"""Flax layers over the operations, with the parameters of `nn.Conv` and `nn.Dense`.

Names ('kernel', 'bias'), shapes and initialisers are theirs and parameters are float32 always, so a
checkpoint does not say which implementation or precision made it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fmnist_jax.ops.block import conv_relu_max_pool
from fmnist_jax.ops.convolution import Padding, add_bias, along_features, conv2d
from fmnist_jax.ops.normalization import batch_norm_relu_max_pool, line
from fmnist_jax.ops.pooling import avg_pool, max_pool
from fmnist_jax.ops.products import dense

_KERNEL, _BIAS = nn.initializers.lecun_normal(), nn.initializers.zeros_init()


class Conv(nn.Module):
  """2-D convolution, [N, H, W, C] -> [N, H', W', features].

  Attributes:
    features: channels of the output.
    kernel_size: height and width, pixels.
    implementation: 'matmul' or 'native'; see the package.
    padding: 'SAME', 'VALID' or pairs of pixels.
    strides: steps of the kernel, pixels.
    use_bias: whether to add one.
    dtype: of operands and result; None: what input and parameters promote to.
    layout: order of the axes of input and result, 'NHWC' or 'CHWN'.
  """
  features: int
  kernel_size: tuple[int, int]
  implementation: str
  padding: Padding = 'SAME'
  strides: tuple[int, int] = (1, 1)
  use_bias: bool = True
  dtype: Any = None
  layout: str = 'NHWC'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves."""
    kernel = self.param('kernel', _KERNEL, (*self.kernel_size, x.shape[self.layout.index('C')],
                                            self.features),
                        jnp.float32)
    y = conv2d(x, kernel, padding=self.padding, strides=self.strides, dtype=self.dtype,
               implementation=self.implementation, layout=self.layout)
    if self.use_bias:
      y = add_bias(y, self.param('bias', _BIAS, (self.features,), jnp.float32), self.layout)
    return y


class ConvReluMaxPool(nn.Module):
  """`Conv` with bias, ReLU and a max-pool of windows that do not overlap, as one operation.

  Attributes:
    features, kernel_size, implementation, padding, dtype, layout: as in `Conv`.
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
  layout: str = 'NHWC'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves, adds the bias, rectifies and pools."""
    kernel = self.param('kernel', _KERNEL, (*self.kernel_size, x.shape[self.layout.index('C')],
                                            self.features),
                        jnp.float32)
    bias = self.param('bias', _BIAS, (self.features,), jnp.float32)
    return conv_relu_max_pool(x, kernel, bias, window=self.window, padding=self.padding,
                              limit=self.limit, dtype=self.dtype, layout=self.layout,
                              implementation=self.implementation)


class ConvKernel(nn.Module):
  """The kernel of a convolution that another layer computes, with the name it has in `nn.Conv`.

  Attributes:
    features: channels of the convolution's output.
    kernel_size: height and width, pixels.
  """
  features: int
  kernel_size: tuple[int, int]

  @nn.compact
  def __call__(self, channels: int) -> jax.Array:
    """float32 [h, w, channels, features]."""
    return self.param('kernel', _KERNEL, (*self.kernel_size, channels, self.features), jnp.float32)


class ConvBatchNormReluMaxPool(nn.Module):
  """Convolution, `nn.BatchNorm`, ReLU and a max-pool of windows that do not overlap.

  Parameters 'scale' and 'bias' and the statistics 'mean' and 'var' in 'batch_stats' are those of
  `nn.BatchNorm`; the kernel is given. With running statistics BatchNorm is a factor and an offset
  of each channel, which become part of kernel and bias.

  Attributes:
    window: of the pool, pixels; (1, 1) for none.
    implementation: 'matmul' or 'native'; see the package.
    use_running_average: whether to use the running statistics in place of the batch's.
    padding: of the convolution: 'SAME', 'VALID' or pairs of pixels.
    momentum: share of the running statistics that stays, a step.
    epsilon: added to the variance.
    dtype: of operands and result; None: what input and kernel promote to. Normalised in float32.
    layout: order of the axes of input and result, 'NHWC' or 'CHWN'.
  """
  window: tuple[int, int]
  implementation: str
  use_running_average: bool
  padding: Padding = 'SAME'
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = None
  layout: str = 'NHWC'

  @nn.compact
  def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with `kernel`, [h, w, C, O], normalises, rectifies and pools."""
    shape = kernel.shape[-1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
    variance = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
    scale = self.param('scale', nn.initializers.ones_init(), shape, jnp.float32)
    bias = self.param('bias', _BIAS, shape, jnp.float32)
    how: dict[str, Any] = {'implementation': self.implementation, 'layout': self.layout,
                           'dtype': self.dtype}
    if self.use_running_average:
      factor, offset = line(mean.value, variance.value, scale, bias, self.epsilon)
      kernel = kernel * along_features(factor, 'NHWC')
      return conv_relu_max_pool(x, kernel, offset, window=self.window,
                                padding=self.padding, **how)
    y, *new = batch_norm_relu_max_pool(conv2d(x, kernel, padding=self.padding, **how), scale, bias,
                                       window=self.window, epsilon=self.epsilon, **how)
    if not self.is_initializing():
      for old, value in zip((mean, variance), new):
        old.value = self.momentum * old.value + (1 - self.momentum) * value
    return y


class MaxPool(nn.Module):
  """`max_pool` with windows that do not overlap, as a layer that tables of layers can list.

  Attributes:
    window: height and width, pixels.
    implementation: see the package.
    layout: order of the axes of input and result, 'NHWC' or 'CHWN'.
  """
  window: tuple[int, int]
  implementation: str
  layout: str = 'NHWC'

  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools."""
    return max_pool(x, self.window, implementation=self.implementation, layout=self.layout)


class AvgPool(MaxPool):
  """`avg_pool`; see `MaxPool`."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools."""
    return avg_pool(x, self.window, implementation=self.implementation, layout=self.layout)


class Dense(nn.Module):
  """[..., I] -> [..., features]; images are flattened in the order (H, W, C) first.

  Attributes:
    features: width of the output.
    implementation: 'matmul' or 'native'; see the package.
    use_bias: whether to add one.
    dtype: of operands and result; None: what input and parameters promote to.
    layout: order of the axes of images, 'NHWC' or 'CHWN'; None: the input is no images.
  """
  features: int
  implementation: str = 'native'
  use_bias: bool = True
  dtype: Any = None
  layout: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Multiplies by the kernel and adds the bias."""
    inputs = x.size // x.shape[self.layout.index('N')] if self.layout else x.shape[-1]
    kernel = self.param('kernel', _KERNEL, (inputs, self.features), jnp.float32)
    bias = self.param('bias', _BIAS, (self.features,), jnp.float32) if self.use_bias else None
    return dense(x, kernel, bias, dtype=self.dtype, implementation=self.implementation,
                 layout=self.layout)
