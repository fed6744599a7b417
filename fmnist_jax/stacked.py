"""The compiled programs of several runs at once: every array has a leading member axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fmnist_jax import sharding, step
from fmnist_jax.epoch import Programs


def choose(condition: jax.Array, new: Any, old: Any) -> Any:
  """`new` for members where `condition` (bool [M]) holds, `old` for the others, leaf by leaf."""
  def pick(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)
  return jax.tree.map(pick, new, old)


class MemberPrograms:
  """The functions of a run, over members.

  Arguments and results have a leading member axis, but for data and positions, which all members
  share.
  """

  def __init__(self, programs: Programs):
    """Args: `programs` of one member, on a mesh with a member axis."""
    def over(function: Callable, axes: tuple[int | None, ...]) -> Callable:
      return jax.vmap(function, in_axes=axes, spmd_axis_name=sharding.MEMBER_AXIS)

    self.alone = programs
    self.init = over(programs.init, (0, 0))
    self.order = over(programs.order, (0, None))
    self.evaluate = over(programs.evaluate, (0, 0, None, None, None))
    self.predict = over(programs.predict, (0, None))
    self._train = over(programs.train, (0, 0, 0, None, None, 0, None, None))

  def train(self, state: step.TrainState, sums: step.Sums, hyper: dict[str, jax.Array],
            images: jax.Array, labels: jax.Array, order: jax.Array, start: jax.Array,
            stop: jax.Array, active: jax.Array) -> tuple[step.TrainState, step.Sums]:
    """`Programs.train`; members that are not active (bool [M]) stay as they are."""
    trained = self._train(state, sums, hyper, images, labels, order, start, stop)
    return choose(active, trained, (state, sums))

  def call(self, function: Callable, *args: Any, donate: Sequence[int] = ()) -> Any:
    """Compiles one of the functions for these arguments, unless it is, and calls it."""
    compiled = self.alone.compiled(function, *args, donate=donate,
                                   out_shardings=sharding.by_member(self.alone.mesh))
    return compiled(*args)
