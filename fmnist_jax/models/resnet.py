"""Residual networks for small images."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.models.base import Compute, Model
from fmnist_jax.models.layers import (
    WIDEST,
    SqueezeExcitation,
    StochasticDepth,
    conv_norm,
    norm,
)
from fmnist_jax.settings import is_on, setting


@dataclasses.dataclass
class ResNet(Model):
  """Stages of residual blocks (arXiv:1512.03385, section 4.2); the default is ResNet-20.

  A 3x3 convolution, then stages of blocks of two 3x3 convolutions each; every stage after the first
  halves height and width. Where shapes change the shortcut is a 1x1 convolution. The mean of each
  channel goes to the head. Of this form are, among others,

    ResNet-18          ResNet(channels=(64, 128, 256, 512), blocks=2)
    PreActResNet-18    ResNet(channels=(64, 128, 256, 512), blocks=2, block='preactivation')
    WRN-16-4           ResNet(blocks=2, width=4, block='preactivation')
    WRN-40-4           ResNet(blocks=6, width=4, block='preactivation')
  """
  takes_bytes = True
  cached_examples = 128
  channels: tuple[int, ...] = setting((16, 32, 64), 'channels of each stage; of the first '
                                      'convolution as of the first', low=1, high=WIDEST)
  blocks: int = setting(3, 'residual blocks in each stage', low=1, high=1000)
  block: str = setting('basic', 'basic: ReLU after the sum; preactivation: BatchNorm and ReLU '
                       'before each convolution (arXiv:1603.05027)',
                       choices=('basic', 'preactivation'))
  width: int = setting(1, 'factor of the channels of all blocks (arXiv:1605.07146)', low=1,
                       high=WIDEST)
  squeeze: int = setting(0, 'squeeze-and-excitation in each block, through so many times fewer '
                         'channels (arXiv:1709.01507: 16); 0: none', low=0, high=WIDEST)
  stochastic_depth: float = setting(0.0, 'rate at which the last block is left out for an example '
                                    'in training; others less, in proportion to their depth '
                                    '(arXiv:1603.09382)', low=0, high=1, open_high=True,
                                    continuous=True)

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
    settings, how = self.settings, self.compute._asdict()
    preactivation = settings.block == 'preactivation'
    x = ops.pixels(images_BxHxWxC, self.compute.dtype)
    if preactivation:
      x = ops.Conv(settings.channels[0], (3, 3), use_bias=False, **how, name='Conv_0')(x)
    else:
      x = conv_norm(x, settings.channels[0], (3, 3), train=train, compute=self.compute,
                    names=('Conv_0', 'BatchNorm_0'))
    kind = PreActivationBlock if preactivation else ResidualBlock
    blocks = len(settings.channels) * settings.blocks
    for number in range(blocks):
      stage, block = divmod(number, settings.blocks)
      x = kind(settings.channels[stage] * settings.width, (2, 2) if stage and not block else (1, 1),
               settings.squeeze, settings.stochastic_depth * ((number + 1) / blocks),
               self.compute)(x, train=train)
    if preactivation:
      x = norm(x, train=train, compute=self.compute, name='BatchNorm_0')
    x = ops.avg_pool(x, (x.shape[1], x.shape[2]), implementation=self.compute.implementation)
    return ops.Dense(self.num_classes, **how)(x.reshape(len(x), -1)).astype(jnp.float32)


class ResidualBlock(nn.Module):
  """relu(x + two convolutions of x), each with BatchNorm; see `ResNet`.

  Attributes:
    channels: of the result.
    strides: of the first convolution, and of the shortcut, pixels.
    squeeze: of squeeze-and-excitation, how many times fewer channels; 0: none.
    stochastic_depth: rate at which the convolutions are left out.
    compute: how.
  """
  channels: int
  strides: tuple[int, int]
  squeeze: int
  stochastic_depth: float | jax.Array
  compute: Compute

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', channels]."""
    how: dict[str, Any] = {'features': self.channels, 'train': train, 'compute': self.compute}
    y = conv_norm(x, kernel_size=(3, 3), strides=self.strides, names=('Conv_0', 'BatchNorm_0'),
                  **how)
    if self._changes(x):
      x = conv_norm(x, kernel_size=(1, 1), strides=self.strides, relu=False,
                    names=('Conv_2', 'BatchNorm_2'), **how)
    last: dict[str, Any] = {'kernel_size': (3, 3), 'names': ('Conv_1', 'BatchNorm_1'), **how}
    if self._sums_at_once(train):
      return conv_norm(y, residual=x, **last)
    return nn.relu(x + self._varied(conv_norm(y, relu=False, **last), train))

  def _changes(self, x: jax.Array) -> bool:
    """Whether the result has another shape than x."""
    return self.strides != (1, 1) or x.shape[-1] != self.channels

  def _sums_at_once(self, train: bool) -> bool:
    """Whether nothing happens between the last convolution and the sum."""
    return not (self.squeeze or (train and is_on(self.stochastic_depth)))

  def _varied(self, y: jax.Array, train: bool) -> jax.Array:
    """What happens between the last convolution and the sum."""
    if self.squeeze:
      y = SqueezeExcitation(max(self.channels // self.squeeze, 1), self.compute)(y)
    return StochasticDepth(self.stochastic_depth)(y, train=train)


class PreActivationBlock(ResidualBlock):
  """x + two convolutions of x, BatchNorm and ReLU before each; attributes of `ResidualBlock`.

  Where the shape changes the shortcut too is of what is normalised and rectified.
  """

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', channels]."""
    how: dict[str, Any] = {'features': self.channels, 'use_bias': False, **self.compute._asdict()}
    y = norm(x, train=train, compute=self.compute, name='BatchNorm_0')
    if self._changes(x):
      x = ops.Conv(kernel_size=(1, 1), strides=self.strides, **how, name='Conv_2')(y)
    y = conv_norm(y, self.channels, (3, 3), strides=self.strides, train=train,
                  compute=self.compute, names=('Conv_0', 'BatchNorm_1'))
    last = ops.Conv(kernel_size=(3, 3), **how, name='Conv_1')
    return last(y, x) if self._sums_at_once(train) else x + self._varied(last(y), train)
