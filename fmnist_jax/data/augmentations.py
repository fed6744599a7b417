"""Random changes to training images: settings, and pure functions of a key for use inside `jit`.

Images are uint8, or floats in [0, 1], [B, H, W, C], with 0 the background: what moves in from
outside is 0. Flips and shifts leave bytes what they are, which a CPU moves sooner than floats; what
mixes pixels makes them floats. Each image draws for itself. Strengths are numbers or traced
scalars, so that members of a population may differ in them; a Python 0 leaves a change out of the
program.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmnist_jax import ops, settings
from fmnist_jax.settings import is_on, setting

Strength = jax.Array | float
Examples = tuple[jax.Array, jax.Array]


class Place(NamedTuple):
  """Where in a run a batch stands.

  Attributes:
    key: typed key, of this run and this augmentation alone, the same in every step.
    epoch: its number, from 0, int32 scalar.
    examples: which ones of the training set the batch holds, int32 [B].
  """
  key: jax.Array
  epoch: jax.Array
  examples: jax.Array


class Augmentation(settings.Section):
  """A dataclass of settings that is called with a batch; `data.augment` is a sequence of them."""

  @abc.abstractmethod
  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """The batch, changed.

    Args:
      key: typed key, of this step and this augmentation alone.
      images: uint8, or float32 in [0, 1] where an augmentation before made them so, [B, H, W, C].
      targets: class probabilities, float32 [B, K].

    Returns:
      Images of the same shape, uint8 or float32 in [0, 1], and targets.
    """

  def at(self, place: Place) -> Callable[[jax.Array, jax.Array, jax.Array], Examples]:
    """What is called with the batch of a place; by default the augmentation itself, everywhere."""
    del place
    return self

  def unmirrored(self) -> Augmentation:
    """The same for images of which a mirror shows no class, such as digits; by default itself."""
    return self


def augment(augmentations: Sequence[Augmentation], key: jax.Array, images: jax.Array,
            targets: jax.Array, place: Place) -> Examples:
  """Applies augmentations one after another, each with keys of its own."""
  for i, augmentation in enumerate(augmentations):
    here = place._replace(key=jax.random.fold_in(place.key, i))
    images, targets = augmentation.at(here)(jax.random.fold_in(key, i), images, targets)
  return images, targets


@dataclasses.dataclass
class Flip(Augmentation):
  """Mirrors images left to right."""
  probability: float = setting(0.5, 'of each image', low=0, high=1, continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """See `Augmentation`."""
    if is_on(self.probability):
      images = horizontal_flip(key, images, self.probability)
    return images, targets

  def unmirrored(self) -> Augmentation:
    """See `Augmentation`."""
    return dataclasses.replace(self, probability=0.0)


@dataclasses.dataclass
class AlternatingFlip(Augmentation):
  """Mirrors each image left to right in every second epoch (airbench, arXiv:2404.00498).

  In two epochs a network so sees both sides of every image, where `Flip` shows one side twice to
  half of them.
  """
  probability: float = setting(0.5, 'of being mirrored in the first epoch; the others are in the '
                               'second', low=0, high=1, continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """Raises TypeError: a batch has to have a place."""
    raise TypeError('AlternatingFlip has to know the epoch: call AlternatingFlip().at(place).')

  def at(self, place: Place) -> Callable[[jax.Array, jax.Array, jax.Array], Examples]:
    """See `Augmentation`."""
    def flip(key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
      del key
      if not is_on(self.probability):
        return images, targets
      draw = lambda example: jax.random.uniform(jax.random.fold_in(place.key, example))
      first = jax.vmap(draw)(place.examples) < self.probability
      return mirror(images, first ^ (place.epoch % 2 == 1)), targets
    return flip

  def unmirrored(self) -> Augmentation:
    """See `Augmentation`."""
    return dataclasses.replace(self, probability=0.0)


@dataclasses.dataclass
class Shift(Augmentation):
  """Moves images by whole pixels: padded with zeros and cropped at random (arXiv:1512.03385)."""
  pixels: float = setting(1.0, 'largest shift along each axis, pixels', low=0, high=64,
                          continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """See `Augmentation`."""
    if is_on(self.pixels):
      images = shift_by(images, _pixels(key, len(images), self.pixels).astype(jnp.int32))
    return images, targets


@dataclasses.dataclass
class Affine(Augmentation):
  """Rotation, zoom and shift as one bilinear resampling, since images blur a little each time."""
  rotation: float = setting(3.0, 'largest rotation either way, degrees', low=0, high=180,
                            continuous=True)
  zoom: float = setting(0.0, 'largest relative zoom in or out (0.1: 0.9 to 1.1)', low=0, high=1,
                        open_high=True, continuous=True)
  shift: float = setting(0.0, 'largest shift along each axis, whole pixels', low=0, high=64,
                         continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """See `Augmentation`."""
    keys, batch = jax.random.split(key, 3), len(images)
    angles = _symmetric(keys[0], batch, self.rotation) if is_on(self.rotation) else 0.0
    zooms = 1 + _symmetric(keys[1], batch, self.zoom) if is_on(self.zoom) else 1.0
    shifts = _pixels(keys[2], batch, self.shift) if is_on(self.shift) else 0.0
    if any(map(is_on, (self.rotation, self.zoom, self.shift))):
      images = resample(ops.pixels(images), angles, zooms, shifts)
    return images, targets


@dataclasses.dataclass
class RandomErasing(Augmentation):
  """Overwrites a random rectangle with random values (arXiv:1708.04896)."""
  probability: float = setting(0.25, 'of each image', low=0, high=1, continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """See `Augmentation`."""
    if is_on(self.probability):
      images = random_erasing(key, ops.pixels(images), self.probability)
    return images, targets


@dataclasses.dataclass
class MixUp(Augmentation):
  """Mixes each image and its target with another's (arXiv:1710.09412)."""
  alpha: float = setting(0.2, 'of the Beta(alpha, alpha) that shares are drawn from, one a batch',
                         low=0, continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """See `Augmentation`."""
    if not is_on(self.alpha):
      return images, targets
    share, others = _partners(key, len(images), self.alpha)
    images = ops.pixels(images)
    return (share * images + (1 - share) * images[others],
            share * targets + (1 - share) * targets[others])


@dataclasses.dataclass
class CutMix(Augmentation):
  """Pastes a rectangle of another image, which shares the target by its area (arXiv:1905.04899)."""
  alpha: float = setting(1.0, 'of the Beta(alpha, alpha) that areas are drawn from, one a batch',
                         low=0, continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """See `Augmentation`."""
    if not is_on(self.alpha):
      return images, targets
    key, place = jax.random.split(key)
    share, others = _partners(key, len(images), self.alpha)
    height, width = images.shape[1:3]
    sides = jnp.array([height, width], jnp.float32)
    middle = jnp.floor(jax.random.uniform(place, (2,)) * sides)
    half = jnp.floor(sides * jnp.sqrt(1 - share)) / 2
    low, high = (jnp.clip(jnp.floor(middle + sign * half), 0, sides) for sign in (-1, 1))
    inside = lambda axis, size: (jnp.arange(size) >= low[axis]) & (jnp.arange(size) < high[axis])
    mask = inside(0, height)[:, None] & inside(1, width)[None, :]
    kept = 1 - jnp.mean(mask, dtype=jnp.float32)  # What was cut off at the rim does not count.
    images = jnp.where(mask[None, :, :, None], images[others], images)
    return images, kept * targets + (1 - kept) * targets[others]


def _partners(key: jax.Array, batch: int, alpha: Strength) -> tuple[jax.Array, jax.Array]:
  """The share that each image keeps, a scalar, and whom it is mixed with, int32 [batch]."""
  share_key, order_key = jax.random.split(key)
  return (jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32),
          jax.random.permutation(order_key, batch))


def horizontal_flip(key: jax.Array, images: jax.Array, probability: Strength) -> jax.Array:
  """Mirrors each image [B, H, W, C] left to right with this probability."""
  return mirror(images, jax.random.uniform(key, (len(images),)) < probability)


def mirror(images: jax.Array, which: jax.Array) -> jax.Array:
  """Mirrors the images [B, H, W, C] left to right of which `which`, bool [B], is true."""
  flipped = which[:, None, None, None]
  _, height, width, channels = images.shape
  if images.dtype == jnp.uint8 and channels == 1 and width % 4 == 0:
    # As words of four bytes: XLA:CPU would take each byte on its own, from where it lies in the
    # whole training set.
    words = jax.lax.bitcast_convert_type(images.reshape(-1, height, width // 4, 4), jnp.uint32)
    swapped = words << 24 | words << 8 & 0xff0000 | words >> 8 & 0xff00 | words >> 24
    words = jnp.where(flipped[..., 0], swapped[:, :, ::-1], words)
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(images.shape)
  return jnp.where(flipped, images[:, :, ::-1], images)


def shift_by(images: jax.Array, offsets: jax.Array) -> jax.Array:
  """Moves image b down by offsets[b, 0] and right by offsets[b, 1] whole pixels; fills with 0."""
  _, height, width, _ = images.shape
  rows = jnp.arange(height)[None, :] - offsets[:, :1]
  columns = jnp.arange(width)[None, :] - offsets[:, 1:]
  inside = (((rows >= 0) & (rows < height))[:, :, None]
            & ((columns >= 0) & (columns < width))[:, None, :])
  moved = jax.vmap(lambda image, y, x: image[y][:, x])(
      images, jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1))
  return jnp.where(inside[..., None], moved, 0)


def resample(images: jax.Array, degrees: Strength, zooms: Strength,
             offsets: Strength) -> jax.Array:
  """Turns and enlarges each image about its middle, then moves it: one bilinear interpolation.

  Args:
    images: [B, H, W, C].
    degrees: counter-clockwise, [B] or a number.
    zooms: above 1 enlarges, [B] or a number.
    offsets: down and right, pixels, [B, 2] or a number.

  Returns:
    Images [B, H, W, C]; outside the original image there are zeros.
  """
  batch, height, width, _ = images.shape
  angles = jnp.broadcast_to(jnp.deg2rad(jnp.asarray(degrees, jnp.float32)), (batch,))[:, None, None]
  zooms = jnp.broadcast_to(jnp.asarray(zooms, jnp.float32), (batch,))[:, None, None]
  offsets = jnp.broadcast_to(jnp.asarray(offsets, jnp.float32), (batch, 2))[:, :, None, None]
  middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
  down = jnp.arange(height, dtype=jnp.float32)[None, :, None] - middle_y - offsets[:, 0]
  right = jnp.arange(width, dtype=jnp.float32)[None, None, :] - middle_x - offsets[:, 1]
  cosine, sine = jnp.cos(angles) / zooms, jnp.sin(angles) / zooms
  # Where each pixel of the result comes from.
  y = cosine * down + sine * right + middle_y
  x = cosine * right - sine * down + middle_x
  return bilinear(images, y, x)


def bilinear(images: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
  """Images [B, H, W, C] whose pixels come from rows `y` and columns `x`, float [B, H, W]."""
  batch, height, width, channels = images.shape
  # A rim of zeros takes the neighbours of whatever lies outside.
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  flat = padded.reshape(batch, (height + 2) * (width + 2), channels)
  top, left = jnp.clip(jnp.floor(y), -1, height - 1), jnp.clip(jnp.floor(x), -1, width - 1)
  inside = (y > -1) & (y < height) & (x > -1) & (x < width)
  corner = (top.astype(jnp.int32) + 1) * (width + 2) + left.astype(jnp.int32) + 1
  take = jax.vmap(lambda image, places: image.at[places].get(mode='promise_in_bounds'))
  result = jnp.zeros((), images.dtype)
  for below in (0, 1):
    for beside in (0, 1):
      weight = (y - top if below else 1 - (y - top)) * (x - left if beside else 1 - (x - left))
      weight = jnp.where(inside, weight, 0).astype(images.dtype)[..., None]
      values = take(flat, (corner + below * (width + 2) + beside).reshape(batch, -1))
      result = result + weight * values.reshape(images.shape)
  return result


# Random erasing's defaults (table 1 and algorithm 1 of the paper): share of the area, and the
# lowest ratio of height to width; the highest is its inverse.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = 0.3
_ATTEMPTS = 10


def random_erasing(key: jax.Array, images: jax.Array, probability: Strength) -> jax.Array:
  """Overwrites a random rectangle of each image with random values, with this probability.

  Zhong et al., arXiv:1708.04896, algorithm 1: area 2 % to 40 % of the image, aspect ratio 0.3 to
  1/0.3. The paper draws rectangles until one fits; here the first of ten that fits is taken, and
  the image stays as it is where none does (one in 10^7).
  """
  batch, height, width, _ = images.shape
  key, noise_key = jax.random.split(key)
  draws = jax.random.uniform(key, (batch, 2 * _ATTEMPTS + 3))
  spread = lambda draws, low, high: low + draws * (high - low)
  areas = spread(draws[:, :_ATTEMPTS], *ERASED_AREA) * (height * width)
  aspects = spread(draws[:, _ATTEMPTS:-3], ERASED_ASPECT, 1 / ERASED_ASPECT)
  heights, widths = jnp.round(jnp.sqrt(areas * aspects)), jnp.round(jnp.sqrt(areas / aspects))
  fits = (heights <= height) & (widths <= width)
  first = jnp.argmax(fits, axis=1)
  pick = lambda values: jnp.take_along_axis(values, first[:, None], axis=1)[:, 0]
  heights, widths = pick(heights), pick(widths)
  chance, down, right = draws[:, -3], draws[:, -2], draws[:, -1]
  erased = (chance < probability) & fits.any(axis=1)
  top = jnp.floor(down * (height - heights + 1))
  left = jnp.floor(right * (width - widths + 1))
  rows, columns = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
  within_rows = (rows >= top[:, None]) & (rows < (top + heights)[:, None])
  within_columns = (columns >= left[:, None]) & (columns < (left + widths)[:, None])
  mask = (within_rows[:, :, None] & within_columns[:, None, :] & erased[:, None, None])[..., None]
  return jnp.where(mask, _noise(noise_key, images.shape).astype(images.dtype), images)


def _noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Values of 0/255 to 255/255: a byte each, for random bits are what erasing costs."""
  size = math.prod(shape[1:])
  words = jax.random.bits(key, (shape[0], -(-size // 4)), jnp.uint32)
  values = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(shape[0], -1)[:, :size]
  return values.reshape(shape).astype(jnp.float32) / 255


def _symmetric(key: jax.Array, batch: int, strength: Strength) -> jax.Array:
  """Uniform in -strength..strength, float32 [batch]."""
  return jax.random.uniform(key, (batch,), minval=-1.0, maxval=1.0) * strength


def _pixels(key: jax.Array, batch: int, largest: Strength) -> jax.Array:
  """Whole numbers from -largest to largest, all equally likely, float32 [batch, 2]."""
  largest = jnp.floor(jnp.asarray(largest, jnp.float32))
  draws = jax.random.uniform(key, (batch, 2)) * (2 * largest + 1)
  return jnp.minimum(jnp.floor(draws), 2 * largest) - largest
