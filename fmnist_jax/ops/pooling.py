"""Max and average pooling, native or as elementwise work on strided slices.

XLA's gradient of the native max-pool, select-and-scatter, takes half of a training step on CPU and
is refused on GPU where bits must not vary; the form here has a gradient of its own.

Ties: the gradient of a window's maximum goes to one element, the first of the largest in row-major
order, in both implementations. (In 16 bits, 'matmul' counts +0 as larger than -0.)
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fmnist_jax.ops import onednn
from fmnist_jax.ops.convolution import Padding, explicit_padding
from fmnist_jax.ops.products import as_bits, from_bits


def max_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None = None,
             padding: Padding = 'VALID', *, implementation: str) -> jax.Array:
  """Largest value of each window.

  Args:
    x: [N, H, W, C].
    window: height and width, pixels.
    strides: steps, pixels; None: the window's size.
    padding: 'SAME', 'VALID' or pairs of pixels, which never win.
    implementation: 'onednn', 'matmul' or 'native'; see the package.

  Returns:
    [N, H', W', C] of x's dtype.
  """
  strides = strides or window
  pads = explicit_padding(padding, x.shape[1:3], window, strides)
  many = math.prod(window) >= 2**16  # Who wins is kept in 16 bits.
  if implementation == 'onednn' and not many:
    return onednn.max_pool((window, strides, pads), x)
  if implementation == 'native' or many:
    return nn.max_pool(x, window, strides, pads)
  return _max_pool(window, strides, pads, x)


def avg_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None = None,
             padding: Padding = 'VALID', *, implementation: str) -> jax.Array:
  """Mean of each window, padding counted as zeros; arguments as for `max_pool`."""
  strides = strides or window
  pads = explicit_padding(padding, x.shape[1:3], window, strides)
  if implementation == 'onednn':
    return onednn.mean_pool((window, strides, pads), x)
  if implementation == 'native':
    return nn.avg_pool(x, window, strides, pads)
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
  if window == strides:  # Of a whole image there are too many slices.
    return _split_windows(x, window).astype(jnp.float32).mean((2, 4)).astype(x.dtype)
  total = sum(s.astype(jnp.float32) for s in _slices(x, window, strides))
  return (total / (window[0] * window[1])).astype(x.dtype)


def _slices(x, window, strides):
  """The elements of each window, one [N, H', W', C] array a position, in row-major order."""
  (kh, kw), (sh, sw) = window, strides
  out_h, out_w = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
  return [x[:, i:i + sh * (out_h - 1) + 1:sh, j:j + sw * (out_w - 1) + 1:sw]
          for i in range(kh) for j in range(kw)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max_pool(window, strides, pads, x):
  return _max_pool_forward(window, strides, pads, x)[0]


def _max_pool_forward(window, strides, pads, x):
  padded = x if pads == ((0, 0), (0, 0)) else lax.pad(
      x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
  if window == strides:
    largest, winner = _winners(_split_windows(padded, window), window)
  else:
    slices = _slices(padded, window, strides)
    largest = functools.reduce(jnp.maximum, slices)
    winner = functools.reduce(
        lambda found, at: jnp.where(slices[at] == largest, jnp.int32(at), found),
        reversed(range(len(slices))), jnp.zeros(largest.shape, jnp.int32))
  # An empty array carries the shape of x.
  return largest, (winner, jnp.zeros((*x.shape, 0), x.dtype))


def _split_windows(x: jax.Array, window: tuple[int, int]) -> jax.Array:
  """[A, H, W, B] -> [A, H', h, W', w, B] without the rows and columns that fill no window."""
  (kh, kw), (first, height, width, last) = window, x.shape
  x = x[:, :height // kh * kh, :width // kw * kw]
  return x.reshape(first, height // kh, kh, width // kw, kw, last)


def _positions(window: tuple[int, int], shape: tuple[int, ...], axes: tuple[int, int]) -> jax.Array:
  """Row-major positions in a window, int32, as an array of `shape` with the window at `axes`."""
  # A literal: XLA moves what is computed here out of a training loop, to be read from memory.
  literal = np.arange(window[0] * window[1], dtype=np.int32).reshape(window)
  return lax.broadcast_in_dim(literal, shape, axes)


def _winners(x, window):
  """[A, H', h, W', w, B] -> the largest of each window and its int32 position, [A, H', W', B].

  Both are reductions, which XLA does not compute again for each of their uses.
  """
  count, axes = window[0] * window[1], (2, 4)
  position = _positions(window, x.shape, axes)
  if x.dtype.itemsize == 2:
    # Number and position fit one integer. Sign and magnitude become a number in twos complement.
    key = lax.bitcast_convert_type(x, jnp.int16).astype(jnp.int32)
    key = (key ^ ((key >> 31) & 0x7fff)) * 65536 + (count - 1 - position)
    key = lax.reduce(key, np.int32(-2**31), lax.max, axes)
    winner, key = count - 1 - (key & 0xffff), key >> 16
    largest = lax.bitcast_convert_type((key ^ ((key >> 31) & 0x7fff)).astype(jnp.int16), x.dtype)
    return largest, winner
  largest = lax.reduce(x, np.array(-np.inf, x.dtype), lax.max, axes)
  equal = x == lax.broadcast_in_dim(largest, x.shape, (0, 1, 3, 5))
  return largest, lax.reduce(jnp.where(equal, position, count), np.int32(count), lax.min, axes)


def _to_winners(values: jax.Array, winner: jax.Array, window: tuple[int, int]) -> list[jax.Array]:
  """One array a position of the window: the values where that position won, else zeros."""
  zero = jnp.zeros((), values.dtype)
  return [jnp.where(winner == position, values, zero) for position in range(window[0] * window[1])]


def _join_windows(parts: list[jax.Array], window: tuple[int, int]) -> jax.Array:
  """One [A, H', W', B] a position of the window, in row-major order -> [A, H' h, W' w, B]."""
  (kh, kw), (first, height, width, last) = window, parts[0].shape
  rows = [jnp.stack(parts[i * kw:(i + 1) * kw], 3) for i in range(kh)]
  return jnp.stack(rows, 2).reshape(first, height * kh, width * kw, last)


def _max_pool_backward(window, strides, pads, residuals, dy):
  winner, like = residuals
  dtype, dy = dy.dtype, as_bits(dy)
  size = [like.shape[1 + axis] + sum(pads[axis]) for axis in (0, 1)]
  zero, crop = jnp.zeros((), dy.dtype), [(-low, -high, 0) for low, high in pads]
  parts = _to_winners(dy, winner, window)
  if window == strides:
    dx = _join_windows(parts, window)
    rest = [(0, size[axis] - dx.shape[1 + axis], 0) for axis in (0, 1)]
    dx = from_bits(lax.pad(dx, zero, ((0, 0, 0), *rest, (0, 0, 0))), dtype)
  else:
    spread = []
    for index, part in enumerate(parts):
      spans = [(start, length - start - (step * (out - 1) + 1), step - 1)
               for start, length, step, out in
               zip(divmod(index, window[1]), size, strides, winner.shape[1:3])]
      part = from_bits(lax.pad(part, zero, ((0, 0, 0), *spans, (0, 0, 0))), dtype)
      spread.append(part.astype(jnp.float32))
    dx = functools.reduce(jnp.add, spread).astype(dtype)
  return (lax.pad(dx, jnp.zeros((), dtype), ((0, 0, 0), *crop, (0, 0, 0))),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
