"""Fixed, class-balanced choices of examples, the same for every seed and numpy version."""

from __future__ import annotations

import numpy as np

# What a choice is for; choices for different purposes are independent.
VALIDATION, CLEAN_TRAIN, TEST = 1, 2, 3


def balanced(labels: np.ndarray, count: int, purpose: int) -> np.ndarray:
  """Chooses `count` examples, as many of each class as can be.

  Every class gives the same number (the first classes one more where `count` does not divide), but
  none more than twice its share of the data, nor, unless all are wanted, the last one that it has,
  so that a rare class is not used up.

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
  limits = np.minimum(sizes, -(-sizes * 2 * count // max(len(labels), 1)))
  if count <= (sizes - 1).sum():
    limits = np.minimum(limits, sizes - 1)
  given = np.zeros_like(sizes)
  while left := count - given.sum():
    able = np.flatnonzero(given < limits)
    share, extra = divmod(int(left), len(able))
    given[able] = np.minimum(limits[able], given[able] + share)
    if not share:
      given[able[:extra]] += 1
  chosen = []
  for label, number in zip(classes, given):
    members = np.flatnonzero(labels == label)
    chosen.append(members[np.argsort(draws[members], kind='stable')[:number]])
  return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))
