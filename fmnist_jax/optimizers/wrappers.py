"""Update rules around another: `Lookahead(base=AdamW())`, `SAM(base=SGD())`."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmnist_jax.optimizers.descent import SGD, UpdateRule
from fmnist_jax.optimizers.schedules import Horizon
from fmnist_jax.settings import is_on, setting


@dataclasses.dataclass
class Wrapper(UpdateRule):
  """An update rule that makes something else of the steps of another, `base`."""
  base: UpdateRule = dataclasses.field(default_factory=SGD)

  def rate(self, horizon: Horizon) -> optax.Schedule:
    """See `UpdateRule`; that of `base`."""
    return self.base.rate(horizon)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `UpdateRule`."""
    return self.around(optax.with_extra_args_support(self.base.build(horizon)), horizon)

  @abc.abstractmethod
  def around(self, base: optax.GradientTransformationExtraArgs,
             horizon: Horizon) -> optax.GradientTransformation:
    """The transformation around that of `base`."""


class LookaheadState(NamedTuple):
  """Of the base; the slow weights; steps since they moved, int32 scalar."""
  base: Any
  slow: Any
  steps: jax.Array


@dataclasses.dataclass
class Lookahead(Wrapper):
  """Goes `period` steps forward, then back to a point on the way (arXiv:1907.08610).

  The slow weights then are where the weights go on from. They move at the end of each epoch too, so
  that what is measured and saved there are the slow weights, as in the paper.
  """
  period: int = setting(5, 'steps forward', low=1)
  slow_step: float = setting(0.5, 'share of the way that the slow weights follow', low=0, high=1,
                             continuous=True)

  def around(self, base: optax.GradientTransformationExtraArgs,
             horizon: Horizon) -> optax.GradientTransformation:
    """See `Wrapper`."""
    def init(params: Any) -> LookaheadState:
      return LookaheadState(base.init(params), params, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: LookaheadState, params: Any = None,
               **extra: Any) -> tuple[Any, LookaheadState]:
      updates, inner = base.update(updates, state.base, params, **extra)
      steps = (state.steps + 1) % horizon.steps_per_epoch  # Within the epoch.
      moves = (steps % self.period == 0) | (steps == 0)
      slow = jax.tree.map(
          lambda slow, weight, step: jnp.where(
              moves, slow + self.slow_step * (weight + step - slow), slow),
          state.slow, params, updates)
      updates = jax.tree.map(lambda slow, weight, step: jnp.where(moves, slow - weight, step),
                             slow, params, updates)
      return updates, LookaheadState(inner, slow, steps)

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass
class SAM(Wrapper):
  """Sharpness-aware minimisation: the gradient is that of the worst place near (arXiv:2010.01412).

  That place is `rho` up along the gradient, which is computed a second time there: an epoch takes
  about twice as long. Dropout is the same both times; BatchNorm keeps the statistics of the first.
  """
  rho: float = setting(0.05, 'distance up the slope at which the gradient is taken', low=0,
                       continuous=True)

  def around(self, base: optax.GradientTransformationExtraArgs,
             horizon: Horizon) -> optax.GradientTransformation:
    """See `Wrapper`."""
    del horizon
    if not is_on(self.rho):
      return base

    def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any,
               **extra: Any) -> tuple[Any, Any]:
      norm = optax.tree.norm(updates)
      # Without a slope there is no way up.
      way = jnp.where(norm > 0, self.rho / jnp.where(norm > 0, norm, 1.0), 0.0)
      above = jax.tree.map(lambda weight, slope: weight + way * slope, params, updates)
      return base.update(grad_fn(above, 0), state, params, grad_fn=grad_fn, **extra)

    return optax.GradientTransformationExtraArgs(base.init, update)
