"""Random changes to training images: pure functions of a key and images, for use inside `jit`.

Images are uint8, or floats in [0, 1], [B, H, W, C], with 0 the background: what moves in from
outside is 0. Flips and shifts leave bytes what they are, which a CPU moves sooner than floats; what
mixes pixels makes them floats.
Each image draws for itself. Strengths are numbers or traced scalars, so that members of a
population may differ in them; whether a change is made at all is decided when tracing.

Rotation, zoom and shift are one resampling, because images blur a little more each time. It is
written as gathers within each image, which XLA runs quickly on every backend and which stay within
a device when the batch is divided over several.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fmnist_jax import config as config_lib
from fmnist_jax import ops

Strength = jax.Array | float


def augment(key: jax.Array, images: jax.Array, config: config_lib.Augment) -> jax.Array:
  """Applies the changes that are switched on: flip, then rotation, zoom and shift, then erasing.

  Args:
    key: typed key.
    images: [B, H, W, C].
    config: strengths; a Python 0 leaves a change out of the program.

  Returns:
    Images of the same shape; floats where any change but flip and shift is switched on.
  """
  on = config_lib.is_on
  keys = jax.random.split(key, 5)
  if on(config.flip):
    images = horizontal_flip(keys[0], images, config.flip)
  if on(config.rotation) or on(config.zoom):
    batch = len(images)
    angles = _symmetric(keys[1], batch, config.rotation) if on(config.rotation) else 0.0
    zooms = 1 + _symmetric(keys[2], batch, config.zoom) if on(config.zoom) else 1.0
    shifts = _pixels(keys[3], batch, config.shift) if on(config.shift) else 0.0
    images = resample(ops.pixels(images), angles, zooms, shifts)
  elif on(config.shift):
    images = shift(keys[3], images, config.shift)
  if on(config.erasing):
    images = random_erasing(keys[4], ops.pixels(images), config.erasing)
  return images


def horizontal_flip(key: jax.Array, images: jax.Array, probability: Strength) -> jax.Array:
  """Mirrors each image [B, H, W, C] left to right with this probability."""
  flipped = jax.random.uniform(key, (len(images), 1, 1, 1)) < probability
  _, height, width, channels = images.shape
  if images.dtype == jnp.uint8 and channels == 1 and width % 4 == 0:
    # As words of four bytes: XLA:CPU would take each byte on its own, from where it lies in the
    # whole training set.
    words = jax.lax.bitcast_convert_type(images.reshape(-1, height, width // 4, 4), jnp.uint32)
    swapped = words << 24 | words << 8 & 0xff0000 | words >> 8 & 0xff00 | words >> 24
    words = jnp.where(flipped[..., 0], swapped[:, :, ::-1], words)
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(images.shape)
  return jnp.where(flipped, images[:, :, ::-1], images)


def shift(key: jax.Array, images: jax.Array, pixels: Strength) -> jax.Array:
  """Moves each image by whole pixels, uniform in -pixels..pixels along each axis.

  The same as padding with `pixels` zeros all round and cropping at random.
  """
  return shift_by(images, _pixels(key, len(images), pixels).astype(jnp.int32))


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


def rotation(key: jax.Array, images: jax.Array, degrees: Strength) -> jax.Array:
  """Turns each image about its middle by an angle uniform in -degrees..degrees, bilinearly."""
  return resample(images, _symmetric(key, len(images), degrees), 1.0, 0.0)


def zoom(key: jax.Array, images: jax.Array, amount: Strength) -> jax.Array:
  """Enlarges each image about its middle by a factor uniform in 1 - amount..1 + amount."""
  return resample(images, 0.0, 1 + _symmetric(key, len(images), amount), 0.0)


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
  batch, height, width, channels = images.shape
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
