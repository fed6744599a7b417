"""A canvas for drawing by formula: integer arithmetic alone, some pictures at a time.

Lengths are in 1/256 pixel; rows and columns are 28. What is drawn is spans: shapes bounded, for
each row (or each column), by two piecewise linear outlines. How much of a pixel they cover is then
exact and quick to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SIDE = 28
SETTING_WORDS = 32  # Random words (64 bits) for the settings of a picture: 128 numbers of 16 bits.
ONE = 256
_MIDDLE = SIDE * ONE // 2
EDGES = np.arange(SIDE, dtype=np.int32) * ONE
# A length that differs from picture to picture, int32 [n], or is the same in all, an int. (A list
# of both kinds is beyond a type checker.)
Place = Any


class Settings:
  """Random numbers of some pictures, handed out one after the other."""

  def __init__(self, words: np.ndarray):
    self._values = words[:, :SETTING_WORDS].copy().view('<u2').astype(np.int32)
    self._next = 0

  def __call__(self, low: int, high: int) -> np.ndarray:
    """Uniform integers from low to high, both included, [n]."""
    self._next += 1
    return low + (self._values[:, self._next - 1] * (high - low + 1) >> 16)

  def chance(self, percent: int) -> np.ndarray:
    """1 with this chance, otherwise 0, [n]."""
    return (self(0, 99) < percent).astype(np.int32)


class Canvas:
  """Some pictures of one garment, each in its own pose."""

  def __init__(self, settings: Settings, n: int):
    self.picture = np.zeros((n, SIDE, SIDE), np.int32)
    # Garments reach 12 pixels from the middle before they are scaled and moved.
    self._scale_x, self._scale_y = settings(190, 290), settings(200, 280)
    self._move_x, self._move_y = settings(-500, 500), settings(-400, 400)
    self._shear = settings(-50, 50)

  def _along(self, points: Sequence[Place], across: bool) -> np.ndarray:
    """Where along an axis: canonical lengths [n] or ints to pixel positions [n, k]."""
    scale, move = (self._scale_x, self._move_x) if across else (self._scale_y, self._move_y)
    values = np.stack([np.broadcast_to(point, scale.shape) for point in points], axis=1)
    return _MIDDLE + (values * scale[:, None] >> 8) + move[:, None]

  def cover(self, at: Sequence[Place], low: Sequence[Place], high: Sequence[Place],
            columns: bool = False) -> np.ndarray:
    """The share (0 to 256) of each pixel between two outlines, [n, 28, 28].

    Args:
      at: where along y (x, for columns) the corners of both outlines are, rising.
      low: the left (upper) outline at these corners.
      high: the right (lower) outline there.
      columns: whether the shape is spanned column by column.
    """
    at_nxk = self._along(at, columns)
    centres = EDGES + ONE // 2
    slant = self._shear[:, None] * (centres - _MIDDLE)[None] >> 8
    low_nxs, high_nxs = (_outline(at_nxk, self._along(points, not columns)) + slant
                         for points in (low, high))
    ends = _overlap(at_nxk[:, :1], at_nxk[:, -1:])
    inside = _overlap(low_nxs[:, :, None], high_nxs[:, :, None])
    covered = inside * ends[:, :, None] >> 8
    return covered.swapaxes(1, 2) if columns else covered

  def add(self, cover: np.ndarray, value: np.ndarray) -> None:
    """Lays cloth of brightness `value` [n] over what is there."""
    self.picture += cover * (value[:, None, None] - self.picture) >> 8

  def shade(self, cover: np.ndarray, strength: np.ndarray) -> None:
    """Darkens by `strength`/256 where covered; brightens where strength is negative."""
    self.picture -= (cover * strength[:, None, None] >> 8) * self.picture >> 8


def _overlap(low: np.ndarray, high: np.ndarray) -> np.ndarray:
  """How much of each pixel, 0 to 256, lies between low and high; adds or fills the last axis."""
  return np.clip(np.minimum(high, EDGES + ONE) - np.maximum(low, EDGES), 0, ONE)


def _outline(at: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Piecewise linear interpolation at the middle of each of the 28 rows: [n, k] -> [n, 28]."""
  centres = EDGES[None] + ONE // 2
  result = np.repeat(values[:, :1], SIDE, axis=1)
  for k in range(at.shape[1] - 1):
    length = np.maximum(at[:, k + 1:k + 2] - at[:, k:k + 1], 1)
    passed = np.clip(centres - at[:, k:k + 1], 0, length)
    result = result + passed * (values[:, k + 1:k + 2] - values[:, k:k + 1]) // length
  return result
