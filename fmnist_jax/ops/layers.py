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
from fmnist_jax.ops.convolution import Padding, along_features, conv2d
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
      bias = self.param('bias', _BIAS, (self.features,), jnp.float32)
      y = y + along_features(bias.astype(y.dtype), self.layout)
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


class Dense(nn.Module):
  """[..., I] -> [..., features].

  Attributes:
    features: width of the output.
    implementation: 'matmul' or 'native'; see the package.
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
    y = dense(x, kernel, dtype=self.dtype, implementation=self.implementation)
    if self.use_bias:
      bias = self.param('bias', _BIAS, (self.features,), jnp.float32).astype(y.dtype)
      y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return y
