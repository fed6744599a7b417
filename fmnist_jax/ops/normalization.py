"""BatchNorm, and a sum, ReLU and a max-pool after it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fmnist_jax.ops import onednn
from fmnist_jax.ops.pooling import max_pool


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
    residual: [N, H, W, C] to add; None: nothing.
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
    # It pools or adds, not both, and windows of less than 65,536 pixels.
    inside = window if residual is None and math.prod(window) < 2**16 else (1, 1)
    y, mean, variance = onednn.batch_norm(inside, relu, epsilon, x.astype(dtype), scale, bias,
                                          residual)
    y = y if inside == window else max_pool(y, window, implementation=implementation)
    return y, *lax.stop_gradient((mean, variance))
  mean, variance = _statistics(x)
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
  """Mean and biased variance of each channel of [N, H, W, C], float32 [C]."""
  x = x.astype(jnp.float32)
  mean = x.mean((0, 1, 2))
  return mean, jnp.maximum((x * x).mean((0, 1, 2)) - mean * mean, 0.0)
