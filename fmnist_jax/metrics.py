"""How good predictions are: a confusion matrix, what follows from it, calibration, intervals.

Everything is float64 numpy on the host. Confusion matrices are sums over examples, so those of
parts of a data set add up to that of the whole; ratios are taken at the end, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

CALIBRATION_BINS = 15  # as in arXiv:1706.04599


class ClassScores(NamedTuple):
  """Scores of each class, arrays of length K; a ratio with nothing below the line is 0."""
  precision: np.ndarray  # float64: of what was predicted to be the class, the share that is
  recall: np.ndarray  # float64: of what is the class, the share that was found
  f1: np.ndarray  # float64: their harmonic mean
  support: np.ndarray  # int64: examples of the class


class Confusion(NamedTuple):
  """How often one class was taken for another."""
  true: str
  predicted: str
  examples: int
  share: float  # examples / all examples of the true class


class Interval(NamedTuple):
  """A mean with its confidence interval, mean - half_width to mean + half_width.

  One value alone says nothing about spread: `std` and `half_width` are None then.
  """
  mean: float
  std: float | None  # with ddof 1
  half_width: float | None
  values: int


def _check_labels(name: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'{name} must be whole numbers of shape [N], '
                     f'not {labels.dtype} of shape {labels.shape}.')
  if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
    raise ValueError(f'{name} lie between {labels.min()} and {labels.max()}, '
                     f'but there are {num_classes} classes.')
  return labels.astype(np.int64)


def _check_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  probabilities = np.asarray(probabilities, np.float64)
  if probabilities.ndim != 2 or probabilities.shape[0] != np.shape(labels)[0]:
    raise ValueError(f'Probabilities must have shape [N, K] for {np.shape(labels)[0]} labels, '
                     f'not {probabilities.shape}.')
  if not probabilities.size:
    raise ValueError('There are no examples to score.')
  if not np.isfinite(probabilities).all():
    raise ValueError('Some probabilities are not finite numbers.')
  return probabilities


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
  """Counts examples by true class (row) and predicted class (column).

  Args:
    labels: true classes, integers of shape [N].
    predictions: predicted classes, integers of shape [N].
    num_classes: K; classes that do not occur get rows and columns of zeros.

  Returns:
    int64 [K, K]. Matrices of disjoint sets of examples may be added.

  Raises:
    ValueError: for other shapes, or a class outside 0 .. K-1.
  """
  labels = _check_labels('Labels', labels, num_classes)
  predictions = _check_labels('Predictions', predictions, num_classes)
  if labels.shape != predictions.shape:
    raise ValueError(f'There are {labels.size} labels but {predictions.size} predictions.')
  cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
  return cells.reshape(num_classes, num_classes)


def accuracy(confusion: np.ndarray) -> float:
  """The share of examples on the diagonal of a confusion matrix [K, K]; 0 for no examples."""
  return float(np.trace(confusion) / max(np.sum(confusion), 1))


def class_scores(confusion: np.ndarray) -> ClassScores:
  """Precision, recall, F1 and support of each class of a confusion matrix [K, K].

  As scikit-learn with `zero_division=0`: a class never predicted has precision 0, one that does
  not occur has recall 0, and F1 is 2 TP / (2 TP + FP + FN).
  """
  confusion = np.asarray(confusion)
  hits = np.diagonal(confusion).astype(np.float64)
  support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)

  def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return above / np.maximum(below, 1)  # nothing below means nothing above

  return ClassScores(ratio(hits, predicted), ratio(hits, support),
                     ratio(2 * hits, support + predicted), support)


def balanced_accuracy(confusion: np.ndarray) -> float:
  """The mean recall of the classes that occur in a confusion matrix [K, K]; 0 for no examples."""
  scores = class_scores(confusion)
  return float(scores.recall.sum() / max((scores.support > 0).sum(), 1))


def macro_f1(confusion: np.ndarray) -> float:
  """The mean F1 of all K classes, each counting the same, those that never occur included."""
  return float(class_scores(confusion).f1.mean())


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
  """The mean of -ln(probability of the true class), nats.

  Probabilities are taken as they are, in float64, but for clipping to [2.2e-16, 1 - 2.2e-16], as
  scikit-learn's `log_loss` does; rows are not normalised again.

  Args:
    probabilities: [N, K].
    labels: true classes, integers of shape [N].

  Raises:
    ValueError: for other shapes, no examples, numbers that are not finite, unknown classes.
  """
  probabilities = _check_probabilities(probabilities, labels)
  labels = _check_labels('Labels', labels, probabilities.shape[1])
  epsilon = np.finfo(np.float64).eps
  of_truth = np.clip(probabilities[np.arange(labels.size), labels], epsilon, 1 - epsilon)
  return float(-np.log(of_truth).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray,
                               bins: int = CALIBRATION_BINS) -> float:
  """How far the top probability is from the share of right answers (arXiv:1706.04599, eq. 5).

  Examples are sorted by their top probability p into equal-width bins ((i-1)/bins, i/bins]: a
  p on an edge belongs to the bin below it. The error is the mean over bins, weighted by
  examples, of |share right - mean p|.

  Args:
    probabilities: [N, K].
    labels: true classes, integers of shape [N].
    bins: how many.

  Raises:
    ValueError: as `cross_entropy`.
  """
  probabilities = _check_probabilities(probabilities, labels)
  labels = _check_labels('Labels', labels, probabilities.shape[1])
  top = probabilities.max(axis=1)
  right = probabilities.argmax(axis=1) == labels
  upper_edges = np.arange(1, bins) / bins
  bin_of = np.searchsorted(upper_edges, top, side='left')  # the last bin has no upper edge
  surplus = np.bincount(bin_of, weights=right - top, minlength=bins)
  return float(np.abs(surplus).sum() / labels.size)


def summarize(probabilities: np.ndarray, labels: np.ndarray,
              class_names: Sequence[str]) -> dict[str, Any]:
  """Everything in `results.json` that follows from predictions.

  Args:
    probabilities: [N, K]; the prediction is the largest, the first of equals.
    labels: true classes, integers of shape [N].
    class_names: K names.

  Returns:
    JSON values: examples, accuracy, balanced_accuracy, loss, macro_f1, expected_calibration_error,
    confusion_matrix (K rows of true classes) and per_class (name, precision, recall, f1, support of
    each).

  Raises:
    ValueError: as `cross_entropy`, or when the number of names is not K.
  """
  probabilities = _check_probabilities(probabilities, labels)
  num_classes = probabilities.shape[1]
  if len(class_names) != num_classes:
    raise ValueError(f'There are {len(class_names)} class names for {num_classes} classes.')
  confusion = confusion_matrix(labels, probabilities.argmax(axis=1), num_classes)
  scores = class_scores(confusion)
  return {
      'examples': int(confusion.sum()),
      'accuracy': accuracy(confusion),
      'balanced_accuracy': balanced_accuracy(confusion),
      'loss': cross_entropy(probabilities, labels),
      'macro_f1': macro_f1(confusion),
      'expected_calibration_error': expected_calibration_error(probabilities, labels),
      'confusion_matrix': confusion.tolist(),
      'per_class': [
          {'name': name, 'precision': float(precision), 'recall': float(recall), 'f1': float(f1),
           'support': int(support)}
          for name, precision, recall, f1, support in zip(class_names, *scores)],
  }


def most_confused(confusion: np.ndarray, class_names: Sequence[str],
                  count: int) -> list[Confusion]:
  """The most frequent mistakes (true class, predicted class), most frequent first.

  Args:
    confusion: [K, K], rows of true classes.
    class_names: K names.
    count: how many at most; pairs that never occurred are not listed.
  """
  wrong = np.array(confusion)
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind='stable')[:count]
  pairs = [(int(cell) // len(wrong), int(cell) % len(wrong)) for cell in order]
  support = np.sum(confusion, axis=1)
  return [Confusion(class_names[true], class_names[predicted], int(wrong[true, predicted]),
                    float(wrong[true, predicted] / support[true]))
          for true, predicted in pairs if wrong[true, predicted]]


def wilson_interval(hits: int, examples: int, confidence: float = 0.95) -> tuple[float, float]:
  """Where the true share lies when `hits` of `examples` independent tries succeeded.

  The score interval of E. B. Wilson, JASA 22 (1927): unlike hits/examples +- 2 standard errors,
  it stays within 0 and 1 and has width for 0 or all hits.

  Raises:
    ValueError: unless 0 <= hits <= examples and there are examples.
  """
  if not 0 <= hits <= examples or not examples:
    raise ValueError(f'{hits} hits of {examples} examples is no share.')
  z = float(special.ndtri((1 + confidence) / 2))
  share, weight = hits / examples, z**2 / examples
  centre = (share + weight / 2) / (1 + weight)
  half_width = z / (1 + weight) * (share * (1 - share) / examples
                                   + weight / (4 * examples)) ** 0.5
  # Rounding must not push the ends past what is possible.
  return max(centre - half_width, 0.0), min(centre + half_width, 1.0)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
  """The mean of independent values with Student's t interval.

  Args:
    values: [N] numbers, one a seed, say.
    confidence: how often such an interval holds the true mean.

  Raises:
    ValueError: for no values, or values that are not finite.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size or not np.isfinite(values).all():
    raise ValueError('An interval needs a list of one or more finite numbers.')
  if values.size == 1:
    return Interval(float(values[0]), None, None, 1)
  std = float(values.std(ddof=1))
  quantile = float(special.stdtrit(values.size - 1, (1 + confidence) / 2))
  return Interval(float(values.mean()), std, quantile * std / values.size**0.5, values.size)


def paired_difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray,
                      confidence: float = 0.95) -> Interval:
  """The mean of `second - first`, entry by entry, with Student's t interval.

  Entries that belong together must stand at the same place: the same seeds' accuracies, or the
  same test images' correctness (0 or 1, or its mean over seeds).

  Raises:
    ValueError: for lists of different lengths, and as `mean_interval`.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.shape != second.shape:
    raise ValueError(f'Paired values must be of one length, not {first.size} and {second.size}.')
  return mean_interval(second - first, confidence)
