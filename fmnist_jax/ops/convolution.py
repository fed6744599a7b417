"""2-D convolution: by oneDNN, native, or as one matrix product over shifted copies of the image."""

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
    y = _product(pads, x.astype(dtype), kernel.astype(dtype))
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


def pixels(images: jax.Array, dtype=jnp.float32) -> jax.Array:
  """uint8 images as numbers in [0, 1], of `dtype`; others as they are."""
  if images.dtype != jnp.uint8:
    return images
  scaled = images.astype(jnp.float32) * jnp.float32(1 / 255)
  if dtype != jnp.bfloat16:
    return scaled.astype(dtype)
  # To nearest, ties to even, as integers: XLA:CPU takes several times as long.
  bits = lax.bitcast_convert_type(scaled, jnp.uint32)
  rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
  return lax.bitcast_convert_type(rounded.astype(jnp.uint16), jnp.bfloat16)


@jax.custom_vjp
def _add_bias(y, bias):
  """Images plus one number a channel, in the images' dtype; the gradient is summed in float32."""
  return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)


_add_bias.defvjp(
    lambda y, bias: (_add_bias(y, bias), jnp.zeros((0,), bias.dtype)),
    lambda like, dy: (dy, dy.astype(jnp.float32).sum((0, 1, 2)).astype(like.dtype)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(pads, x, kernel):
  """The convolution as one product, [N H' W', h w C] x [h w C, O]: a row holds a pixel's taps."""
  return _product_forward(pads, x, kernel)[0]


def _product_forward(pads, x, kernel):
  kh, kw, channels, features = kernel.shape
  bits = as_bits(x)
  bits = lax.pad(bits, jnp.zeros((), bits.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
  height, width = bits.shape[1] - kh + 1, bits.shape[2] - kw + 1
  # Two concatenations, which copy long runs: one of all kh * kw slices is four times slower.
  rows = jnp.concatenate([bits[:, :, j:j + width] for j in range(kw)], 3)
  taps = jnp.concatenate([rows[:, i:i + height] for i in range(kh)], 3)
  taps = from_bits(taps, x.dtype).reshape(-1, kh * kw * channels)
  y = matmul(taps, kernel.reshape(-1, features)).astype(x.dtype)
  return y.reshape(len(x), height, width, features), (taps, kernel)


def _product_backward(pads, residuals, dy):
  taps, kernel = residuals
  kh, kw, channels, features = kernel.shape
  batch, height, width, _ = dy.shape
  flat = dy.reshape(-1, features)
  dkernel = matmul(transposed(taps), flat).reshape(kernel.shape).astype(kernel.dtype)
  parts = matmul_nt(flat, kernel.reshape(-1, features))
  parts = parts.reshape(batch, height, width, kh, kw, channels)
  spread = [lax.pad(parts[:, :, :, i, j], jnp.float32(0),
                    ((0, 0, 0), (i - pads[0][0], kh - 1 - i - pads[0][1], 0),
                     (j - pads[1][0], kw - 1 - j - pads[1][1], 0), (0, 0, 0)))
            for i in range(kh) for j in range(kw)]
  return functools.reduce(jnp.add, spread).astype(dy.dtype), dkernel


_product.defvjp(_product_forward, _product_backward)
