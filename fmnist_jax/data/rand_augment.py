"""RandAugment: a few operations for each image, drawn from a list."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.data.augmentations import Augmentation, Examples, bilinear
from fmnist_jax.settings import is_on, setting

# What each does at a magnitude of 10, as AutoAugment's list has it (arXiv:1805.09501, table 6).
_ROTATION, _SHEAR, _TRANSLATION = 30.0, 0.3, 10 / 32  # Degrees; a share of the side.
_FACTOR, _BITS = 0.9, 4  # Of brightness and contrast: 0.1 to 1.9; bits that posterise takes.
_MOVES = ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')
_TONES = ('brightness', 'contrast', 'posterize')
OPERATIONS = ('identity', *_MOVES, *_TONES)


@dataclasses.dataclass
class RandAugment(Augmentation):
  """Some operations of one magnitude, drawn anew for each image (arXiv:1909.13719).

  The subset of the paper's list that suits grey garments: identity, rotate, shear, translate,
  brightness, contrast, posterize; without those for colours, without solarise, which makes the
  black around a garment white, and without those that the photographs have had: equalise,
  autocontrast, sharpness. Signs are drawn too. What moves pixels is done first, as one bilinear
  resampling, so that an image blurs once; then tones, in the order drawn.
  """
  operations: int = setting(2, 'how many are drawn for each image', low=0, high=8)
  magnitude: float = setting(3.0, 'of each; 10: 30 degrees, a shear of 0.3, 31 % of the side, 0.1 '
                             'to 1.9 times as bright or rich in contrast, 4 bits less', low=0,
                             high=10, continuous=True)

  def __call__(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> Examples:
    """See `Augmentation`."""
    if not (self.operations and is_on(self.magnitude)):
      return images, targets
    which, sign = jax.random.split(key)
    shape = len(images), self.operations
    chosen = jax.random.randint(which, shape, 0, len(OPERATIONS))
    signs = 2.0 * jax.random.bernoulli(sign, shape=shape) - 1.0
    return apply(ops.pixels(images), chosen, signs * (self.magnitude / 10)), targets


def apply(images: jax.Array, chosen: jax.Array, strengths: jax.Array) -> jax.Array:
  """Images after `chosen` operations.

  Args:
    images: float32 in [0, 1], [B, H, W, C].
    chosen: places in `OPERATIONS`, int32 [B, N].
    strengths: -1 to 1, float32 [B, N].
  """
  moved = bilinear(images, *_sources(images.shape, chosen, strengths))
  for k in range(chosen.shape[1]):
    moved = _toned(moved, chosen[:, k], strengths[:, k])
  return moved


def _sources(shape: tuple[int, ...], chosen: jax.Array,
             strengths: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The row and the column that each pixel comes from, float32 [B, H, W] each."""
  batch, height, width, _ = shape
  down = jnp.arange(height, dtype=jnp.float32)[None, :, None] - (height - 1) / 2
  right = jnp.arange(width, dtype=jnp.float32)[None, None, :] - (width - 1) / 2
  y = jnp.broadcast_to(down, (batch, height, width))
  x = jnp.broadcast_to(right, (batch, height, width))
  # From the last to the first, since this goes from the result to the original.
  for k in reversed(range(chosen.shape[1])):
    amount = lambda name, k=k: jnp.where(chosen[:, k] == OPERATIONS.index(name), strengths[:, k],
                                         0.0)[:, None, None]
    angle = jnp.deg2rad(_ROTATION) * amount('rotate')
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    y, x = cosine * y + sine * x, cosine * x - sine * y
    # One of these is not 0 at most, so that their order is none.
    y, x = y + _SHEAR * amount('shear_y') * x, x + _SHEAR * amount('shear_x') * y
    y = y - _TRANSLATION * height * amount('translate_y')
    x = x - _TRANSLATION * width * amount('translate_x')
  return y + (height - 1) / 2, x + (width - 1) / 2


def _toned(images: jax.Array, chosen: jax.Array, strengths: jax.Array) -> jax.Array:
  """Images after the tone that is chosen, int32 [B], if it is one."""
  is_one = lambda name: (chosen == OPERATIONS.index(name))[:, None, None, None]
  factor = 1 + _FACTOR * strengths[:, None, None, None]
  mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
  pivot = jnp.where(is_one('contrast'), mean, 0.0)
  turned = jnp.clip(pivot + factor * (images - pivot), 0.0, 1.0)
  step = 2.0 ** jnp.round(_BITS * jnp.abs(strengths))[:, None, None, None]
  coarse = jnp.floor(jnp.round(images * 255) / step) * step / 255
  images = jnp.where(is_one('brightness') | is_one('contrast'), turned, images)
  return jnp.where(is_one('posterize') & (step > 1), coarse, images)
