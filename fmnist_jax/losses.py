"""Losses: what training makes small."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax

from fmnist_jax import settings, step
from fmnist_jax.errors import ConfigError
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

  def targets(self, labels: np.ndarray,
              said: Callable[[str], np.ndarray]) -> np.ndarray | None:
    """What training examples are to be taken for; by default None: for what their labels say.

    Args:
      labels: int32 [N].
      said: the work directory of a trained model -> its class probabilities of the examples, not
        augmented, float32 [N, K].

    Returns:
      Class probabilities, float32 [N, K], or None.
    """
    del labels, said
    return None

  def weighed(self, class_counts: np.ndarray) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss for a training set of so many examples of each class, int [K]; by default itself."""
    del class_counts
    return self


@dataclasses.dataclass
class CrossEntropy(Loss):
  """Softmax cross-entropy, nats."""
  label_smoothing: float = setting(
      0.0, 'share of the target spread over all classes (arXiv:1512.00567)', low=0, high=1,
      open_high=True, continuous=True)
  class_weights: str = setting(
      'none', 'what examples weigh; balanced: N / (K n), those of a class of n among N of K '
      'classes, so that all classes count the same', choices=('none', 'balanced'))

  def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """See `Loss`; without weights."""
    return step.cross_entropy(logits, self._smooth(targets))

  def weighed(self, class_counts: np.ndarray) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """See `Loss`."""
    if self.class_weights == 'none':
      return self
    present = np.maximum(class_counts, 1)  # What there is none of weighs nothing anyway.
    weights = (class_counts.sum() / (len(class_counts) * present)).astype(np.float32)
    return lambda logits, targets: step.cross_entropy(logits, self._smooth(targets) * weights[None])

  def _smooth(self, targets: jax.Array) -> jax.Array:
    if is_on(self.label_smoothing):
      return optax.smooth_labels(targets, self.label_smoothing)
    return targets


@dataclasses.dataclass
class Distillation(CrossEntropy):
  """Cross-entropy with what an ensemble of trained models says (arXiv:1503.02531, temperature 1).

  Each training example is taken for the mean of the teachers' probabilities of it, which are
  computed once, when the run starts, of the image as it is: augmentation changes what the student
  sees, not what it is told. The accuracy in training is the share of agreement with the teachers.
  """
  teachers: tuple[str, ...] = setting((), 'work directories of runs trained on the same images')
  label_share: float = setting(0.0, 'share of the label in the target; the rest is the teachers\'',
                               low=0, high=1)

  def check_settings(self, name: str) -> None:
    """Raises ConfigError when there is no teacher."""
    if not self.teachers:
      raise ConfigError(f'{name}.teachers is empty; name the work directory of a trained model at '
                        'least.')

  def targets(self, labels: np.ndarray, said: Callable[[str], np.ndarray]) -> np.ndarray:
    """See `Loss`."""
    taught = np.mean([said(teacher) for teacher in self.teachers], axis=0, dtype=np.float64)
    labelled = np.eye(taught.shape[1])[labels]
    return (self.label_share * labelled + (1 - self.label_share) * taught).astype(np.float32)
