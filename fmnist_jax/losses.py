"""Losses: what training makes small."""

from __future__ import annotations

import abc
import dataclasses

import jax
import optax

from fmnist_jax import settings, step
from fmnist_jax.settings import is_on, setting


class Loss(settings.Section):
  """A dataclass of settings that is called with logits and targets.

  Training makes its mean small. What is measured, in validation and for results, is the
  cross-entropy, whatever the loss.
  """

  @abc.abstractmethod
  def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of each example, float32 [B].

    Args:
      logits: float [B, K].
      targets: class probabilities, float32 [B, K]; one-hot unless an augmentation mixes examples.
    """


@dataclasses.dataclass
class CrossEntropy(Loss):
  """Softmax cross-entropy, nats."""
  label_smoothing: float = setting(
      0.0, 'share of the target spread over all classes (arXiv:1512.00567)', low=0, high=1,
      open_high=True, continuous=True)

  def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """See `Loss`."""
    if is_on(self.label_smoothing):
      targets = optax.smooth_labels(targets, self.label_smoothing)
    return step.cross_entropy(logits, targets)
