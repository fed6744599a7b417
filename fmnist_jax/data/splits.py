"""Fixed, stratified choices of examples, the same for every seed and numpy version."""

from __future__ import annotations

import numpy as np

# What a choice is for; choices for different purposes are independent.
VALIDATION, CLEAN_TRAIN, TEST = 1, 2, 3


def stratified(labels: np.ndarray, count: int, purpose: int) -> np.ndarray:
  """Chooses `count` examples, of each class in proportion to how many there are.

  Shares are rounded by largest remainders, the first class first where they are equal. As far as
  `count` allows, a class of two or more gives one at least and keeps one, and a class of one keeps
  it.

  Args:
    labels: int [N].
    count: how many to choose, at most N.
    purpose: one of this module's constants.

  Returns:
    Indices in rising order, int64 [count].
  """
  # The raw bits of a numpy bit generator never change; what Generator makes of them may.
  draws = np.random.Philox(key=purpose).random_raw(len(labels))
  classes, sizes = np.unique(labels, return_counts=True)
  chosen = [np.empty(0, np.int64)]
  for label, number in zip(classes, _shares(sizes, count)):
    members = np.flatnonzero(labels == label)
    chosen.append(members[np.argsort(draws[members], kind='stable')[:number]])
  return np.sort(np.concatenate(chosen))


def _shares(sizes: np.ndarray, count: int) -> np.ndarray:
  """How many each class gives, int [K], of as many as it has, int [K]."""
  total = max(sizes.sum(), 1)
  least, most = np.minimum(sizes - 1, 1), sizes - 1
  if count < least.sum():
    least = np.zeros_like(sizes)
  if count > most.sum():
    most = sizes
  given = np.clip(sizes * count // total, least, most)
  while left := count - given.sum():
    step = np.sign(left)
    able = given < most if step > 0 else given > least
    # Integers, so that equal remainders are equal everywhere.
    short = np.where(able, step * (sizes * count - given * total), np.iinfo(np.int64).min)
    given[np.argmax(short)] += step
  return given
