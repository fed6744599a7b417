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

  def repeated(function):
    # All that goes in comes from the step before, or XLA does once what is the same every time.
    step = lambda _, args: _after(args, *function(*jax.lax.optimization_barrier(args)))
    return jax.jit(lambda count, *args: jax.lax.fori_loop(0, count, step, args))

  forward, everything = repeated(lambda x, w, dy: (conv(x, w),)), repeated(both)
  return (lambda count: jax.block_until_ready(forward(count, images, kernel, gradient)),
          lambda count: jax.block_until_ready(everything(count, images, kernel, gradient)))


def _after(args: tuple[jax.Array, ...], *results: jax.Array) -> tuple[jax.Array, ...]:
  """Images, kernel and gradient, the kernel not before the results are there."""
  x, w, dy = args
  return x, w + 0 * sum(result.ravel()[0].astype(w.dtype) for result in results), dy


if __name__ == '__main__':
  layers.run(make)
