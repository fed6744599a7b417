"""Convolution by oneDNN, and BatchNorm, ReLU and pools around it, for CPUs: NHWC, HWIO.

The handlers are C++ (`onednn.cc`) that XLA calls through its foreign function interface; `build`
makes and loads them. Sums are float32 whatever the dtype of images, float32 or bfloat16; kernels
and other parameters are float32. Under `vmap` members are computed one after another.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmnist_jax.errors import BackendError
from fmnist_jax.ops import build

Pads = tuple[tuple[int, int], tuple[int, int]]


def _call(name: str, results: Any, *args: jax.Array, **attributes: Any) -> Any:
  problem = build.problem()  # Registers the handlers.
  if problem:
    raise BackendError(f'There are no oneDNN operations ({problem}); or set '
                       'train.operations=matmul.')
  return jax.ffi.ffi_call(f'fmnist_jax_{name}', results, vmap_method='sequential')(
      *args, **attributes)


def _call_conv(name: str, results: Any, *args: jax.Array, **attributes: Any) -> Any:
  """`_call` of a convolution: bfloat16 is computed as float32 on processors that have no other."""
  if args[0].dtype != jnp.bfloat16 or build.convolves_bfloat16():
    return _call(name, results, *args, **attributes)
  widened = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, jnp.float32 if leaf.dtype == jnp.bfloat16 else leaf.dtype), results)
  wide = [arg.astype(jnp.float32) for arg in args]
  # Kernels are rounded as they would be; not by a conversion, which XLA may leave out.
  rounded = [jax.lax.reduce_precision(arg, 8, 7) if arg.ndim == 4 else arg for arg in wide]
  return jax.tree.map(lambda found, leaf: found.astype(leaf.dtype),
                      _call(name, widened, *rounded, **attributes), results)


def _ints(*values: int) -> np.ndarray:
  return np.array(values, np.int64)


def _out(size: int, taps: int, stride: int, pads: tuple[int, int], dilation: int = 1) -> int:
  return max((size + sum(pads) - (taps - 1) * dilation - 1) // stride + 1, 0)


# Convolution. `how` is (strides, pads, dilation, groups).
How = tuple[tuple[int, int], Pads, tuple[int, int], int]


def _flat(how: How) -> np.ndarray:
  strides, ((top, bottom), (left, right)), dilation, groups = how
  return _ints(*strides, top, left, bottom, right, *dilation, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def convolution(how: How, relu: bool, x: jax.Array, kernel: jax.Array,
                bias: jax.Array | None = None, residual: jax.Array | None = None) -> jax.Array:
  """[N, H, W, C] by [h, w, C / groups, O] -> [N, H', W', O] of x's dtype; none may be empty.

  Args:
    how: strides, pads, dilation, groups.
    relu: whether to rectify in the end.
    x: float32 or bfloat16.
    kernel: float32.
    bias: float32 [O]; None: none.
    residual: what to add, of the result's shape and dtype; None: nothing.
  """
  return _convolved(how, relu, (1, 1), False, x, kernel, bias, residual)[0]


def _convolved(how, relu, window, keep, x, kernel, bias, residual):
  """The result, after a max-pool of a window, and who won: empty when not kept."""
  strides, pads, dilation, _ = how
  (n, height, width, _), (kh, kw, _, features) = x.shape, kernel.shape
  shape = (n, _out(height, kh, strides[0], pads[0], dilation[0]) // window[0],
           _out(width, kw, strides[1], pads[1], dilation[1]) // window[1], features)
  return _call_conv(
      'conv_forward', (jax.ShapeDtypeStruct(shape, x.dtype), _winners(shape, keep)), x, kernel,
      _or_none(bias, jnp.float32), _or_none(residual, x.dtype), how=_flat(how),
      window=_ints(*window), relu=relu)


def _winners(shape, keep):
  return jax.ShapeDtypeStruct(shape if keep else (0,), jnp.uint16)


def _or_none(array, dtype):
  """An argument of a handler that may be left out."""
  return jnp.zeros((0,), dtype) if array is None else array


def _forward(how, relu, x, kernel, bias=None, residual=None):
  y = convolution(how, relu, x, kernel, bias, residual)
  return y, (x, kernel, bias, _mark(residual), y if relu else None)


def _mark(array):
  """What tells a gradient that there was an array: an empty one, or None."""
  return None if array is None else jnp.zeros((0,), array.dtype)


def _backward(how, relu, residuals, dy):
  x, kernel, bias, residual, y = residuals
  if relu:
    dy = jnp.where(y > 0, dy, jnp.zeros((), dy.dtype))
  dx, dkernel, dbias = _gradients(how, x, kernel, bias is not None, dy)
  return dx, dkernel, dbias, None if residual is None else dy


def _gradients(how, x, kernel, has_bias, dy):
  float32 = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  dkernel, dbias = _call_conv(
      'conv_weights', (float32(kernel.shape), float32((kernel.shape[-1] * has_bias,))), x, dy,
      how=_flat(how))
  dx = _call_conv('conv_data', jax.ShapeDtypeStruct(x.shape, x.dtype), dy, kernel, how=_flat(how))
  return dx, dkernel, dbias if has_bias else None


convolution.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def conv_relu_max_pool(pads: Pads, window: tuple[int, int], x: jax.Array, kernel: jax.Array,
                       bias: jax.Array) -> jax.Array:
  """max_pool(relu(convolution + bias)) with windows that do not overlap."""
  return _convolved(((1, 1), pads, (1, 1), 1), True, window, False, x, kernel, bias, None)[0]


def _block_forward(pads, window, x, kernel, bias):
  how = ((1, 1), pads, (1, 1), 1)
  y, winner = _convolved(how, True, window, True, x, kernel, bias, None)
  size = [_out(x.shape[1 + axis], kernel.shape[axis], 1, pads[axis]) for axis in (0, 1)]
  like = jnp.zeros((len(x), *size, kernel.shape[-1], 0), x.dtype)  # Of the convolution's shape.
  return y, (x, kernel, winner, like)


def _block_backward(pads, window, residuals, dy):
  x, kernel, winner, like = residuals
  dy = _max_gradient((window, window, _NO_PADS), winner, like, dy)
  return _gradients(((1, 1), pads, (1, 1), 1), x, kernel, True, dy)


_NO_PADS = ((0, 0), (0, 0))
conv_relu_max_pool.defvjp(_block_forward, _block_backward)


# BatchNorm with the batch's statistics; ReLU, a sum with other images, a max-pool.

@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def batch_norm(window: tuple[int, int], relu: bool, epsilon: float, x: jax.Array,
               scale: jax.Array, bias: jax.Array, residual: jax.Array | None = None
               ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """[N, H, W, C] -> [N, H // h, W // w, C] of x's dtype, and mean and variance, float32 [C].

  `residual`, of x's shape and dtype, is added before ReLU, where windows are single pixels.
  """
  return _norm_forward(window, relu, epsilon, x, scale, bias, residual)[0]


def _norm_forward(window, relu, epsilon, x, scale, bias, residual):
  n, height, width, channels = x.shape
  shape = n, height // window[0], width // window[1], channels
  float32 = jax.ShapeDtypeStruct((channels,), jnp.float32)
  alone = window == (1, 1)
  y, winner, mean, var = _call(
      'norm_forward',
      (jax.ShapeDtypeStruct(shape, x.dtype),
       jax.ShapeDtypeStruct((0,) if alone else shape, jnp.uint16), float32, float32),
      x, scale, bias, _or_none(residual, x.dtype), window=_ints(*window),
      epsilon=np.float32(epsilon), relu=relu)
  kept = y if alone and relu else jnp.zeros((0,), x.dtype)
  return (y, mean, var), (x, scale, mean, var, winner, kept, _mark(residual))


def _norm_backward(window, relu, epsilon, residuals, gradients):
  x, scale, mean, var, winner, y, residual = residuals
  dy, _, _ = gradients  # Of the statistics nothing is asked: running averages learn nothing.
  float32 = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
  own = residual is not None and relu  # Else the gradient of what is added is dy itself.
  dx, dscale, dbias, dresidual = _call(
      'norm_backward',
      (jax.ShapeDtypeStruct(x.shape, x.dtype), float32, float32,
       jax.ShapeDtypeStruct(x.shape if own else (0,), x.dtype)),
      x, scale, mean, var, winner, y, dy, window=_ints(*window), epsilon=np.float32(epsilon),
      relu=relu)
  return dx, dscale, dbias, None if residual is None else dresidual if own else dy


batch_norm.defvjp(_norm_forward, _norm_backward)


# Pools. `how` is (window, strides, pads).

def _pooled(how, x):
  window, strides, pads = how
  n, height, width, channels = x.shape
  return jax.ShapeDtypeStruct((n, _out(height, window[0], strides[0], pads[0]),
                               _out(width, window[1], strides[1], pads[1]), channels), x.dtype)


def _pool_ints(how):
  window, strides, ((top, _), (left, _)) = how
  return _ints(*window, *strides, top, left)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def max_pool(how: Any, x: jax.Array) -> jax.Array:
  """Largest of each window; of equals the first in row-major order receives the gradient."""
  return _max(how, x, False)[0]


def _max(how, x, keep):
  shape = _pooled(how, x)
  return _call('max_forward', (shape, _winners(shape.shape, keep)), x, how=_pool_ints(how))


def _max_forward(how, x):
  y, winner = _max(how, x, True)
  return y, (winner, jnp.zeros((*x.shape, 0), x.dtype))  # Empty: it carries the shape of x.


def _max_gradient(how, winner, like, dy):
  return _call('max_backward', jax.ShapeDtypeStruct(like.shape[:-1], like.dtype), winner, dy,
               how=_pool_ints(how))


max_pool.defvjp(_max_forward, lambda how, kept, dy: (_max_gradient(how, kept[0], kept[1], dy),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mean_pool(how: Any, x: jax.Array) -> jax.Array:
  """Mean of each window, padding counted as zeros."""
  return _mean_forward(how, x)[0]


def _mean_forward(how, x):
  return (_call('mean_forward', _pooled(how, x), x, how=_pool_ints(how)),
          jnp.zeros((*x.shape, 0), x.dtype))


def _mean_backward(how, like, dy):
  return (_call('mean_backward', jax.ShapeDtypeStruct(like.shape[:-1], like.dtype), dy,
                how=_pool_ints(how)),)


mean_pool.defvjp(_mean_forward, _mean_backward)


@jax.custom_vjp
def dropout(x: jax.Array, key: jax.Array, below: jax.Array, scale: jax.Array) -> jax.Array:
  """x * scale where 16 random bits are below a number, else 0; bits are drawn twice, not kept.

  Args:
    x: float32 or bfloat16, of any shape.
    key: data of a threefry key, uint32 [2].
    below: of 65,536, uint32 scalar.
    scale: float32 scalar.
  """
  return _call('drop', jax.ShapeDtypeStruct(x.shape, x.dtype), x, key, below.reshape(1),
               scale.reshape(1))


dropout.defvjp(lambda x, *how: (dropout(x, *how), how),
               lambda how, dy: (dropout(dy, *how), None, None, None))
