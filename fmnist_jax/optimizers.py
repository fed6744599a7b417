"""Optimisers and learning-rate schedules: their settings and the optax parts they build."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmnist_jax import settings
from fmnist_jax.settings import is_on, setting

Number = float | jax.Array


class Horizon(NamedTuple):
  """How long a run is: steps in an epoch, and epochs."""
  steps_per_epoch: int
  epochs: int

  @property
  def steps(self) -> int:
    """Of the whole run."""
    return self.steps_per_epoch * self.epochs

  def at(self, epochs: Number) -> jax.Array:
    """The step at which so many epochs have passed, float32, a whole number within the run."""
    if isinstance(epochs, (int, float)):  # Which may be too large for an array.
      epochs = min(epochs, self.epochs)
    epochs = jnp.minimum(jnp.asarray(epochs, jnp.float32), self.epochs)
    return jnp.minimum(jnp.round(epochs * self.steps_per_epoch), self.steps)


class Schedule(settings.Section):
  """A dataclass of settings that builds the course of the learning rate."""

  @abc.abstractmethod
  def build(self, horizon: Horizon) -> optax.Schedule:
    """step (int32) -> the learning rate as a share of its peak, in [0, 1].

    Settings declared as continuous may be traced arrays.
    """


def warmed_up(warmup: Number, rest: optax.Schedule, horizon: Horizon) -> optax.Schedule:
  """A linear warm-up of so many epochs, then `rest`, counted from its end.

  The first step already learns: 1/W, 2/W, ..., 1 of W steps.
  """
  if not is_on(warmup):
    return rest
  steps = horizon.at(warmup)
  return lambda step: jnp.where(step < steps, (step + 1) / jnp.maximum(steps, 1),
                                rest(jnp.maximum(step - steps, 0)))


def _half_cosine(step: Number, steps: Number) -> jax.Array:
  """From 1 at step 0 to 0 at `steps`, and after it."""
  share = jnp.minimum(step / jnp.maximum(steps, 1), 1)
  return 0.5 * (1 + jnp.cos(math.pi * share))


@dataclasses.dataclass
class Constant(Schedule):
  """The learning rate stays, after a linear warm-up."""
  warmup_epochs: float = setting(0.0, 'linear warm-up, epochs', low=0, continuous=True)

  def build(self, horizon: Horizon) -> optax.Schedule:
    """See `Schedule`."""
    return warmed_up(self.warmup_epochs, optax.constant_schedule(1.0), horizon)


@dataclasses.dataclass
class Cosine(Schedule):
  """Linear warm-up, then half a cosine down to `final` times the peak (arXiv:1608.03983)."""
  warmup_epochs: float = setting(0.0, 'linear warm-up, epochs', low=0, continuous=True)
  final: float = setting(0.0, 'learning rate at the end, as a share of the peak', low=0, high=1,
                         continuous=True)

  def build(self, horizon: Horizon) -> optax.Schedule:
    """See `Schedule`."""
    fall = horizon.steps - horizon.at(self.warmup_epochs)
    return warmed_up(
        self.warmup_epochs,
        lambda step: self.final + (1 - self.final) * _half_cosine(step, fall), horizon)


@dataclasses.dataclass
class OneCycle(Schedule):
  """Cosine rise from peak/25 to the peak, cosine fall to peak/10,000 (arXiv:1708.07120)."""
  rise: float = setting(0.3, 'share of the run spent rising', low=0, high=1, open_high=True,
                        continuous=True)

  def build(self, horizon: Horizon) -> optax.Schedule:
    """See `Schedule`."""
    rise = horizon.at(self.rise * horizon.epochs)
    climb = lambda step: 1 / 25 + (1 - 1 / 25) * (1 - _half_cosine(step, rise))
    fall = lambda step: 1e-4 + (1 - 1e-4) * _half_cosine(step - rise, horizon.steps - rise)
    return lambda step: jnp.where(step < rise, climb(step), fall(step))


@dataclasses.dataclass
class Step(Schedule):
  """The learning rate is multiplied by `factor` at the end of each epoch named."""
  epochs: tuple[float, ...] = setting((10, 15), 'epochs after which it drops', low=0,
                                      continuous=True)
  factor: float = setting(0.1, 'what it is multiplied by', low=0, high=1, continuous=True)
  warmup_epochs: float = setting(0.0, 'linear warm-up, epochs', low=0, continuous=True)

  def build(self, horizon: Horizon) -> optax.Schedule:
    """See `Schedule`."""
    warm = warmed_up(self.warmup_epochs, optax.constant_schedule(1.0), horizon)
    drops = [horizon.at(epoch) for epoch in self.epochs]
    def rate(step: Number) -> jax.Array:
      share = warm(step)
      for drop in drops:
        share = share * jnp.where(step >= drop, self.factor, 1.0)
      return share
    return rate


@dataclasses.dataclass
class Optimizer(settings.Section):
  """A dataclass of settings that builds an optax transformation; one of one's own adds `build`."""
  learning_rate: float = setting(1e-3, 'peak learning rate', low=0, continuous=True)
  schedule: Schedule = dataclasses.field(default_factory=Constant)

  def rate(self, horizon: Horizon) -> optax.Schedule:
    """step -> learning rate, the peak times the schedule; it is what metrics.jsonl records."""
    shape = self.schedule.build(horizon)
    return lambda step: self.learning_rate * shape(step)

  @abc.abstractmethod
  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """The transformation, learning rate included: its updates are added to the parameters.

    Settings declared as continuous may be traced arrays.
    """


