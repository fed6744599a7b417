"""Optimisers and learning-rate schedules, built with optax from their configs."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmnist_jax import config as config_lib
from fmnist_jax.config import is_on


def schedule_shape(schedule: config_lib.Schedule, steps_per_epoch: int,
                   epochs: int) -> optax.Schedule:
  """The learning rate as a share of its peak: step -> value in [0, 1].

  The peak is left out: it is multiplied by this in `learning_rate`.

  Args:
    schedule: kind and settings; shares and factors may be traced arrays, lengths may not.
    steps_per_epoch: to turn epochs into steps.
    epochs: length of the run; the value stays put after it.
  """
  total = steps_per_epoch * epochs

  def steps(some_epochs: float) -> int:
    return round(min(some_epochs * steps_per_epoch, total))

  def after_warmup(rest: optax.Schedule, warmup_epochs: float) -> optax.Schedule:
    warmup = steps(warmup_epochs)
    if not warmup:
      return rest
    # The first step already learns: 1/warmup, 2/warmup, ..., 1.
    rise = optax.linear_schedule(1 / warmup, 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, rest], [warmup])

  match schedule:
    case config_lib.Constant():
      return after_warmup(optax.constant_schedule(1.0), schedule.warmup_epochs)
    case config_lib.Cosine():
      decay = max(total - steps(schedule.warmup_epochs), 1)
      return after_warmup(optax.cosine_decay_schedule(1.0, decay, schedule.final),
                          schedule.warmup_epochs)
    case config_lib.OneCycle():
      rise = round(schedule.rise * total)
      fall = optax.cosine_decay_schedule(1.0, max(total - rise, 1), 1e-4)
      if not rise:
        return fall
      climb = lambda step: 1.0 + (1 / 25 - 1.0) * 0.5 * (
          1.0 + jnp.cos(math.pi * jnp.minimum(step, rise) / rise))
      return optax.join_schedules([climb, fall], [rise])
    case config_lib.Step():
      drops = jnp.array([steps(epoch) for epoch in schedule.epochs], jnp.int32)
      warm = after_warmup(optax.constant_schedule(1.0), schedule.warmup_epochs)
      # Not optax's `piecewise_constant_schedule`: it wants the factor as a Python number.
      return lambda step: warm(step) * jnp.prod(jnp.where(step >= drops, schedule.factor, 1.0))
  raise TypeError(f'No schedule for {type(schedule).__name__}.')


def learning_rate(config: config_lib.Optim, steps_per_epoch: int, epochs: int) -> optax.Schedule:
  """step -> learning rate, the peak times the shape."""
  shape = schedule_shape(config.schedule, steps_per_epoch, epochs)
  return lambda step: config.learning_rate * shape(step)


def decay_mask(params: Any) -> Any:
  """True for what weight decay shrinks: kernels (two or more axes), not biases and norms."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def build(config: config_lib.Optim, steps_per_epoch: int,
          epochs: int) -> optax.GradientTransformation:
  """The optax transformation that a config describes; its numbers may be traced arrays.

  Weight decay is decoupled: each step takes `learning_rate * weight_decay` times the weights
  from them (arXiv:1711.05101), on what `decay_mask` marks.
  """
  stages = []
  if is_on(config.clip_norm):
    stages.append(optax.clip_by_global_norm(config.clip_norm))
  match config:
    case config_lib.SGD():
      if is_on(config.momentum):
        stages.append(optax.trace(config.momentum, nesterov=config.nesterov))
    case config_lib.Adam():
      stages.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
    case _:
      raise TypeError(f'No optimiser for {type(config).__name__}.')
  if isinstance(config, config_lib.AdamW | config_lib.SGD) and is_on(config.weight_decay):
    stages.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
  stages.append(optax.scale_by_learning_rate(learning_rate(config, steps_per_epoch, epochs)))
  return optax.chain(*stages)
