"""Matrix products that XLA:CPU runs at full speed, in float32 and in bfloat16.

What its compiler does with bfloat16 operands depends on how the product is written: [M, K] x [K, N]
and [M, K] x [N, K] keep them (fast); [K, M] x [K, N] converts both to float32 first (slow). A
transpose of a small operand is therefore made real, and hidden from the pass that would fold it
back into the product. Copies of 16-bit floats are made as integers: for bfloat16 itself XLA:CPU
goes through float32 and runs on one thread.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


def as_bits(x: jax.Array) -> jax.Array:
  """16-bit floats as uint16, anything else as it is."""
  if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2:
    return lax.bitcast_convert_type(x, jnp.uint16)
  return x


def from_bits(bits: jax.Array, dtype) -> jax.Array:
  """Inverse of `as_bits`."""
  return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """[M, K] x [K, N] -> [M, N], accumulated and returned in float32."""
  return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def matmul_nt(a: jax.Array, b: jax.Array) -> jax.Array:
  """[M, K] x [N, K] -> [M, N], accumulated and returned in float32."""
  return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def transposed(x: jax.Array) -> jax.Array:
  """[A, B] -> [B, A], as a copy that no product absorbs where that would make it slow."""
  if x.dtype.itemsize != 2 or x.shape[0] < 2:
    return x.T
  bits = as_bits(x)
  half = x.shape[0] // 2
  return from_bits(jnp.concatenate([bits[:half].T, bits[half:].T], 1), x.dtype)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *,
          implementation: str, dtype=None) -> jax.Array:
  """[..., I] x [I, O] + [O] -> [..., O] with operands of `dtype`, products summed in float32.

  Args:
    x: inputs.
    kernel: weights; may be float32 while `dtype` is narrower.
    bias: added in `dtype` ('native') or in float32; None: nothing.
    implementation: 'onednn', 'matmul' (the same here) or 'native'; see the package.
    dtype: of the operands and of the result; None: what x and kernel promote to.
  """
  dtype = jnp.dtype(dtype or jnp.promote_types(x.dtype, kernel.dtype))
  if implementation == 'native':
    y = jnp.matmul(x.astype(dtype), kernel.astype(dtype),
                   preferred_element_type=jnp.float32).astype(dtype)
    return y if bias is None else y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))
  if bias is None:
    bias = jnp.zeros((kernel.shape[-1],), kernel.dtype)
  flat = x.reshape(-1, x.shape[-1])
  return _dense(dtype.name, flat, kernel, bias).reshape(*x.shape[:-1], -1).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(dtype: str, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  return matmul(x.astype(dtype), kernel.astype(dtype)) + bias.astype(jnp.float32)[None]


def _dense_forward(dtype, x, kernel, bias):
  # An empty array carries the dtype of the bias.
  return _dense(dtype, x, kernel, bias), (x, kernel, jnp.zeros((0,), bias.dtype))


def _dense_backward(dtype, residuals, dy):
  x, kernel, like = residuals
  dbias = _sum_of_rows(dy).astype(like.dtype)
  dy = dy.astype(dtype)
  dx = matmul_nt(dy, kernel.astype(dtype)).astype(x.dtype)
  return dx, matmul(transposed(x.astype(dtype)), dy).astype(kernel.dtype), dbias


def _sum_of_rows(x):
  """[N, O] -> [O], in two steps: XLA:CPU makes slow windows of a sum of more than 32 rows."""
  rows = next(count for count in range(32, 0, -1) if len(x) % count == 0)
  return x.reshape(-1, rows, x.shape[-1]).sum(0).sum(0)


_dense.defvjp(_dense_forward, _dense_backward)
