"""Inverted residuals with depthwise convolutions: few parameters and multiplications."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import ops
from fmnist_jax.errors import ConfigError
from fmnist_jax.models.base import Compute, Model
from fmnist_jax.models.layers import (
    ACTIVATIONS,
    WIDEST,
    Dropout,
    SqueezeExcitation,
    StochasticDepth,
    conv_norm,
)
from fmnist_jax.settings import is_on, setting


@dataclasses.dataclass
class MobileNet(Model):
  """Stages of inverted residuals (MobileNetV2, arXiv:1801.04381; EfficientNet, arXiv:1905.11946).

  A 3x3 convolution, then stages of blocks, then a 1x1 convolution, the mean of each channel, and
  the head. A block widens its input with a 1x1 convolution, convolves each channel by itself, gates
  the channels (squeeze-and-excitation), and narrows them without an activation, to which the input
  is added where it has the same shape. The tuples have one entry a stage. Of this form are

    MobileNetV2        MobileNet(stem=32, stem_stride=2, channels=(16, 24, 32, 64, 96, 160, 320),
                                 expansion=(1, 6, 6, 6, 6, 6, 6), blocks=(1, 2, 3, 4, 3, 3, 1),
                                 strides=(1, 2, 2, 2, 1, 2, 1), kernels=(3,) * 7, head=1280)
                       but that its ReLU is bounded by 6, for numbers of 8 bits
    EfficientNet-B0    MobileNet(stem=32, stem_stride=2, channels=(16, 24, 40, 80, 112, 192, 320),
                                 expansion=(1, 6, 6, 6, 6, 6, 6), blocks=(1, 2, 2, 3, 3, 4, 1),
                                 strides=(1, 2, 2, 2, 1, 2, 1), kernels=(3, 3, 5, 3, 5, 5, 3),
                                 head=1280, squeeze=4, activation='silu', dropout=0.2,
                                 stochastic_depth=0.2)
  """
  takes_bytes = True
  cached_examples = 128
  stem: int = setting(16, 'channels of the first convolution', low=1, high=WIDEST)
  stem_stride: int = setting(1, 'of the first convolution, pixels', low=1, high=31)
  channels: tuple[int, ...] = setting((16, 24, 40, 80), 'channels of each stage', low=1,
                                      high=WIDEST)
  expansion: tuple[int, ...] = setting((1, 4, 4, 4), 'how many times wider blocks are inside, a '
                                       'stage; 1: no convolution that widens', low=1, high=1000)
  blocks: tuple[int, ...] = setting((1, 2, 2, 2), 'blocks in each stage', low=1, high=1000)
  strides: tuple[int, ...] = setting((1, 2, 2, 1), 'of each stage\'s first block, pixels', low=1,
                                     high=31)
  kernels: tuple[int, ...] = setting((3, 3, 3, 3), 'side of the kernels in each stage, pixels',
                                     low=1, high=31)
  head: int = setting(320, 'channels of the last convolution', low=1, high=WIDEST)
  squeeze: int = setting(4, 'squeeze-and-excitation in each block, through so many times fewer '
                         'channels than the block takes; 0: none', low=0, high=WIDEST)
  activation: str = setting('relu', 'non-linearity; relu is the fastest on CPUs',
                            choices=tuple(ACTIVATIONS))
  dropout: float = setting(0.0, 'rate before the head', low=0, high=1, open_high=True,
                           continuous=True)
  stochastic_depth: float = setting(0.0, 'rate at which the last block is left out for an example '
                                    'in training; others less, in proportion to their depth '
                                    '(arXiv:1603.09382)', low=0, high=1, open_high=True,
                                    continuous=True)

  def check_settings(self, name: str) -> None:
    """Raises ConfigError when tuples have another number of entries than there are stages."""
    stages = len(self.channels)
    for field in ('expansion', 'blocks', 'strides', 'kernels'):
      found = len(getattr(self, field))
      if found != stages:
        raise ConfigError(f'{name}.{field} has {found} entries for {stages} stages in '
                          f'{name}.channels; give one entry a stage.')

  def build(self, num_classes: int, compute: Compute) -> nn.Module:
    """See `Model`."""
    return MobileNetModule(self, num_classes, compute)


class MobileNetModule(nn.Module):
  """The network that `MobileNet` describes, of `num_classes` outputs."""
  settings: MobileNet
  num_classes: int
  compute: Compute

  @nn.compact
  def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
    """Images uint8, or float in [0, 1] -> logits, float32 [B, num_classes]."""
    settings, how = self.settings, {'train': train, 'compute': self.compute}
    x = ops.pixels(images_BxHxWxC, self.compute.dtype)
    x = active(x, settings.activation, settings.stem, (3, 3), strides=(settings.stem_stride,) * 2,
               names=('Conv_0', 'BatchNorm_0'), **how)
    number = 0
    for channels, expansion, blocks, stride, kernel in zip(
        settings.channels, settings.expansion, settings.blocks, settings.strides,
        settings.kernels):
      for block in range(blocks):
        number += 1
        rate = settings.stochastic_depth * (number / sum(settings.blocks))
        x = InvertedResidual(channels, expansion, kernel, stride if not block else 1,
                             settings.squeeze, rate, settings.activation, self.compute)(
                                 x, train=train)
    x = active(x, settings.activation, settings.head, (1, 1), names=('Conv_1', 'BatchNorm_1'),
               **how)
    x = ops.avg_pool(x, (x.shape[1], x.shape[2]), implementation=self.compute.implementation)
    x = Dropout(settings.dropout, self.compute.implementation)(x.reshape(len(x), -1), train=train)
    return ops.Dense(self.num_classes, **self.compute._asdict())(x).astype(jnp.float32)


class InvertedResidual(nn.Module):
  """x + narrow(gate(depthwise(widen(x)))), each convolution with BatchNorm; see `MobileNet`.

  Attributes:
    channels: of the result.
    expansion: how many times wider it is inside.
    kernel: side of the depthwise convolution's kernels, pixels.
    stride: of that convolution, pixels.
    squeeze: of squeeze-and-excitation, how many times fewer channels than x has; 0: none.
    stochastic_depth: rate at which all but x is left out.
    activation: a name of `ACTIVATIONS`.
    compute: how.
  """
  channels: int
  expansion: int
  kernel: int
  stride: int
  squeeze: int
  stochastic_depth: float | jax.Array
  activation: str
  compute: Compute

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', channels]."""
    how: dict[str, Any] = {'train': train, 'compute': self.compute}
    taken = x.shape[-1]
    wide = taken * self.expansion
    y = x
    if self.expansion > 1:
      y = active(y, self.activation, wide, (1, 1), names=('Conv_0', 'BatchNorm_0'), **how)
    y = active(y, self.activation, wide, (self.kernel,) * 2, strides=(self.stride,) * 2,
               groups=wide, names=('Conv_1', 'BatchNorm_1'), **how)
    if self.squeeze:
      y = SqueezeExcitation(max(taken // self.squeeze, 1), self.compute, self.activation)(y)
    added = x if self.stride == 1 and taken == self.channels else None
    vary = added is not None and train and is_on(self.stochastic_depth)
    y = conv_norm(y, self.channels, (1, 1), relu=False, residual=None if vary else added,
                  names=('Conv_2', 'BatchNorm_2'), **how)
    return x + StochasticDepth(self.stochastic_depth)(y, train=train) if vary else y


def active(x: jax.Array, activation: str, *args: Any, **how: Any) -> jax.Array:
  """`conv_norm` and an activation, which is part of the operation where it is ReLU."""
  x = conv_norm(x, *args, relu=activation == 'relu', **how)
  return x if activation == 'relu' else ACTIVATIONS[activation](x)
