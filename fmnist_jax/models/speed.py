"""Few wide convolutions, to be accurate soon."""

from __future__ import annotations

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmnist_jax import ops
from fmnist_jax.errors import ConfigError
from fmnist_jax.models.base import Compute, Model
from fmnist_jax.models.layers import WIDEST, conv_norm
from fmnist_jax.settings import setting


@dataclasses.dataclass
class SpeedNet(Model):
  """Blocks of few wide convolutions after one of patches (in the manner of arXiv:2404.00498).

  The kernels of the first convolution start as the cosine transform of its patches, each with both
  signs; with BatchNorm that is about what whitens natural images. A block pools after the first of
  its convolutions, which so is the only one at the larger size; all have BatchNorm and ReLU. Where
  there are three in a block, the first's result is added to the third's. The largest (or mean) of
  each channel goes to the head.

    of that paper for CIFAR-10    SpeedNet(kernel=2, channels=(64, 256, 256), scale=1 / 9)
  """
  takes_bytes = True
  cached_examples = 128
  kernel: int = setting(2, 'side of the square kernels of the first convolution, pixels; it has '
                        'two for each pixel and channel of its patches', low=1, high=31)
  stride: int = setting(1, 'of the first convolution, pixels', low=1, high=31)
  channels: tuple[int, ...] = setting((64, 256, 256), 'channels of each block', low=1, high=WIDEST)
  convolutions: int = setting(2, '3x3 convolutions in each block', low=1, high=3)
  pooling: str = setting('max', 'what of each channel goes to the head', choices=('max', 'average'))
  scale: float = setting(0.125, 'factor of the logits', low=1e-6, high=1e6, continuous=True)

  def check(self, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError when the blocks leave no pixel of an image."""
    side = min(image_shape[:2])
    if side < self.kernel or (side - self.kernel) // self.stride + 1 < 2 ** len(self.channels):
      raise ConfigError(
          f'The model leaves no pixel of a {image_shape[0]}x{image_shape[1]} image; use fewer '
          'blocks in model.channels, each of which halves it, or a smaller model.kernel or '
          'model.stride.')

  def build(self, num_classes: int, compute: Compute) -> nn.Module:
    """See `Model`."""
    return SpeedNetModule(self, num_classes, compute)


class SpeedNetModule(nn.Module):
  """The network that `SpeedNet` describes, of `num_classes` outputs."""
  settings: SpeedNet
  num_classes: int
  compute: Compute

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    settings, numbers = self.settings, itertools.count()

    def layer(x: jax.Array, features: int, side: int, **how) -> jax.Array:
      number = next(numbers)
      return conv_norm(x, features, (side, side), train=train, compute=self.compute,
                       names=(f'Conv_{number}', f'BatchNorm_{number}'), **how)

    x = ops.pixels(images_BxHxWxC, self.compute.dtype)
    x = layer(x, 2 * settings.kernel**2 * x.shape[-1], settings.kernel, padding='VALID',
              strides=(settings.stride,) * 2, kernel_init=cosines)
    for channels in settings.channels:
      first = x = layer(x, channels, 3, window=(2, 2))
      for number in range(1, settings.convolutions):
        x = layer(x, channels, 3, residual=first if number == 2 else None)
    pool = {'max': ops.max_pool, 'average': ops.avg_pool}[settings.pooling]
    x = pool(x, (x.shape[1], x.shape[2]), implementation=self.compute.implementation)
    x = ops.Dense(self.num_classes, use_bias=False, **self.compute._asdict())(x.reshape(len(x), -1))
    return x.astype(jnp.float32) * settings.scale


def cosines(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """The functions of a cosine transform (DCT-II) of patches, orthonormal, and their negatives.

  Args:
    key: not used: nothing is random here.
    shape: of the kernel, [h, w, C, 2 h w C].
    dtype: of the kernel.
  """
  *patch, features = shape
  functions = np.ones((1, 1))
  for size in patch:
    frequency, position = np.mgrid[:size, :size]
    line = np.cos(np.pi / size * (position + 0.5) * frequency)
    functions = np.kron(functions, line / np.linalg.norm(line, axis=1, keepdims=True))
  assert features == 2 * len(functions)
  kernel = np.concatenate([functions, -functions]).T.reshape(shape)
  return jnp.asarray(kernel, dtype)
