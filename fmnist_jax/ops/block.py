"""Convolution, bias, ReLU and max-pool as one operation.

With oneDNN it has a gradient of its own, which needs only where the largest of a window was, and
not the convolution's result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fmnist_jax.ops import onednn
from fmnist_jax.ops.convolution import Padding, conv2d, explicit_padding
from fmnist_jax.ops.pooling import max_pool


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
  # Padding is for the convolution; what is to be trimmed is no part of the image any more.
  high = [min(pad[1], 0) for pad in pads]
  x = x[:, :x.shape[1] + high[0], :x.shape[2] + high[1]]
  pads = tuple((low, max(high, 0)) for low, high in pads)
  if (implementation == 'onednn' and 1 < math.prod(window) < 2**16 and x.size
      and min(size) > 0):
    return onednn.conv_relu_max_pool(pads, window, x.astype(dtype), kernel.astype(jnp.float32),
                                     bias.astype(jnp.float32))
  y = conv2d(x, kernel, padding=pads, bias=bias, relu=True, dtype=dtype,
             implementation=implementation)
  return y if window == (1, 1) else max_pool(y, window, implementation=implementation)


def useful_size(pooled: Sequence[int], kernel: int, window: Sequence[int]) -> tuple[int, ...]:
  """Rows and columns that a 'VALID' convolution and its pool read to make `pooled` of them."""
  return tuple(out * step + kernel - 1 for out, step in zip(pooled, window))
