"""Metrics against hand-computed answers, scikit-learn and invariants."""

import json
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_jax import metrics

NAMES = ('shirt', 'coat', 'bag')


def softmax(logits):
  exps = np.exp(logits - logits.max(axis=1, keepdims=True))
  return (exps / exps.sum(axis=1, keepdims=True)).astype(np.float32)


@st.composite
def predictions(draw):
  """Probabilities float32 [N, K] and labels [N], often without some classes on either side."""
  num_classes = draw(st.integers(2, 12))
  count = draw(st.integers(1, 60))
  true_classes = draw(st.sets(st.integers(0, num_classes - 1), min_size=1))
  random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  labels = random.choice(sorted(true_classes), count)
  logits = random.normal(size=(count, num_classes)) * draw(st.sampled_from([0.1, 3.0, 60.0]))
  silent = sorted(draw(st.sets(st.integers(0, num_classes - 1), max_size=num_classes - 1)))
  logits[:, silent] -= 100
  return softmax(logits), labels


def test_confusion_matrix_has_rows_of_true_classes():
  confusion = metrics.confusion_matrix(np.array([0, 0, 0, 1, 2]), np.array([0, 1, 1, 1, 0]), 3)
  np.testing.assert_array_equal(confusion, [[1, 2, 0], [0, 1, 0], [1, 0, 0]])


def test_scores_by_hand():
  # Class 0: 2 predicted, 1 right, 3 true. Class 1: 3 predicted, 1 right, 1 true. Class 2: none.
  confusion = np.array([[1, 2, 0], [0, 1, 0], [1, 0, 0]])
  scores = metrics.class_scores(confusion)
  np.testing.assert_allclose(scores.precision, [1 / 2, 1 / 3, 0], rtol=1e-15)
  np.testing.assert_allclose(scores.recall, [1 / 3, 1, 0], rtol=1e-15)
  np.testing.assert_allclose(scores.f1, [2 / 5, 1 / 2, 0], rtol=1e-15)
  np.testing.assert_array_equal(scores.support, [3, 1, 1])
  assert metrics.accuracy(confusion) == 2 / 5
  assert metrics.macro_f1(confusion) == pytest.approx(0.3, rel=1e-15)


def test_cross_entropy_by_hand():
  probabilities = np.array([[0.5, 0.5], [0.25, 0.75]], np.float32)
  expected = (math.log(2) - math.log(0.75)) / 2
  assert metrics.cross_entropy(probabilities, np.array([0, 1])) == pytest.approx(expected,
                                                                                 rel=1e-15)


def test_cross_entropy_of_a_certain_mistake_is_finite():
  loss = metrics.cross_entropy(np.array([[1.0, 0.0]], np.float32), np.array([1]))
  assert loss == pytest.approx(52 * math.log(2), rel=1e-15)  # float64's epsilon is 2^-52


def test_calibration_error_by_hand():
  # Bin (0.7333, 0.8]: two at 0.75, one right: |1 - 1.5|. Bin (0.9333, 1]: two at 1, both right.
  # Bin (0.4666, 0.5333]: one at 0.5, wrong: |0 - 0.5|. The mean over 5 examples is 1 / 5.
  probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [1, 0], [0, 1], [0.5, 0.5]], np.float32)
  labels = np.array([0, 0, 0, 1, 1])
  assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(0.2, rel=1e-15)


def test_calibration_bins_include_their_upper_edge():
  # 0.5 on the edge of two bins falls with 0.4 below it: |(1 + 0) - 0.9| / 3 + |1 - 0.6| / 3.
  # Had it gone up: |0 - 0.4| + |(1 + 1) - 1.1|.
  probabilities = np.array([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25], [0.6, 0.2, 0.2]])
  error = metrics.expected_calibration_error(probabilities, np.array([1, 0, 0]), bins=2)
  assert error == pytest.approx(0.5 / 3, rel=1e-14)


def calibration_error_slowly(probabilities, labels, bins):
  """Guo et al., written out."""
  top = probabilities.astype(np.float64).max(axis=1)
  right = probabilities.argmax(axis=1) == labels
  error = 0.0
  for i in range(bins):
    inside = (top > i / bins) & (top <= (i + 1) / bins if i + 1 < bins else top <= 2)
    if inside.any():
      error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
  return error


@settings(max_examples=150, deadline=None)
@given(predictions())
def test_summary_agrees_with_scikit_learn(drawn):
  probabilities, labels = drawn
  classes = np.arange(probabilities.shape[1])
  names = [f'class {i}' for i in classes]
  summary = metrics.summarize(probabilities, labels, names)
  guesses = probabilities.argmax(axis=1)

  np.testing.assert_array_equal(summary['confusion_matrix'],
                                sklearn.metrics.confusion_matrix(labels, guesses, labels=classes))
  assert summary['examples'] == len(labels)
  assert summary['accuracy'] == pytest.approx(sklearn.metrics.accuracy_score(labels, guesses),
                                              abs=1e-12)
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='.*(y_pred|classes).*')  # Classes that do not occur.
    balanced = sklearn.metrics.balanced_accuracy_score(labels, guesses)
  assert summary['balanced_accuracy'] == pytest.approx(balanced, abs=1e-12)
  macro_f1 = sklearn.metrics.f1_score(labels, guesses, labels=classes, average='macro',
                                      zero_division=0)
  assert summary['macro_f1'] == pytest.approx(macro_f1, abs=1e-12)
  expected = sklearn.metrics.precision_recall_fscore_support(labels, guesses, labels=classes,
                                                             zero_division=0)
  for i, field in enumerate(('precision', 'recall', 'f1', 'support')):
    np.testing.assert_allclose([entry[field] for entry in summary['per_class']], expected[i],
                               rtol=0, atol=1e-12)
  assert [entry['name'] for entry in summary['per_class']] == names
  with warnings.catch_warnings():
    # Rows of float32 probabilities add up to 1 within 1e-7 only.
    warnings.filterwarnings('ignore', message='.*do not sum to one')
    # Not by keyword: it was renamed in 1.9, which warns of the old name and of the old place.
    warnings.filterwarnings('ignore', category=FutureWarning)
    loss = sklearn.metrics.log_loss(labels, probabilities.astype(np.float64), labels=classes)
  assert summary['loss'] == pytest.approx(loss, rel=1e-12, abs=1e-12)
  assert summary['expected_calibration_error'] == pytest.approx(
      calibration_error_slowly(probabilities, labels, 15), abs=1e-12)
  assert json.loads(json.dumps(summary)) == summary


