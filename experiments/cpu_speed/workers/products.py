"""How fast this CPU multiplies matrices in JAX, for what no implementation of a step can beat."""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import protocol

# Rows, inner size, columns: a large square, and cnn's second convolution and dense layer at batch
# 128 as products of patches and kernel, forward and of the weights' gradient.
SIZES = {'square': (2048, 2048, 2048), 'convolution': (15488, 288, 64),
         'convolution, weights': (288, 15488, 64), 'dense': (128, 1600, 128)}


def measure(rows: int, inner: int, columns: int, dtype: str) -> float:
  """GFLOP/s of float32 results from operands of `dtype`: the best of many products."""
  random = np.random.default_rng(0)
  left = jnp.asarray(random.standard_normal((rows, inner)), dtype)
  right = jnp.asarray(random.standard_normal((inner, columns)), dtype)
  product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
  product(left, right).block_until_ready()
  best, spent = float('inf'), 0.0
  while spent < 1.5:
    start = time.perf_counter()
    product(left, right).block_until_ready()
    seconds = time.perf_counter() - start
    best, spent = min(best, seconds), spent + seconds
  return 2e-9 * rows * inner * columns / best


if __name__ == '__main__':
  rates = {name: {dtype: measure(*size, dtype) for dtype in ('float32', 'bfloat16')}
           for name, size in SIZES.items()}
  print(protocol.MARK + json.dumps({'gflops': rates, 'sizes': SIZES}), flush=True)
