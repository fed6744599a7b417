"""This library's convolutions, in a loop of one compiled program, as in training."""

from fmnist_jax import machine

machine.prepare_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import layers  # noqa: E402
import numpy as np  # noqa: E402

from fmnist_jax import ops  # noqa: E402

IMPLEMENTATION = ops.default_implementation('cpu')


def make(x: np.ndarray, w: np.ndarray, padding: int, stride: int, groups: int,
         dtype: str) -> tuple[layers.Loop, layers.Loop]:
  """See `layers.run`."""
  images, kernel = jnp.asarray(x, dtype), jnp.asarray(w)
  conv = lambda x, w: ops.conv2d(x, w, padding=((padding,) * 2,) * 2, strides=(stride,) * 2,
                                 groups=groups, dtype=dtype, implementation=IMPLEMENTATION)
  gradient = jnp.ones_like(conv(images, kernel))

  def both(x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
    y, back = jax.vjp(conv, x, w)
    return y, *back(dy)

  @jax.jit
  def forward(x, w, dy, count):
    del dy
    return jax.lax.fori_loop(0, count, lambda _, w: _after(w, conv(x, w)), w)

  @jax.jit
  def everything(x, w, dy, count):
    return jax.lax.fori_loop(0, count, lambda _, w: _after(w, *both(x, w, dy)), w)

  def loop(function):
    return lambda count: jax.block_until_ready(function(images, kernel, gradient, count))
  return loop(forward), loop(everything)


def _after(w: jax.Array, *results: jax.Array) -> jax.Array:
  """The kernel, but not before the results are there."""
  return w + 0 * sum(result.ravel()[0].astype(w.dtype) for result in results)


if __name__ == '__main__':
  layers.run(make)