@settings(max_examples=50, deadline=None)
@given(predictions(), st.integers(0, 60))
def test_confusion_matrices_of_parts_add_up(drawn, cut):
  probabilities, labels = drawn
  guesses, num_classes = probabilities.argmax(axis=1), probabilities.shape[1]
  parts = [metrics.confusion_matrix(labels[part], guesses[part], num_classes)
           for part in (slice(cut), slice(cut, None))]
  np.testing.assert_array_equal(sum(parts),
                                metrics.confusion_matrix(labels, guesses, num_classes))


def test_most_confused_pairs_name_who_was_taken_for_whom():
  confusion = np.array([[90, 10, 0], [5, 15, 0], [0, 10, 40]])
  assert metrics.most_confused(confusion, NAMES, 2) == [
      ('shirt', 'coat', 10, 0.1), ('bag', 'coat', 10, 0.2)]
  assert metrics.most_confused(confusion, NAMES, 99)[2:] == [('coat', 'shirt', 5, 0.25)]
  assert metrics.most_confused(np.diag([3, 0, 2]), NAMES, 5) == []
  assert confusion[0, 0] == 90, 'the caller\'s matrix must stay as it was'


def test_wilson_interval_against_scipy():
  for hits, examples in [(0, 10), (7, 10), (10, 10), (9234, 10_000)]:
    expected = scipy.stats.binomtest(hits, examples).proportion_ci(0.95, method='wilson')
    assert metrics.wilson_interval(hits, examples) == pytest.approx(
        (expected.low, expected.high), abs=1e-12)
  for examples in range(1, 500):  # rounding must not make it leave 0 to 1
    assert metrics.wilson_interval(0, examples)[0] >= 0
    assert metrics.wilson_interval(examples, examples)[1] <= 1
  for hits in (-1, 11):
    with pytest.raises(ValueError, match='no share'):
      metrics.wilson_interval(hits, 10)


def test_mean_interval_by_hand():
  # Mean 2, standard deviation 1; Student's t for 2 degrees of freedom at 97.5 % is 4.302653.
  interval = metrics.mean_interval([1.0, 2.0, 3.0])
  assert interval[:2] == (2.0, 1.0) and interval.values == 3
  assert interval.half_width == pytest.approx(4.30265272991 / math.sqrt(3), rel=1e-10)
  assert metrics.mean_interval([5.0, 5.0]) == (5.0, 0.0, 0.0, 2)


def test_mean_interval_against_scipy():
  values = np.random.default_rng(0).normal(size=9)
  low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
  interval = metrics.mean_interval(values, 0.9)
  assert interval.mean - interval.half_width == pytest.approx(low, abs=1e-12)
  assert interval.mean + interval.half_width == pytest.approx(high, abs=1e-12)


def test_one_value_has_no_interval():
  assert metrics.mean_interval([0.9]) == (0.9, None, None, 1)
  for values in ([], [1.0, math.nan]):
    with pytest.raises(ValueError, match='finite numbers'):
      metrics.mean_interval(values)


def test_paired_difference_is_second_minus_first():
  # Differences 0.1, 0.2, 0.3, however far the seeds lie apart.
  interval = metrics.paired_difference([1.0, 5.0, 9.0], [1.1, 5.2, 9.3])
  assert interval.mean == pytest.approx(0.2, rel=1e-12)
  assert interval.std == pytest.approx(0.1, rel=1e-12)
  expected = scipy.stats.ttest_rel([1.1, 5.2, 9.3], [1.0, 5.0, 9.0]).confidence_interval(0.95)
  assert interval.mean + interval.half_width == pytest.approx(expected.high, rel=1e-12)
  with pytest.raises(ValueError, match='one length'):
    metrics.paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize('labels, guesses, words', [
    ([0, 3], [0, 1], 'between 0 and 3, but there are 3 classes'),
    ([0, -1], [0, 1], 'between -1 and 0'),
    ([0, 1], [0, 3], 'Predictions lie'),
    ([0.0, 1.0], [0, 1], 'whole numbers'),
    ([0, 1], [0], '2 labels but 1 predictions'),
])
def test_bad_labels_are_named(labels, guesses, words):
  with pytest.raises(ValueError, match=words):
    metrics.confusion_matrix(np.array(labels), np.array(guesses), 3)


@pytest.mark.parametrize('probabilities, words', [
    (np.full((2, 3), np.nan), 'not finite'),
    (np.full((1, 3), 1 / 3), r'shape \[N, K\] for 2 labels'),
    (np.full((2, 4), 1 / 4), '3 class names for 4 classes'),
])
def test_bad_probabilities_are_named(probabilities, words):
  with pytest.raises(ValueError, match=words):
    metrics.summarize(probabilities, np.array([0, 1]), NAMES)


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match='no examples'):
    metrics.summarize(np.zeros((0, 3)), np.zeros(0, int), NAMES)
