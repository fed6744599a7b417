"""Ten garments drawn by formula: a stand-in for Fashion-MNIST where there is no network.

Every picture is a pure function of (seed, split, number), with the same bits on every machine and
numpy version: raw bits of the counter-based Philox generator (Salmon et al., 2011), and integer
arithmetic only. Lengths are in 1/256 pixel.

A garment is a union of spans: shapes bounded, for each row (or, for shoes and bags, each column),
by two piecewise linear outlines, which makes coverage of a pixel exact and quick to compute.
Number i is of class i % 10.
"""

from __future__ import annotations

import numpy as np

from fmnist_jax.data import canvas, garments, originals

CLASS_NAMES = originals.ORIGINALS['fashion_mnist'].class_names
# To be raised whenever a single bit of a picture changes: prepared copies go by it.
VERSION = '1.0.0'

_NOISE_WORDS = canvas.SIDE * canvas.SIDE * 2 // 8
_WORDS = canvas.SETTING_WORDS + _NOISE_WORDS
_PHILOX_BLOCK = 4  # Words a step of the counter; _WORDS is a multiple of it.
_BATCH = 500  # Pictures drawn at once, so that intermediate arrays stay in the cache.


def draw(numbers: np.ndarray, *, seed: int = 0, split: str = 'train') -> tuple[np.ndarray,
                                                                               np.ndarray]:
  """Draws examples.

  Args:
    numbers: which ones, integers >= 0, [N].
    seed: 0 to 2**62.
    split: 'train' or 'test', which have no picture in common.

  Returns:
    Images uint8 [N, 28, 28, 1] and labels int32 [N].
  """
  numbers = np.asarray(numbers, np.int64)
  images = np.empty((len(numbers), canvas.SIDE, canvas.SIDE, 1), np.uint8)
  for start in range(0, len(numbers), _BATCH):
    part = slice(start, start + _BATCH)
    words = _words(numbers[part], 2 * seed + (split == 'test'))
    for label in range(len(CLASS_NAMES)):
      chosen = np.flatnonzero(numbers[part] % len(CLASS_NAMES) == label)
      if len(chosen):
        images[start + chosen, :, :, 0] = _picture(label, words[chosen])
  return images, (numbers % len(CLASS_NAMES)).astype(np.int32)


def _words(numbers: np.ndarray, key: int) -> np.ndarray:
  """The raw 64-bit words of each number, [N, _WORDS]: a stretch of one long Philox stream."""
  words = np.empty((len(numbers), _WORDS), '<u8')
  breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
  for run in np.split(np.arange(len(numbers)), breaks):
    generator = np.random.Philox(key=key, counter=int(numbers[run[0]]) * _WORDS // _PHILOX_BLOCK)
    words[run] = generator.random_raw(len(run) * _WORDS).reshape(len(run), _WORDS)
  return words


def _picture(label: int, words: np.ndarray) -> np.ndarray:
  """Pictures of one class from their random words: uint8 [n, 28, 28]."""
  settings = canvas.Settings(words)
  drawing = canvas.Canvas(settings, len(words))
  garments.GARMENTS[label](drawing, settings)
  return _finish(drawing.picture, settings, words)


def _finish(picture: np.ndarray, settings: canvas.Settings, words: np.ndarray) -> np.ndarray:
  """Adds light, folds, a print and noise."""
  n = len(picture)
  x, y = canvas.EDGES[None, None, :] >> 8, canvas.EDGES[None, :, None] >> 8
  light_x, light_y = settings(-5, 5), settings(-5, 5)
  light = canvas.ONE + light_x[:, None, None] * (x - 14) + light_y[:, None, None] * (y - 14)
  # Folds and prints: triangle waves across the cloth in any direction.
  for strength, pitch in ((settings(0, 60), settings(20, 60)),
                          (settings(-200, 140).clip(0), settings(40, 110))):
    phase = settings(0, 255)
    across, down = settings(-64, 64), settings(-64, 64)
    wave = ((x * across[:, None, None] + y * down[:, None, None]) * pitch[:, None, None] >> 5)
    wave = np.abs((wave + phase[:, None, None] & 255) - 128)
    light = light - (wave * strength[:, None, None] >> 7)
  picture = picture * light.clip(0) >> 8
  # Two bytes make a triangular distribution.
  noise = words[:, canvas.SETTING_WORDS:].copy().view(np.uint8).astype(np.int32)
  noise = noise.reshape(n, 2, canvas.SIDE, canvas.SIDE).sum(axis=1) - 255
  amount = settings(4, 60)
  picture = picture + (noise * amount[:, None, None] >> 8) * (picture > 4)
  return picture.clip(0, 255).astype(np.uint8)
