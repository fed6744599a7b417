"""Max and average pooling, native or as elementwise work on strided slices.

XLA's gradient of the native max-pool, select-and-scatter, takes half of a training step on CPU and
is refused on GPU where bits must not vary; the form here has a gradient of its own.

Ties: the gradient of a window's maximum goes to one element, the first of the largest in row-major
order, in both implementations.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fmnist_jax.ops.convolution import Padding, explicit_padding


def max_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None = None,
             padding: Padding = 'VALID', *, implementation: str) -> jax.Array:
  """Largest value of each window.

  Args:
    x: [N, H, W, C].
    window: height and width, pixels.
    strides: steps, pixels; None: the window's size.
    padding: 'SAME', 'VALID' or pairs of pixels, which never win.
    implementation: 'matmul' or 'native'; see the package.

  Returns:
    [N, H', W', C] of x's dtype.
  """
  strides = strides or window
  pads = explicit_padding(padding, x.shape[1:3], window, strides)
  if implementation == 'native':
    return nn.max_pool(x, window, strides, pads)
  return _max_pool(window, strides, pads, x)


def avg_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None = None,
             padding: Padding = 'VALID', *, implementation: str) -> jax.Array:
  """Mean of each window, padding counted as zeros; arguments as for `max_pool`."""
  strides = strides or window
  pads = explicit_padding(padding, x.shape[1:3], window, strides)
  if implementation == 'native':
    return nn.avg_pool(x, window, strides, pads)
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
  total = sum(s.astype(jnp.float32) for s in _slices(x, window, strides))
  return (total / (window[0] * window[1])).astype(x.dtype)


def _slices(x, window, strides):
  """The elements of each window, one [N, H', W', C] array a position, in row-major order."""
  (kh, kw), (sh, sw) = window, strides
  out_h, out_w = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
  return [x[:, i:i + sh * (out_h - 1) + 1:sh, j:j + sw * (out_w - 1) + 1:sw]
          for i in range(kh) for j in range(kw)]


def _padded(x, pads):
  low = jnp.array(-jnp.inf, x.dtype)
  return lax.pad(x, low, ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max_pool(window, strides, pads, x):
  return functools.reduce(jnp.maximum, _slices(_padded(x, pads), window, strides))


def _max_pool_forward(window, strides, pads, x):
  slices = _slices(_padded(x, pads), window, strides)
  largest = functools.reduce(jnp.maximum, slices)
  first = jnp.full(largest.shape, len(slices), jnp.uint8 if len(slices) < 255 else jnp.int32)
  for position in reversed(range(len(slices))):
    first = jnp.where(slices[position] == largest, first.dtype.type(position), first)
  # An empty array carries the shape of x.
  return largest, (first, jnp.zeros((*x.shape, 0), x.dtype))


def _max_pool_backward(window, strides, pads, residuals, dy):
  first, like = residuals
  height, width = (like.shape[1 + axis] + sum(pads[axis]) for axis in (0, 1))
  out_h, out_w = first.shape[1:3]
  (kh, kw), (sh, sw) = window, strides
  zero = jnp.zeros((), dy.dtype)
  dx = 0
  if window == strides:
    repeat = lambda a: jnp.broadcast_to(
        a[:, :, None, :, None], (a.shape[0], out_h, kh, out_w, kw, a.shape[-1]))
    position = (jnp.arange(kh)[:, None, None, None] * kw
                + jnp.arange(kw)[None, None, :, None]).astype(first.dtype)
    dx = jnp.where(repeat(first) == position[None, None], repeat(dy), zero)
    dx = dx.reshape(first.shape[0], out_h * kh, out_w * kw, first.shape[-1])
    dx = lax.pad(dx, zero, ((0, 0, 0), (0, height - out_h * kh, 0), (0, width - out_w * kw, 0),
                            (0, 0, 0)))
  else:
    for i in range(kh):
      for j in range(kw):
        part = jnp.where(first == i * kw + j, dy, zero)
        spans = [(start, size - start - (step * (out - 1) + 1), step - 1)
                 for start, size, step, out in ((i, height, sh, out_h), (j, width, sw, out_w))]
        dx = dx + lax.pad(part, zero, ((0, 0, 0), *spans, (0, 0, 0)))
  crop = ((0, 0, 0), *((-low, -high, 0) for low, high in pads), (0, 0, 0))
  return (lax.pad(dx, zero, crop),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
