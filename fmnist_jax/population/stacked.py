"""The compiled programs of several runs at once: every array has a leading member axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmnist_jax import sharding, step
from fmnist_jax.programs import Programs


def choose(condition: jax.Array, new: Any, old: Any) -> Any:
  """`new` for members where `condition` (bool [M]) holds, `old` for the others, leaf by leaf."""
  def pick(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)
  return jax.tree.map(pick, new, old)


def member(tree: Any, k: int) -> Any:
  """What a tree [M, ...] holds of member `k`."""
  return jax.tree.map(lambda leaf: leaf[k], tree)


class MemberPrograms:
  """`Programs` mapped over members, to be used in their place.

  Arguments and results have a leading member axis, but for data and positions, which all members
  share.

  Attributes: as `Programs` has them, and
    size: how many members there are.
  """

  def __init__(self, programs: Programs, size: int):
    """Args: `programs` of one member, on a mesh with a member axis; `size` divides by its devices.
    """
    def over(function: Callable, axes: tuple[int | None, ...]) -> Callable:
      return jax.vmap(function, in_axes=axes, spmd_axis_name=sharding.MEMBER_AXIS)

    self.alone, self.size = programs, size
    self.horizon, self.number = programs.horizon, programs.number
    self.config, self.mesh, self.freezing = programs.config, programs.mesh, programs.freezing
    self.layout = sharding.by_member(programs.mesh)
    self.init = over(programs.init, (0, 0))
    self.adopt = over(programs.adopt, (0, 0, 0))
    self.order = over(programs.order, (0, 0))
    self.evaluate = over(programs.evaluate, (0, 0, None, None, None))
    self.predict = over(programs.predict, (0, None))
    self._train = over(programs.train, (0, 0, 0, None, None, 0, None, None))

  @property
  def compile_seconds(self) -> float:
    """See `Programs`."""
    return self.alone.compile_seconds

  @property
  def paused_seconds(self) -> float:
    """See `Programs`."""
    return self.alone.paused_seconds

  def put(self, tree: Any) -> Any:
    """Places host arrays with a member axis."""
    return sharding.put(tree, self.layout)

  def epochs(self, value: int | np.ndarray) -> jax.Array:
    """See `Programs`; of each member, or the same for all."""
    return self.put(np.broadcast_to(np.int32(value), (self.size,)))

  def zero(self) -> step.Sums:
    """Sums of nothing for each member, placed."""
    zero = jax.device_get(step.Sums.zero())
    return self.put(jax.tree.map(lambda leaf: np.broadcast_to(leaf, (self.size,)), zero))

  def train(self, state: step.TrainState, sums: step.Sums, hyper: dict[str, jax.Array],
            images: jax.Array, labels: jax.Array, order: jax.Array, start: jax.Array,
            stop: jax.Array, active: jax.Array) -> tuple[step.TrainState, step.Sums]:
    """`Programs.train`; members that are not active (bool [M]) stay as they are."""
    trained = self._train(state, sums, hyper, images, labels, order, start, stop)
    return choose(active, trained, (state, sums))

  def call(self, function: Callable, *args: Any, donate: Sequence[int] = ()) -> Any:
    """See `Programs`."""
    return self.alone.compiled(function, *args, donate=donate, layout=self.layout)(*args)
