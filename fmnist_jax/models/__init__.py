"""Flax modules, one file a family; `build` makes one from its config."""

from __future__ import annotations

import os

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import config as config_lib
from fmnist_jax.errors import ConfigError
from fmnist_jax.models.cnn import CNN
from fmnist_jax.models.layers import Dropout
from fmnist_jax.models.mlp import MLP

__all__ = ['CNN', 'MLP', 'Dropout', 'build', 'check_fits']


def build(config: config_lib.Model, num_classes: int, *, dtype: jnp.dtype = jnp.float32,
          implementation: str = 'native') -> nn.Module:
  """The Flax module that a config describes.

  Args:
    config: a model section; its dropout rates may be traced arrays.
    num_classes: size of the output.
    dtype: compute precision.
    implementation: of products, convolutions and pools, 'matmul' or 'native' (see `ops`).

  Returns:
    A module called as `module(images_BxHxWxC, train=bool)`, returning float32 logits
    [B, num_classes].
  """
  match config:
    case config_lib.MLP():
      return MLP(config, num_classes, dtype, implementation)
    case config_lib.CNN():
      return CNN(config, num_classes, dtype, implementation)
  raise TypeError(f'No model family for {type(config).__name__}.')


def check_fits(config: config_lib.Model, image_shape: tuple[int, int, int],
               num_classes: int = 10) -> None:
  """Raises ConfigError when a model leaves no pixel of an image, or is too large to train here."""
  if isinstance(config, config_lib.CNN):
    _check_pixels(config, image_shape)
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  try:
    shapes = jax.eval_shape(
        lambda x: build(config, num_classes).init(jax.random.key(0), x, train=False), images)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
  except (OverflowError, TypeError) as error:  # Sizes that have more than 64 bits.
    raise ConfigError(f'The model is larger than any machine; make its layers narrower ({error}).'
                      ) from error
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  # Weights, their gradient, and as much again for the step that changes them.
  if 4 * size > memory:
    raise ConfigError(f'The model has {size // 4:,} weights, too many for training in the '
                      f'{memory / 2**30:.0f} GiB of this machine; make its layers narrower.')


def _check_pixels(config: config_lib.CNN, image_shape: tuple[int, int, int]) -> None:
  side = min(image_shape[:2])
  for block, window in enumerate(config.pool):
    if config.padding == 'VALID':
      side -= config.convolutions * (config.kernel - 1)
    if window:
      side //= window
    if side < 1:
      raise ConfigError(
          f'Block {block + 1} of the model leaves no pixel of a {image_shape[0]}x{image_shape[1]} '
          f'image; use model.padding=SAME, fewer blocks or smaller model.kernel and model.pool.')
