"""Convolution, bias, ReLU and max-pool as one operation with a gradient of its own.

Pooling first gives the same result for a quarter of the elementwise work: adding a bias and
rectifying do not change which element of a window is largest. The gradient needs only where that
was, not the convolution's result.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fmnist_jax.ops import onednn
from fmnist_jax.ops.convolution import (
    Padding,
    add_patches,
    channels_first,
    conv2d,
    explicit_padding,
    from_channels_first,
    pad_pixels,
    patches,
)
from fmnist_jax.ops.pooling import (
    join_windows,
    max_pool,
    positions,
    split_windows,
    to_winners,
)
from fmnist_jax.ops.products import (
    as_bits,
    from_bits,
    matmul,
    matmul_nt,
    sum_of_channels,
    transposed,
)


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
    implementation: 'onednn', 'matmul' or 'native'; see the package.
    limit: compute only so many rows and columns of the result, from the top left; None: all.
    dtype: of operands and result; None: what x and kernel promote to.

  Returns:
    [N, H', W', O] of `dtype`. Where several elements of a window are the largest, the first in
    row-major order receives the gradient; in 'matmul', elements count as equal when they differ in
    their last bits only: 2 of 24 for a window of 4.
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
  if implementation == 'matmul':
    return from_channels_first(_block(dtype.name, pads, window, channels_first(x), kernel, bias))
  # Padding is for the convolution; what is to be trimmed is no part of the image any more.
  high = [min(pad[1], 0) for pad in pads]
  x = x[:, :x.shape[1] + high[0], :x.shape[2] + high[1]]
  pads = tuple((low, max(high, 0)) for low, high in pads)
  if implementation == 'onednn' and window != (1, 1) and x.size and min(size) > 0:
    return onednn.conv_relu_max_pool(pads, window, x.astype(dtype), kernel.astype(jnp.float32),
                                     bias.astype(jnp.float32))
  y = conv2d(x, kernel, padding=pads, bias=bias, relu=True, dtype=dtype,
             implementation=implementation)
  return y if window == (1, 1) else max_pool(y, window, implementation=implementation)


def useful_size(pooled: Sequence[int], kernel: int, window: Sequence[int]) -> tuple[int, ...]:
  """Rows and columns that a 'VALID' convolution and its pool read to make `pooled` of them."""
  return tuple(out * step + kernel - 1 for out, step in zip(pooled, window))


# The phase form of a block computes every position of a pool window as channels of one product.
# It multiplies by more zeros but touches less memory: worth it for few input channels.
_PHASES_UP_TO = 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _block(dtype, pads, window, x, kernel, bias):
  """Without a gradient to come: nothing is marked, and positions of a window are separate products.

  One result of all positions would not fit the cache.
  """
  kh, kw, channels, features = kernel.shape
  (sh, sw), batch = window, x.shape[-1]
  x, kernel = pad_pixels(x.astype(dtype), pads), kernel.astype(dtype)
  if channels <= _PHASES_UP_TO:
    x = lax.optimization_barrier(x.astype(jnp.float32))
  size = (x.shape[1] - kh + 1) // sh, (x.shape[2] - kw + 1) // sw, batch
  weights = transposed(kernel.reshape(-1, features))
  parts = []
  for i, j in itertools.product(range(sh), range(sw)):
    seen = pad_pixels(x, ((-i, i + 1 - sh), (-j, j + 1 - sw)))
    if channels <= _PHASES_UP_TO:  # Nine multiplications in one pass beat a product of depth nine.
      taps = (seen[c:c + 1, u:u + (size[0] - 1) * sh + 1:sh, v:v + (size[1] - 1) * sw + 1:sw]
              * _column(kernel[u, v, c])
              for u in range(kh) for v in range(kw) for c in range(channels))
      parts.append(functools.reduce(jnp.add, taps))
    else:
      matrix = patches(seen, (kh, kw), window).reshape(weights.shape[1], -1)
      parts.append(matmul(weights, matrix).reshape(features, *size))
  return nn.relu(functools.reduce(jnp.maximum, parts) + _column(bias)).astype(dtype)


def _column(vector):
  """One number a channel, to be added to [C, H, W, N]."""
  return vector.astype(jnp.float32).reshape(-1, 1, 1, 1)


def _forward(dtype, pads, window, x, kernel, bias):
  """Returns [O, H', W', N] and what the gradient needs."""
  kh, kw, channels, features = kernel.shape
  (sh, sw), batch = window, x.shape[-1]
  # Empty arrays carry the dtypes of x and bias to the gradient.
  like = jnp.zeros((0,), x.dtype), jnp.zeros((0,), bias.dtype)
  x = pad_pixels(x.astype(dtype), pads)
  phases = channels <= _PHASES_UP_TO
  if phases:
    taps, weights = patches(x, (kh + sh - 1, kw + sw - 1), window), _shifted(kernel, window)
  else:
    taps, weights = patches(x, (kh, kw)), kernel.reshape(-1, features)
  matrix = taps.reshape(-1, taps.shape[3] * taps.shape[4] * batch)
  y = matmul(transposed(weights.astype(dtype)), matrix)
  if phases:
    y, axes = y.reshape(sh, sw, features, *taps.shape[3:]), (0, 1)
  else:
    y, axes = split_windows(y.reshape(features, *taps.shape[3:]), window), (2, 4)
  marked = _mark(y, axes, window, bias)
  out = _value(marked, window).astype(dtype)
  return out, (matrix, marked, kernel, *like)


def _shifted(kernel, window):
  """[h, w, C, O] -> [(h + sh - 1)(w + sw - 1) C, sh sw O]: the kernel at each window position."""
  (sh, sw), features = window, kernel.shape[-1]
  copies = [jnp.pad(kernel, ((i, sh - 1 - i), (j, sw - 1 - j), (0, 0), (0, 0)))
            for i in range(sh) for j in range(sw)]
  return jnp.stack(copies, 3).reshape(-1, sh * sw * features)


def _unshifted(gradient, kernel_shape, window):
  """The transpose of `_shifted`."""
  kh, kw, channels, features = kernel_shape
  sh, sw = window
  gradient = gradient.reshape(kh + sh - 1, kw + sw - 1, channels, sh, sw, features)
  return sum(gradient[i:i + kh, j:j + kw, :, i, j] for i in range(sh) for j in range(sw))


def _mask(window):
  """The low bits that hold a position in a window."""
  return (1 << (window[0] * window[1] - 1).bit_length()) - 1


def _mark(y, axes, window, bias):
  """The largest of each window plus bias, or 0, with its position in its lowest bits.

  The bits of floats that are not negative are ordered like the floats: one integer maximum pools
  and finds the winner, and reads the convolution's result once. It is written as a reduction
  because XLA does not compute one again for each of its uses, as it does a maximum of slices.
  """
  mask = _mask(window)
  features = next(axis for axis in range(y.ndim) if axis not in axes)
  bias = lax.broadcast_in_dim(bias.astype(jnp.float32), y.shape, (features,))
  bits = lax.bitcast_convert_type(nn.relu(y + bias), jnp.int32)
  return lax.reduce((bits & ~mask) | (mask - positions(window, y.shape, axes)), np.int32(0),
                    lax.max, axes)


def _value(marked, window):
  return lax.bitcast_convert_type(marked & ~_mask(window), jnp.float32)


def _backward(dtype, pads, window, residuals, dout):
  matrix, marked, kernel, like, like_bias = residuals
  kh, kw, channels, features = kernel.shape
  (sh, sw), (_, out_h, out_w, batch) = window, marked.shape
  mask = _mask(window)
  dout = jnp.where(marked > mask, dout, jnp.zeros((), dout.dtype))
  dbias = sum_of_channels(dout).astype(like_bias.dtype)
  winner = mask - (marked & mask)
  parts = to_winners(as_bits(dout.astype(dtype)), winner, window)
  if channels <= _PHASES_UP_TO:
    dy = from_bits(jnp.stack(parts), jnp.dtype(dtype)).reshape(sh * sw * features, -1)
    dkernel = _unshifted(matmul_nt(matrix, dy), kernel.shape, window)
    dx_taps = matmul(_shifted(kernel, window).astype(dtype), dy)
    dx = add_patches(dx_taps.reshape(kh + sh - 1, kw + sw - 1, channels, out_h, out_w, batch),
                     window)
  else:
    dy = from_bits(join_windows(parts, window), jnp.dtype(dtype)).reshape(features, -1)
    dkernel = matmul_nt(matrix, dy).reshape(kernel.shape)
    dx_taps = matmul(kernel.reshape(-1, features).astype(dtype), dy)
    dx = add_patches(dx_taps.reshape(kh, kw, channels, out_h * sh, out_w * sw, batch))
  crop = tuple((-low, -high) for low, high in pads)
  return pad_pixels(dx, crop).astype(like.dtype), dkernel.astype(kernel.dtype), dbias


_block.defvjp(_forward, _backward)
