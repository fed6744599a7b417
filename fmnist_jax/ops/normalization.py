"""BatchNorm, and ReLU, a sum and a max-pool after it, with gradients of their own.

BatchNorm maps each channel by a line a x + b. The largest of a window after it is the largest
before it, or the smallest where a is negative, so pooling comes first and all else is done for the
winners alone.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fmnist_jax.ops import onednn
from fmnist_jax.ops.convolution import channels_first, from_channels_first
from fmnist_jax.ops.pooling import join_windows, max_pool, positions, split_windows, to_winners
from fmnist_jax.ops.products import as_bits, from_bits, sum_of_channels


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, implementation: str,
               residual: jax.Array | None = None, relu: bool = False,
               window: tuple[int, int] = (1, 1), epsilon: float = 1e-5,
               dtype=None) -> tuple[jax.Array, jax.Array, jax.Array]:
  """max_pool(relu(batch_norm(x) + residual)) with the batch's own statistics (arXiv:1502.03167).

  Args:
    x: [N, H, W, C].
    scale: float32 [C].
    bias: float32 [C].
    implementation: 'onednn', 'matmul' or 'native'; see the package.
    residual: [N, H, W, C] to add, where there is no pool; None: nothing.
    relu: whether to rectify.
    window: of the pool, which is its stride too ('VALID'), pixels; (1, 1) for none.
    epsilon: added to the variance.
    dtype: of the result; None: that of x. Computed in float32.

  Returns:
    The result, and mean and biased variance of each channel, float32 [C]. Nothing is
    differentiated through these two: they are for running averages. Ties as in
    `conv_relu_max_pool`.
  """
  dtype = jnp.dtype(dtype or x.dtype)
  residual = None if residual is None else residual.astype(dtype)
  if implementation == 'onednn':
    y, mean, variance = onednn.batch_norm(window, relu, epsilon, x.astype(dtype), scale, bias,
                                          residual)
    return y, *lax.stop_gradient((mean, variance))
  if implementation == 'matmul' and relu and residual is None:
    y, mean, variance = _fused(window, epsilon, dtype.name, channels_first(x), scale, bias)
    return from_channels_first(y), mean, variance
  mean, variance = _statistics(channels_first(x))
  factor, offset = (value.reshape(1, 1, 1, -1)
                    for value in line(mean, variance, scale, bias, epsilon))
  y = (x.astype(jnp.float32) * factor + offset).astype(dtype)
  y = y if residual is None else y + residual
  y = nn.relu(y) if relu else y
  y = y if window == (1, 1) else max_pool(y, window, implementation=implementation)
  return y, *lax.stop_gradient((mean, variance))


def line(mean: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array,
         epsilon: float) -> tuple[jax.Array, jax.Array]:
  """Factor and offset of each channel, [C], that BatchNorm comes down to."""
  factor = scale * lax.rsqrt(variance + epsilon)
  return factor, bias - mean * factor


def _statistics(x):
  """Mean and biased variance of each channel of [C, H, W, N], float32 [C]."""
  x = x.astype(jnp.float32)
  count = x.size // x.shape[0]
  mean = x.sum((1, 2, 3)) / count
  return mean, jnp.maximum(sum_of_channels(x * x) / count - mean * mean, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(window, epsilon, dtype, x, scale, bias):
  return _forward(window, epsilon, dtype, x, scale, bias)[0]


def _forward(window, epsilon, dtype, x, scale, bias):
  mean, variance = _statistics(x)
  # As integers, floats with their negative half turned round are ordered like the floats. The
  # lowest bits give way to the position: one integer maximum finds the winner and its value.
  mask = (1 << (window[0] * window[1] - 1).bit_length()) - 1
  split = split_windows(x, window)
  sign = jnp.where(scale < 0, -1.0, 1.0)
  bits = lax.bitcast_convert_type(
      split.astype(jnp.float32) * sign.reshape(-1, 1, 1, 1, 1, 1), jnp.int32)
  key = ((bits ^ ((bits >> 31) & 0x7fffffff)) & ~mask) | (mask - positions(window, split.shape,
                                                                           (2, 4)))
  key = lax.reduce(key, np.int32(-2**31), lax.max, (2, 4))
  residuals = x, key, sign, scale, bias, mean, variance
  _, _, y = _winners(residuals, window, epsilon)
  return (nn.relu(y).astype(dtype), mean, variance), residuals


def _winners(residuals, window, epsilon):
  """Position, normalised value, and that times scale plus bias, of each window's winner."""
  _, key, sign, scale, bias, mean, variance = residuals
  mask = (1 << (window[0] * window[1] - 1).bit_length()) - 1
  column = lambda vector: vector.reshape(-1, 1, 1, 1)
  value = key & ~mask
  value = lax.bitcast_convert_type(value ^ ((value >> 31) & 0x7fffffff), jnp.float32)
  normal = (value * column(sign) - column(mean)) * column(lax.rsqrt(variance + epsilon))
  return mask - (key & mask), normal, normal * column(scale) + column(bias)


def _backward(window, epsilon, dtype, residuals, cotangents):
  x, _, _, scale, bias, mean, variance = residuals
  winner, normal, y = _winners(residuals, window, epsilon)
  dy = jnp.where(y > 0, cotangents[0].astype(jnp.float32), 0.0)
  dbias, dscale = sum_of_channels(dy), sum_of_channels(dy * normal)
  # The gradient is a line in x, plus a multiple of dy at the winners.
  inverse = lax.rsqrt(variance + epsilon)
  count = x.size // x.shape[0]
  column = lambda vector: vector.reshape(-1, 1, 1, 1)
  slope = -scale * inverse * inverse * dscale / count
  offset = -scale * inverse * dbias / count - slope * mean
  line = lambda x: x.astype(jnp.float32) * column(slope) + column(offset)
  split = split_windows(x, window)
  parts = to_winners(dy * column(scale * inverse), winner, window)
  elements = [split[:, :, i, :, j] for i in range(window[0]) for j in range(window[1])]
  bits = lambda a: as_bits(a.astype(x.dtype))
  dx = join_windows([bits(line(e) + part) for e, part in zip(elements, parts)], window)
  height, width = dx.shape[1:3]
  dx = jnp.concatenate([dx, bits(line(x[:, :height, width:]))], 2)
  dx = jnp.concatenate([dx, bits(line(x[:, height:]))], 1)
  return from_bits(dx, x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_fused.defvjp(_forward, _backward)
