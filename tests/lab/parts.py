"""Model, optimiser, loss, augmentation and data of a group's own."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fmnist_jax
from fmnist_jax import setting

CLASSES = ('red', 'green', 'blue', 'stripes', 'checks', 'dark', 'light')


@dataclasses.dataclass
class Mixer(fmnist_jax.Model):
  """A mixer (arXiv:2105.01601) with BatchNorm and stochastic depth (arXiv:1603.09382)."""
  width: int = setting(16, 'channels of a token', low=1)
  blocks: int = setting(2, 'mixing blocks', low=1)
  skip: float = setting(0.1, 'probability of leaving out a block', low=0, high=1, open_high=True,
                        continuous=True)

  def build(self, num_classes, compute):
    return MixerModule(self.width, self.blocks, self.skip, num_classes)

  def check(self, image_shape):
    if image_shape[0] % 8 or image_shape[1] % 8:
      raise fmnist_jax.errors.ConfigError('The mixer takes images of multiples of 8 pixels.')


class MixerModule(nn.Module):
  width: int
  blocks: int
  skip: float
  num_classes: int

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Conv(self.width, (8, 8), strides=(8, 8))(images)
    x = x.reshape(len(x), -1, self.width)
    for _ in range(self.blocks):
      y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
      y = nn.Dense(y.shape[1])(y.swapaxes(1, 2)).swapaxes(1, 2)
      y = nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(y)))
      if train:  # A random number stream of its own.
        y = jnp.where(jax.random.uniform(self.make_rng('depth'), (len(x), 1, 1)) < self.skip, 0, y)
      x = x + y
    calls = self.variable('tally', 'calls', lambda: jnp.zeros((), jnp.int32))
    if train and not self.is_initializing():
      calls.value += 1
    return nn.Dense(self.num_classes)(x.mean(1))


@dataclasses.dataclass
class Orthogonal(fmnist_jax.Optimizer):
  """Muon, as optax has it."""
  learning_rate: float = setting(0.02, 'peak learning rate', low=0, continuous=True)
  beta: float = setting(0.9, 'decay of the momentum', low=0, high=1, open_high=True,
                        continuous=True)

  def build(self, horizon):
    return optax.contrib.muon(self.rate(horizon), beta=self.beta)


@dataclasses.dataclass
class Triangle(fmnist_jax.Schedule):
  """Up, then down."""
  peak: float = setting(0.4, 'when the peak is reached, a share of the run', low=0, high=1,
                        continuous=True)

  def build(self, horizon):
    top = self.peak * horizon.steps
    return lambda step: jnp.minimum((step + 1) / (top + 1),
                                    (horizon.steps - step) / (horizon.steps - top))


@dataclasses.dataclass
class Focal(fmnist_jax.Loss):
  """Focal loss (arXiv:1708.02002)."""
  gamma: float = setting(2.0, 'how much less what is easy counts', low=0, continuous=True)

  def __call__(self, logits, targets):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * (1 - jnp.exp(log_p)) ** self.gamma * log_p, -1)


@dataclasses.dataclass
class Brightness(fmnist_jax.Augmentation):
  """Multiplies each image by a factor of its own."""
  amount: float = setting(0.2, 'largest relative change', low=0, high=1, continuous=True)

  def __call__(self, key, images, targets):
    factor = 1 + self.amount * jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1)
    return jnp.clip(fmnist_jax.ops.pixels(images) * factor, 0, 1), targets


@dataclasses.dataclass
class Patterns(fmnist_jax.DataSource):
  """Coloured squares, stripes and checks: 32 x 32 pixels, 3 channels, 7 classes."""
  examples: int = setting(420, 'training examples drawn', low=7)
  noise: int = setting(40, 'largest noise, grey values', low=0, high=255)

  def load(self):
    return fmnist_jax.Dataset.of_arrays(
        'patterns', *self._draw(self.examples, 0), *self._draw(70, 1), CLASSES, synthetic=True)

  def _draw(self, count, seed):
    labels = np.arange(count) % 7
    images = np.zeros((count, 32, 32, 3), np.int32)
    for label in range(3):
      images[labels == label, 8:24, 8:24, label] = 200
    images[labels == 3, ::4] = 160
    images[labels == 4, ::2, ::2] = 220
    images[labels == 5], images[labels == 6] = 30, 190
    noise = np.random.Philox(key=seed).random_raw(images.size).reshape(images.shape)
    images += (noise % np.uint64(2 * self.noise + 1)).astype(np.int32) - self.noise
    return images.clip(0, 255).astype(np.uint8), labels