def decay_mask(params: Any) -> Any:
  """True for what weight decay shrinks: kernels (two or more axes), not biases and norms."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@dataclasses.dataclass
class Adam(Optimizer):
  """Adam (arXiv:1412.6980)."""
  b1: float = setting(0.9, 'decay of the mean of gradients', low=0, high=1, open_high=True,
                      continuous=True)
  b2: float = setting(0.999, 'decay of the mean of squares', low=0, high=1, open_high=True,
                      continuous=True)
  eps: float = setting(1e-8, 'added to the root in the denominator', low=0, continuous=True)
  clip_norm: float = setting(0.0, 'largest global norm of the gradient; 0: no clipping', low=0,
                             continuous=True)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `Optimizer`."""
    return _chain(self, horizon, optax.scale_by_adam(self.b1, self.b2, self.eps))


@dataclasses.dataclass
class AdamW(Adam):
  """Adam with decoupled weight decay, not on biases and norms (arXiv:1711.05101)."""
  weight_decay: float = setting(1e-4, 'times the learning rate, taken from the weights each step',
                                low=0, continuous=True)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `Optimizer`."""
    return _chain(self, horizon, optax.scale_by_adam(self.b1, self.b2, self.eps),
                  weight_decay=self.weight_decay)


@dataclasses.dataclass
class SGD(Optimizer):
  """Stochastic gradient descent with Nesterov momentum and decoupled weight decay."""
  learning_rate: float = setting(0.05, 'peak learning rate', low=0, continuous=True)
  momentum: float = setting(0.9, 'decay of the velocity', low=0, high=1, open_high=True,
                            continuous=True)
  nesterov: bool = setting(True, 'look ahead along the velocity')
  weight_decay: float = setting(0.0, 'times the learning rate, taken from the weights each step',
                                low=0, continuous=True)
  clip_norm: float = setting(0.0, 'largest global norm of the gradient; 0: no clipping', low=0,
                             continuous=True)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `Optimizer`."""
    trace = (optax.trace(self.momentum, nesterov=self.nesterov) if is_on(self.momentum)
             else optax.identity())
    return _chain(self, horizon, trace, weight_decay=self.weight_decay)


def _chain(optimizer: Adam | SGD, horizon: Horizon, scale: optax.GradientTransformation,
           weight_decay: Number = 0.0) -> optax.GradientTransformation:
  """Clips, scales, decays and steps; what is switched off is left out.

  Weight decay is decoupled: each step takes `learning_rate * weight_decay` times the weights
  from them (arXiv:1711.05101), on what `decay_mask` marks.
  """
  clip, decay = is_on(optimizer.clip_norm), is_on(weight_decay)
  return optax.chain(
      *[optax.clip_by_global_norm(optimizer.clip_norm)] * clip, scale,
      *[optax.add_decayed_weights(weight_decay, mask=decay_mask)] * decay,
      optax.scale_by_learning_rate(optimizer.rate(horizon)))
