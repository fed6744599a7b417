"""Residual networks for small images."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.models.base import Compute, Model
from fmnist_jax.models.layers import WIDEST, conv_norm
from fmnist_jax.settings import setting


@dataclasses.dataclass
class ResNet(Model):
  """Stages of residual blocks (arXiv:1512.03385, section 4.2); the default is ResNet-20.

  A 3x3 convolution, then stages of blocks of two 3x3 convolutions each; every stage after the first
  halves height and width. Where shapes change the shortcut is a 1x1 convolution. The mean of each
  channel goes to the head.
  """
  takes_bytes = True
  cached_examples = 128
  channels: tuple[int, ...] = setting((16, 32, 64), 'channels of each stage', low=1, high=WIDEST)
  blocks: int = setting(3, 'residual blocks in each stage', low=1, high=1000)

  def build(self, num_classes: int, compute: Compute) -> nn.Module:
    """See `Model`."""
    return ResNetModule(self, num_classes, compute)


class ResNetModule(nn.Module):
  """The network that `ResNet` describes, of `num_classes` outputs."""
  settings: ResNet
  num_classes: int
  compute: Compute

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    x = ops.pixels(images_BxHxWxC, self.compute.dtype)
    x = conv_norm(x, self.settings.channels[0], (3, 3), train=train, compute=self.compute,
                  names=('Conv_0', 'BatchNorm_0'))
    for stage, channels in enumerate(self.settings.channels):
      for block in range(self.settings.blocks):
        halve = stage and not block
        x = ResidualBlock(channels, (2, 2) if halve else (1, 1), self.compute)(x, train=train)
    x = ops.avg_pool(x, (x.shape[1], x.shape[2]), implementation=self.compute.implementation)
    x = ops.Dense(self.num_classes, **self.compute._asdict())(x.reshape(len(x), -1))
    return x.astype(jnp.float32)


class ResidualBlock(nn.Module):
  """relu(x + two convolutions of x), each with BatchNorm; see `ResNet`.

  Attributes:
    channels: of the result.
    strides: of the first convolution, and of the shortcut, pixels.
    compute: how.
  """
  channels: int
  strides: tuple[int, int]
  compute: Compute

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', channels]."""
    layer = functools.partial(conv_norm, features=self.channels, train=train, compute=self.compute)
    y = layer(x, kernel_size=(3, 3), strides=self.strides, names=('Conv_0', 'BatchNorm_0'))
    if self.strides != (1, 1) or x.shape[-1] != self.channels:
      x = layer(x, kernel_size=(1, 1), strides=self.strides, relu=False,
                names=('Conv_2', 'BatchNorm_2'))
    return layer(y, kernel_size=(3, 3), residual=x, names=('Conv_1', 'BatchNorm_1'))
