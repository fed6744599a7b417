"""From a picture to what a model takes, as Fashion-MNIST was made (arXiv:1708.07747).

The specification, for a model of H x W pixels and C channels:

1. A picture is turned as its EXIF orientation says, laid on white where it is transparent, and made
   RGB of 8 bits. One that is now of the model's size, and grey where C is 1, is taken as it is.
2. Its background is the median of its four corners, channel by channel.
3. Rows and columns at its edges that differ from the background by at most 12 of 255 (5 %) are
   trimmed; where nothing else is left, nothing is.
4. It is resized, both edges by one factor, so that it just fits: each new pixel is the mean of the
   area that it covers. An edge is at least one pixel, and rounded to the nearest, halves upwards.
5. It is sharpened: twice itself less its Gaussian mean (3x3, standard deviation 1, edges repeated).
6. It is extended with the background to H x W, centred; an odd pixel goes below and to the right.
7. Where C is 1, it becomes grey (0.299 R + 0.587 G + 0.114 B), and is negated where the grey of its
   background is above 127.5, since garments lie on black there.
8. It is rounded to whole numbers from 0 to 255, halves upwards, and so is what lies less than a
   millionth below one, so that the order in which sums are added does not show.

report/photograph.js is the same for browsers.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist_jax.errors import DataError

FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')
MOST_PIXELS = 100_000_000
_AT_ONCE = 2**20  # pixels that are float64 at a time
_TRIMMED = 12
_GREY = np.array([299, 587, 114])  # thousandths


def read(file: IO[bytes], image_shape: tuple[int, int, int], name: str,
         prepare: Callable[..., np.ndarray] | None = None) -> np.ndarray:
  """Reads a picture.

  Args:
    file: open.
    image_shape: (H, W, C) of the model, C being 1 or 3.
    name: of the file, for errors.
    prepare: called with uint8 [h, w, 3] and `image_shape`; `to_input` by default.

  Returns:
    uint8 [H, W, C].

  Raises:
    DataError: when it is no picture, or one larger than 100 million pixels.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Of the size, which is looked at here.
      with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
          raise ValueError(f'it is {image.width:,} x {image.height:,} pixels large, more than '
                           f'{MOST_PIXELS:,} in all')
        return (prepare or to_input)(_rgb(image), image_shape)
  except Exception as error:  # Pillow raises what it pleases.
    reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or (
        type(error).__name__)
    if isinstance(error, UnidentifiedImageError):
      reason = f'it is none of {", ".join(FORMATS)}'
    raise DataError(f'{name} is no picture that can be read ({reason[:200].rstrip(".")}).'
                    ) from error


def _rgb(image: Image.Image) -> np.ndarray:
  """uint8 [h, w, 3]: the first half of step 1."""
  image.load()  # What is broken in the picture itself is told.
  with contextlib.suppress(Exception):  # Broken EXIF says nothing of how to turn it.
    image = ImageOps.exif_transpose(image)
  if image.mode.startswith('I'):  # 16 bits.
    grey = (np.clip(np.asarray(image), 0, 65535).astype(np.uint32) + 128) // 257
    return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
  if image.has_transparency_data:
    rgba = np.asarray(image.convert('RGBA')).astype(np.uint16)
    part = rgba[..., 3:]  # Sums are at most 255 * 255 + 127.
    return ((rgba[..., :3] * part + 255 * (255 - part) + 127) // 255).astype(np.uint8)
  return np.asarray(image.convert('RGB'))


def to_input(pixels: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
  """The second half of step 1, and steps 2 to 8.

  Args:
    pixels: uint8 [h, w, 3].
    image_shape: (H, W, C), C being 1 or 3.

  Returns:
    uint8 [H, W, C].
  """
  height, width, channels = image_shape
  if pixels.shape[:2] == (height, width) and (
      channels == 3 or (pixels == pixels[..., :1]).all()):
    return pixels[..., :channels]
  background = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
  image = _trimmed(pixels, background)
  factor = min(height / image.shape[0], width / image.shape[1])
  size = [max(int(np.floor(side * factor + 0.5)), 1) for side in image.shape[:2]]
  image = _sharpened(_resized(image, size))
  top, left = (height - size[0]) // 2, (width - size[1]) // 2
  canvas = np.broadcast_to(background, (height, width, 3)).copy()
  canvas[top:top + size[0], left:left + size[1]] = image
  if channels == 1:
    canvas = (canvas @ _GREY)[..., None] / 1000
    if background @ _GREY / 1000 > 127.5:
      canvas = 255 - canvas
  return np.floor(np.clip(canvas, 0, 255) + (0.5 + 1e-6)).astype(np.uint8)


def framed(pixels: np.ndarray, image_shape: tuple[int, int, int], frame: str) -> np.ndarray:
  """A picture resized to what a model takes, by Pillow's bicubic filter, and nothing else done.

  Args:
    pixels: uint8 [h, w, 3].
    image_shape: (H, W, C), C being 1 or 3.
    frame: 'fit' shows all of it, centred on black; 'crop' fills the frame with its middle.

  Returns:
    uint8 [H, W, C].
  """
  height, width, channels = image_shape
  image = Image.fromarray(pixels).convert('L' if channels == 1 else 'RGB')
  if frame == 'crop':
    return np.asarray(ImageOps.fit(image, (width, height))).reshape(image_shape)
  factor = min(height / image.height, width / image.width)
  inner = [max(round(side * factor), 1) for side in (image.width, image.height)]
  whole = Image.new(image.mode, (width, height))
  whole.paste(image.resize(inner), ((width - inner[0]) // 2, (height - inner[1]) // 2))
  return np.asarray(whole).reshape(image_shape)


def _strips(image: np.ndarray) -> list[slice]:
  """Rows to work on at a time, so that a large picture does not take ten times its memory."""
  step = max(_AT_ONCE // image.shape[1], 1)
  return [slice(at, at + step) for at in range(0, len(image), step)]


def _trimmed(image: np.ndarray, background: np.ndarray) -> np.ndarray:
  differs = np.concatenate([(np.abs(image[rows] - background) > _TRIMMED).any(axis=-1)
                            for rows in _strips(image)])
  if not differs.any():
    return image
  rows, columns = (np.flatnonzero(differs.any(axis=axis)) for axis in (1, 0))
  return image[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _resized(image: np.ndarray, size: list[int]) -> np.ndarray:
  """[h, w, 3] -> [*size, 3], means of areas."""
  down, across = (_areas(old, new) for old, new in zip(image.shape, size))
  return np.sum([np.einsum('Hh,hwc,Ww->HWc', down[:, rows], image[rows].astype(np.float64), across,
                           optimize=True) for rows in _strips(image)], axis=0)


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
    mean = np.sum([weight * np.take(padded, range(at, at + length), axis)
                   for at, weight in enumerate(weights)], axis=0)
  return 2 * image - mean
