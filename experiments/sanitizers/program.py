"""Calls what onednn.cc computes from several threads and compares it with jax.lax.

  program.py LIBRARY [WORD]    # WORD: only the operations that have it in their name

`run.py` starts it with a sanitizer and the library that was compiled for that.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fmnist_jax import ops
from fmnist_jax.ops import build, onednn

THREADS = 4
OURS, REFERENCE = 'onednn', 'native'
SIZES = ((0, 4), (1, 21), (33, 21), (128, 4))  # Images and channels.
POOLS = (((2, 2), None, 'VALID'), ((3, 2), (1, 1), 'SAME'), ((2, 3), (3, 2), ((1, 0), (0, 2))))
CONVOLUTIONS = ({}, {'strides': (2, 1), 'padding': ((1, 2), (0, 1))}, {'dilation': (2, 1)},
                {'strides': (2, 2)}, {'groups': 2},
                {'groups': 4, 'strides': (2, 2), 'padding': 'VALID'})


def draw(*shape):
  """Small whole numbers, many of them equal: sums are exact in any order."""
  return np.random.default_rng(sum(shape)).integers(-2, 3, shape).astype(np.float32)


def norm(dtype, window, form, x, scale, bias, residual=None):
  """BatchNorm, a sum, ReLU and a pool; the reference rounds once, at the end."""
  if form == REFERENCE:
    y = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias
    y = nn.relu(y if residual is None else y + residual)
    return nn.max_pool(y, window, window).astype(dtype)
  return ops.batch_norm(x.astype(dtype), scale, bias, window=window, residual=residual, relu=True,
                        implementation=form)[0]


def dropout(form, x):
  """Drops with the bits of a fixed key."""
  key, below, scale = jax.random.key(3), jnp.uint32(40_000), jnp.float32(1.5)
  if form == OURS:
    return onednn.dropout(x, jax.random.key_data(key), below, scale)
  words = jax.random.bits(key, (*x.shape[:-1], (x.shape[-1] + 1) // 2), jnp.uint32)
  bits = jnp.concatenate([words & 0xffff, words >> 16], -1)[..., :x.shape[-1]]
  return jnp.where(bits < below, x * scale.astype(x.dtype), jnp.zeros((), x.dtype))


def cases():
  """(name, dtype, function of a form and arrays, arrays)."""
  with_form = lambda op, form, *args, **how: op(*args, implementation=form, **how)
  for (batch, c), dtype in itertools.product(SIZES, (jnp.float32, jnp.bfloat16)):
    x, vectors = draw(batch, 17, 15, c), (draw(c) + .5, draw(c) / 7)
    for how in CONVOLUTIONS[:None if c % 4 == 0 else 4]:
      f = functools.partial(with_form, ops.conv2d, **{'padding': 'SAME', 'dtype': dtype, **how})
      args = x, draw(3, 2, c // how.get('groups', 1), 8)
      yield 'conv2d', dtype, f, args
      residual = draw(*jax.eval_shape(functools.partial(f, REFERENCE), *args).shape)
      yield 'conv2d', dtype, functools.partial(
          lambda f, form, x, w, bias, residual: f(form, x, w, bias=bias, residual=residual,
                                                  relu=True), f), (*args, draw(8), residual)
    for window in ((1, 1), (2, 2), (2, 3)):
      f = functools.partial(with_form, ops.conv_relu_max_pool, window=window, padding='SAME',
                            dtype=dtype)
      yield 'conv_relu_max_pool', dtype, f, (x, draw(3, 3, c, 5), draw(5))
      yield 'norm', dtype, functools.partial(norm, dtype, window), (x, *vectors)
    yield 'norm', dtype, functools.partial(norm, dtype, (1, 1)), (x, *vectors, x[:, ::-1] / 4)
    for pool, (window, strides, padding) in itertools.product((ops.max_pool, ops.avg_pool), POOLS):
      yield pool.__name__, dtype, functools.partial(
          with_form, pool, window=window, strides=strides, padding=padding), (x.astype(dtype),)
    yield 'dropout', dtype, dropout, (x.astype(dtype),)


def gradients(f, form, dy, *args):
  """Value, and gradients of the arguments for that of the result."""
  y, back = jax.vjp(functools.partial(f, form), *args)
  return y, *back(dy)


def loop(form, x, kernel, scale, bias):
  """Three steps of descent: calls within one program, in a loop, on XLA's threads."""
  def loss(params):
    kernel, scale, bias = params
    y = ops.conv_relu_max_pool(x, kernel, bias, window=(2, 2), padding='SAME', implementation=form)
    y = norm(jnp.float32, (1, 1), form, y, scale, bias)
    y = dropout(form, ops.max_pool(y, (3, 3), (1, 1), 'SAME', implementation=form))
    return jnp.mean(ops.avg_pool(y, (2, 2), implementation=form) ** 2)
  step = lambda _, params: jax.tree.map(lambda p, g: p - 1e-2 * g, params, jax.grad(loss)(params))
  return jax.lax.fori_loop(0, 3, step, (kernel, scale, bias))


def check(name, dtype, got, expected):
  """Raises where something is further off than the rounding of `dtype`."""
  for a, e in zip(got, expected, strict=True):
    a, e = np.asarray(a, np.float64), np.nan_to_num(np.asarray(e, np.float64))  # Means of nothing.
    off = np.max(np.abs(a - e), initial=0) / (1 + np.max(np.abs(e), initial=0))
    if not off <= (3e-2 if dtype == jnp.bfloat16 else 1e-4):
      raise AssertionError(f'{name} {dtype.__name__} {a.shape}: off by {off}')


def main():
  """The command line."""
  build.compiled = lambda runtime: pathlib.Path(sys.argv[1])
  if problem := build.problem():
    sys.exit(problem)
  word, work = ''.join(sys.argv[2:]), []
  for name, dtype, f, args in cases():
    if word in name:
      y = jax.eval_shape(functools.partial(f, REFERENCE), *args)
      args = (draw(*y.shape).astype(y.dtype), *args)
      work.append((name, dtype, functools.partial(gradients, f, OURS), args,
                   jax.jit(functools.partial(gradients, f, REFERENCE))(*args)))
  if not word:
    args = draw(128, 16, 12, 3) / 2, draw(3, 3, 3, 8) / 5, draw(8) + .5, draw(8) / 7
    work.append(('loop', jnp.float32, jax.jit(functools.partial(loop, OURS)), args,
                 jax.jit(functools.partial(loop, REFERENCE))(*args)))

  def every(seed):
    for i in np.random.default_rng(seed).permutation(len(work)):
      name, dtype, f, args, expected = work[i]
      check(name, dtype, f(*args), expected)

  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(every, range(THREADS)))
  print(f'agreed: {len(work) * THREADS}')


if __name__ == '__main__':
  main()
