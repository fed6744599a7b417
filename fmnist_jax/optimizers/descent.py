"""What turns gradients into steps: settings, and the optax transformations that they build."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import optax

from fmnist_jax import settings
from fmnist_jax.optimizers.schedules import Constant, Horizon, Number, Schedule
from fmnist_jax.settings import is_on, setting


class UpdateRule(settings.Section):
  """A dataclass of settings that builds an optax transformation: what stands in `optim`."""

  @abc.abstractmethod
  def rate(self, horizon: Horizon) -> optax.Schedule:
    """step -> learning rate; it is what metrics.jsonl records."""

  @abc.abstractmethod
  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """The transformation, learning rate included: its updates are added to the parameters.

    Settings declared as continuous may be traced arrays. One that takes extra arguments is given
    `grad_fn(params, i)`, the gradient of the batch's loss at other parameters, as
    `optax.contrib.sam` wants it; `i` counts for nothing.
    """


@dataclasses.dataclass
class Optimizer(UpdateRule):
  """An update rule with a learning rate and a schedule; one of one's own adds `build`."""
  learning_rate: float = setting(1e-3, 'peak learning rate', low=0, continuous=True)
  schedule: Schedule = dataclasses.field(default_factory=Constant)

  def rate(self, horizon: Horizon) -> optax.Schedule:
    """See `UpdateRule`: the peak times the schedule."""
    shape = self.schedule.build(horizon)
    return lambda step: self.learning_rate * shape(step)


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
  bias_rate: float = setting(0.0, 'learning rate of biases and norms, times that of kernels '
                             '(arXiv:2404.00498); 0: the same', low=0, continuous=True)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `UpdateRule`."""
    return _chain(self, horizon, optax.scale_by_adam(self.b1, self.b2, self.eps))


@dataclasses.dataclass
class AdamW(Adam):
  """Adam with decoupled weight decay, not on biases and norms (arXiv:1711.05101)."""
  weight_decay: float = setting(1e-4, 'times the learning rate, taken from the weights each step',
                                low=0, continuous=True)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `UpdateRule`."""
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
  bias_rate: float = setting(0.0, 'learning rate of biases and norms, times that of kernels '
                             '(arXiv:2404.00498); 0: the same', low=0, continuous=True)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `UpdateRule`."""
    trace = (optax.trace(self.momentum, nesterov=self.nesterov) if is_on(self.momentum)
             else optax.identity())
    return _chain(self, horizon, trace, weight_decay=self.weight_decay)


def _chain(optimizer: Adam | SGD, horizon: Horizon, scale: optax.GradientTransformation,
           weight_decay: Number = 0.0) -> optax.GradientTransformation:
  """Clips, scales, decays, steps, and makes biases step further; what is off is left out."""
  biases = lambda params: jax.tree.map(lambda is_kernel: not is_kernel, decay_mask(params))
  return optax.chain(
      *[optax.clip_by_global_norm(optimizer.clip_norm)] * is_on(optimizer.clip_norm),
      *stepped(scale, weight_decay, optimizer.rate(horizon)),
      *[optax.masked(optax.scale(optimizer.bias_rate), biases)] * is_on(optimizer.bias_rate))


def stepped(scale: optax.GradientTransformation, weight_decay: Number,
            rate: optax.Schedule) -> tuple[optax.GradientTransformation, ...]:
  """Scaled gradients as steps: transformations to be chained.

  Weight decay is decoupled: each step takes the learning rate times `weight_decay` times the
  weights from them (arXiv:1711.05101), on what `decay_mask` marks.
  """
  decay = is_on(weight_decay)
  return (scale, *[optax.add_decayed_weights(weight_decay, mask=decay_mask)] * decay,
          optax.scale_by_learning_rate(rate))
