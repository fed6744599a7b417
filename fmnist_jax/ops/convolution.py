"""2-D convolution: by oneDNN, native, or as one matrix product over shifted copies of the image.

The product form keeps the batch innermost, [C, H, W, N]: a row of N numbers is then contiguous
however the image is shifted, so copies run at memory speed, elementwise work vectorises over the
batch for any H and W, and all three products (result, both gradients) have a fast orientation. Each
operation transposes what it takes and gives; where two follow each other, XLA leaves both out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Union

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fmnist_jax.ops import onednn
from fmnist_jax.ops.products import (
    as_bits,
    from_bits,
    matmul,
    matmul_nt,
    transposed,
)

Padding = Union[str, Sequence[tuple[int, int]]]


def conv2d(x: jax.Array, kernel: jax.Array, *, padding: Padding, implementation: str,
           bias: jax.Array | None = None, residual: jax.Array | None = None, relu: bool = False,
           strides: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1), groups: int = 1,
           dtype=None) -> jax.Array:
  """Cross-correlation of images with a kernel, as `jax.lax.conv_general_dilated` defines it.

  Args:
    x: [N, H, W, C] images.
    kernel: [h, w, C / groups, O] weights; may be float32 while `dtype` is narrower.
    padding: 'SAME', 'VALID' or ((top, bottom), (left, right)) pixels of zeros.
    implementation: 'onednn', 'matmul' or 'native'; what 'matmul' does not cover (strides, dilation,
      groups) and what is empty is done by 'native'.
    bias: [O] to add; None: nothing.
    residual: [N, H', W', O] to add; None: nothing.
    relu: whether to rectify in the end.
    strides: steps of the kernel over the image, pixels.
    dilation: distance between the taps of the kernel, pixels.
    groups: groups of channels that do not mix.
    dtype: of the operands and of the result, products being summed in float32; None: what x and
      kernel promote to.

  Returns:
    [N, H', W', O] of `dtype`.
  """
  dtype = jnp.dtype(dtype or jnp.promote_types(x.dtype, kernel.dtype))
  residual = None if residual is None else residual.astype(dtype)
  if implementation == 'onednn' and x.size and kernel.size:
    reach = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], dilation)]
    pads = explicit_padding(padding, x.shape[1:3], reach, strides)
    if all(size + sum(pad) >= taps for size, pad, taps in zip(x.shape[1:3], pads, reach)):
      bias = None if bias is None else bias.astype(jnp.float32)
      return onednn.convolution((strides, pads, dilation, groups), relu, x.astype(dtype),
                                kernel.astype(jnp.float32), bias, residual)
  if implementation == 'matmul' and strides == (1, 1) and dilation == (1, 1) and groups == 1:
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2])
    y = from_channels_first(_conv2d(dtype.name, pads, channels_first(x), kernel)).astype(dtype)
  else:
    y = lax.conv_general_dilated(
        x.astype(dtype), kernel.astype(dtype), strides, padding, rhs_dilation=dilation,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)
  y = y if bias is None else _add_bias(y, bias)
  y = y if residual is None else y + residual
  return nn.relu(y) if relu else y


def explicit_padding(padding: Padding, size: Sequence[int], window: Sequence[int],
                     strides: Sequence[int] = (1, 1)) -> tuple[tuple[int, int], ...]:
  """((top, bottom), (left, right)) pixels for a named or explicit padding."""
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  return tuple((int(low), int(high)) for low, high in padding)


def pixels(images: jax.Array) -> jax.Array:
  """uint8 images as float32 in [0, 1]; others as they are."""
  if images.dtype != jnp.uint8:
    return images
  return images.astype(jnp.float32) * jnp.float32(1 / 255)


def channels_first(x: jax.Array) -> jax.Array:
  """[N, H, W, C] -> [C, H, W, N]."""
  return x.transpose(3, 1, 2, 0)


from_channels_first = channels_first  # Its own inverse.


@jax.custom_vjp
def _add_bias(y, bias):
  """Images plus one number a channel, in the images' dtype; the gradient is summed in float32."""
  return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)


_add_bias.defvjp(
    lambda y, bias: (_add_bias(y, bias), jnp.zeros((0,), bias.dtype)),
    lambda like, dy: (dy, dy.astype(jnp.float32).sum((0, 1, 2)).astype(like.dtype)))


def patches(x: jax.Array, window: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> jax.Array:
  """[C, H, W, N] -> [h, w, C, H', W', N]: the image under each tap of the kernel.

  Two concatenations, first along W and then along H, copy long runs; one of all h * w slices is
  four times slower.
  """
  (kh, kw), (sh, sw) = window, stride
  channels, height, width, batch = x.shape
  out_h, out_w = (height - kh) // sh + 1, (width - kw) // sw + 1
  bits = as_bits(x)
  rows = jnp.concatenate([bits[:, :, j:j + sw * (out_w - 1) + 1:sw] for j in range(kw)], 0)
  taps = jnp.concatenate([rows[:, i:i + sh * (out_h - 1) + 1:sh] for i in range(kh)], 0)
  return from_bits(taps, x.dtype).reshape(kh, kw, channels, out_h, out_w, batch)


def add_patches(taps: jax.Array, stride: tuple[int, int] = (1, 1)) -> jax.Array:
  """[h, w, C, H', W', N] -> [C, H, W, N]: the transpose of `patches`."""
  (kh, kw), (sh, sw) = taps.shape[:2], stride
  zero = jnp.zeros((), taps.dtype)
  spread = [lax.pad(taps[i, j], zero, ((0, 0, 0), (i, kh - 1 - i, sh - 1),
                                       (j, kw - 1 - j, sw - 1), (0, 0, 0)))
            for i in range(kh) for j in range(kw)]
  return functools.reduce(jnp.add, spread)


def pad_pixels(x: jax.Array, pads: tuple[tuple[int, int], ...]) -> jax.Array:
  """Zeros around [C, H, W, N]; negative pads crop."""
  if pads == ((0, 0), (0, 0)):
    return x
  bits = as_bits(x)
  config = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
  return from_bits(lax.pad(bits, jnp.zeros((), bits.dtype), config), x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d(dtype, pads, x, kernel):
  return _conv2d_forward(dtype, pads, x, kernel)[0]


def _conv2d_forward(dtype, pads, x, kernel):
  kh, kw, _, features = kernel.shape
  taps = patches(pad_pixels(x.astype(dtype), pads), (kh, kw))
  matrix = taps.reshape(-1, taps.shape[3] * taps.shape[4] * taps.shape[5])
  y = matmul(transposed(kernel.reshape(-1, features).astype(dtype)), matrix)
  # An empty array carries the dtype of x to the gradient.
  return y.reshape(features, *taps.shape[3:]), (matrix, kernel, jnp.zeros((0,), x.dtype))


def _conv2d_backward(dtype, pads, residuals, dy):
  matrix, kernel, like = residuals
  kh, kw, channels, features = kernel.shape
  _, height, width, batch = dy.shape
  dy = dy.astype(dtype).reshape(features, -1)
  dkernel = matmul_nt(matrix, dy).reshape(kernel.shape).astype(kernel.dtype)
  taps = matmul(kernel.reshape(-1, features).astype(dtype), dy)
  dx = add_patches(taps.reshape(kh, kw, channels, height, width, batch))
  crop = tuple((-low, -high) for low, high in pads)
  return pad_pixels(dx, crop).astype(like.dtype), dkernel


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)
