"""How long a run is, and the course of the learning rate over it."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import NamedTuple

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
