"""Convolution, bias, ReLU and max-pool as one operation with a gradient of its own.

Pooling first gives the same result for a quarter of the elementwise work: adding a bias and
rectifying do not change which element of a window is largest. The gradient needs only where that
was, not the convolution's result.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax.ops.convolution import (
    Padding, add_patches, batch_first, batch_last, conv2d, explicit_padding, pad_pixels, patches)
from fmnist_jax.ops.pooling import max_pool
from fmnist_jax.ops.products import matmul, matmul_nt, transposed


def conv_relu_max_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array, *,
                       window: tuple[int, int], padding: Padding, implementation: str,
                       limit: tuple[int, int] | None = None, dtype=None) -> jax.Array:
  """max_pool(relu(conv2d(x, kernel) + bias)) with windows that do not overlap ('VALID').

  Args:
    x: [N, H, W, C] images.
    kernel: [h, w, C, O].
    bias: [O].
    window: of the pool, which is its stride too, pixels.
    padding: of the convolution; see `conv2d`.
    implementation: 'matmul' or 'native'; see the package.
    limit: compute only so many rows and columns of the result, from the top left; None: all.
    dtype: of operands and result; None: what x and kernel promote to.

  Returns:
    [N, H', W', O] of `dtype`. Where several elements of a window are the largest, the first in
    row-major order receives the gradient.
  """
  dtype = jnp.dtype(dtype or jnp.promote_types(x.dtype, kernel.dtype))
  pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2])
  full = [(x.shape[1 + axis] + sum(pads[axis]) - kernel.shape[axis] + 1) // window[axis]
          for axis in (0, 1)]
  size = [min(pair) for pair in zip(full, limit or full)]
  # Trim the image to what the windows cover.
  pads = tuple(
      (low, out * step + taps - 1 - length - low) for (low, _), out, step, taps, length in
      zip(pads, size, window, kernel.shape[:2], x.shape[1:3]))
  if implementation == 'native':
    y = conv2d(x, kernel, padding=pads, dtype=dtype, implementation='native')
    y = nn.relu(y + bias.astype(dtype)[None, None, None])
    return max_pool(y, window, implementation='native')
  return batch_first(_block(dtype.name, pads, window, batch_last(x), kernel, bias))


def useful_size(pooled: Sequence[int], kernel: int, window: Sequence[int]) -> tuple[int, ...]:
  """Rows and columns that a 'VALID' convolution and its pool read to make `pooled` of them."""
  return tuple(out * step + kernel - 1 for out, step in zip(pooled, window))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _block(dtype, pads, window, x, kernel, bias):
  return _forward(dtype, pads, window, x, kernel, bias)[0]


def _forward(dtype, pads, window, x, kernel, bias):
  kh, kw, _, features = kernel.shape
  taps = patches(pad_pixels(x.astype(dtype), pads), (kh, kw))
  height, width, batch = taps.shape[3:]
  (sh, sw), matrix = window, taps.reshape(-1, height * width * batch)
  y = matmul(transposed(kernel.reshape(-1, features).astype(dtype)), matrix)
  y = y.reshape(features, height // sh, sh, width // sw, sw, batch)
  largest = y.max((2, 4))
  first = jnp.full(largest.shape, sh * sw - 1, jnp.uint8)
  for i, j in reversed([(i, j) for i in range(sh) for j in range(sw)][:-1]):
    first = jnp.where(y[:, :, i, :, j] == largest, jnp.uint8(i * sw + j), first)
  out = nn.relu(largest + bias[:, None, None, None])
  first = jnp.where(out > 0, first, jnp.uint8(255))  # No element of the window.
  return out.astype(dtype), (matrix, first, kernel, jnp.zeros((0,), x.dtype),
                             jnp.zeros((0,), bias.dtype))


def _backward(dtype, pads, window, residuals, dout):
  matrix, first, kernel, like, like_bias = residuals
  kh, kw, channels, features = kernel.shape
  (sh, sw), (_, out_h, out_w, batch) = window, first.shape
  height, width = out_h * sh, out_w * sw
  dout = dout.astype(jnp.float32)
  dbias = jnp.where(first < 255, dout, 0.0).sum((1, 2, 3)).astype(like_bias.dtype)
  spread = lambda a: jnp.broadcast_to(a[:, :, None, :, None],
                                      (features, out_h, sh, out_w, sw, batch))
  position = (jnp.arange(sh)[:, None, None, None] * sw
              + jnp.arange(sw)[None, None, :, None]).astype(jnp.uint8)
  dy = jnp.where(spread(first) == position[None, None], spread(dout), 0.0).astype(dtype)
  dy = dy.reshape(features, -1)
  dkernel = matmul_nt(matrix, dy).reshape(kernel.shape).astype(kernel.dtype)
  taps = matmul(kernel.reshape(-1, features).astype(dtype), dy)
  dx = add_patches(taps.reshape(kh, kw, channels, height, width, batch))
  crop = tuple((-low, -high) for low, high in pads)
  return pad_pixels(dx, crop).astype(like.dtype), dkernel, dbias


_block.defvjp(_forward, _backward)
