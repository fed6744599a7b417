"""From a picture to what a model takes, as Fashion-MNIST was made of photographs (arXiv:1708.07747).

The specification, for a model of H x W pixels and C channels. A picture that has this size and is
grey, where C is 1, passes through unchanged. Any other:

1. It is turned as its EXIF orientation says, laid on white where it is transparent, and made RGB of
   8 bits.
2. Its background is the median of its four corners, channel by channel.
3. Rows and columns at its edges that differ from the background by at most 12 of 255 (5 %) are
   trimmed; where nothing else is left, nothing is.
4. It is resized, both edges by one factor, so that it just fits: each new pixel is the mean of the
   area that it covers. An edge is at least one pixel, and rounded to the nearest, halves upwards.
5. It is sharpened: twice itself less its Gaussian mean (3x3, standard deviation 1, edges repeated).
6. It is extended with the background to H x W, centred; an odd pixel goes below and to the right.
7. Where C is 1, it becomes grey (0.299 R + 0.587 G + 0.114 B), and is negated where the grey of its
   background is above 127.5, since garments lie on black there.
8. It is rounded to whole numbers from 0 to 255, halves upwards.
"""

from __future__ import annotations

import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from fmnist_jax.errors import DataError

FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')
MOST_PIXELS = 100_000_000
_TRIMMED = 12
_GREY = np.array([0.299, 0.587, 0.114])


def read(file: str | IO[bytes], image_shape: tuple[int, int, int], name: str = '') -> np.ndarray:
  """Reads a picture.

  Args:
    file: path, or an open file.
    image_shape: (H, W, C) of the model, C being 1 or 3.
    name: of the file, for errors.

  Returns:
    uint8 [H, W, C].

  Raises:
    DataError: when it is no picture, or one larger than 100 million pixels.
  """
  name = name or str(file)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Of the size, which is looked at here.
      image = Image.open(file, formats=FORMATS)
      if image.width * image.height > MOST_PIXELS:
        raise ValueError(f'it is {image.width:,} x {image.height:,} pixels large')
      pixels = _rgb(image)
  except Exception as error:  # Pillow raises what it pleases.
    reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or (
        type(error).__name__)
    if 'cannot identify' in reason:
      reason = f'it is none of {", ".join(FORMATS)}'
    raise DataError(f'{name} is no picture that can be read ({reason[:200].rstrip(".")}).') from error
  return to_input(pixels, image_shape)


def _rgb(image: Image.Image) -> np.ndarray:
  """uint8 [h, w, 3]: step 1."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith('I'):  # 16 bits.
    grey = np.asarray(image).astype(np.float64) / 257
    return np.repeat(np.floor(np.clip(grey, 0, 255) + 0.5).astype(np.uint8)[..., None], 3, -1)
  if image.has_transparency_data:
    rgba = np.asarray(image.convert('RGBA')).astype(np.float64)
    part = rgba[..., 3:] / 255
    return np.floor(rgba[..., :3] * part + 255 * (1 - part) + 0.5).astype(np.uint8)
  return np.asarray(image.convert('RGB'))


def to_input(pixels: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
  """Steps 2 to 8.

  Args:
    pixels: uint8 [h, w, 3].
    image_shape: (H, W, C).

  Returns:
    uint8 [H, W, C].

  Raises:
    DataError: for a model of other than 1 or 3 channels.
  """
  height, width, channels = image_shape
  if channels not in (1, 3):
    raise DataError(f'The model takes images of {channels} channels; pictures have 1 or 3.')
  if pixels.shape[:2] == (height, width) and (
      channels == 3 or (pixels == pixels[..., :1]).all()):
    return pixels[..., :channels]
  image = pixels.astype(np.float64)
  background = np.median(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
  image = _trimmed(image, background)
  factor = min(height / image.shape[0], width / image.shape[1])
  size = [max(int(np.floor(side * factor + 0.5)), 1) for side in image.shape[:2]]
  image = _sharpened(_resized(image, size))
  top, left = (height - size[0]) // 2, (width - size[1]) // 2
  canvas = np.broadcast_to(background, (height, width, 3)).copy()
  canvas[top:top + size[0], left:left + size[1]] = image
  if channels == 1:
    canvas = (canvas @ _GREY)[..., None]
    if background @ _GREY > 127.5:
      canvas = 255 - canvas
  return np.floor(np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)


def _trimmed(image: np.ndarray, background: np.ndarray) -> np.ndarray:
  differs = (np.abs(image - background) > _TRIMMED).any(axis=-1)
  if not differs.any():
    return image
  rows, columns = (np.flatnonzero(differs.any(axis=axis)) for axis in (1, 0))
  return image[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _resized(image: np.ndarray, size: list[int]) -> np.ndarray:
  """[h, w, 3] -> [*size, 3], means of areas."""
  down, across = (_areas(old, new) for old, new in zip(image.shape, size))
  return np.einsum('Hh,hwc,Ww->HWc', down, image, across, optimize=True)


def _areas(old: int, new: int) -> np.ndarray:
  """Which part each of `old` pixels has in the mean of each of `new`: [new, old]."""
  step = old / new
  begin = np.arange(new)[:, None] * step
  covered = np.minimum(begin + step, np.arange(1, old + 1)) - np.maximum(begin, np.arange(old))
  return np.maximum(covered, 0) / step


def _sharpened(image: np.ndarray) -> np.ndarray:
  weights = np.exp(-np.array([1.0, 0.0, 1.0]) / 2)
  weights /= weights.sum()
  mean = image
  for axis in (0, 1):
    pads = [(1, 1) if axis == other else (0, 0) for other in range(3)]
    padded, length = np.pad(mean, pads, mode='edge'), mean.shape[axis]
    mean = sum(weight * np.take(padded, range(at, at + length), axis)
               for at, weight in enumerate(weights))
  return 2 * image - mean
