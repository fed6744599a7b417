"""Keras on TensorFlow: `model.fit`, as its users write it, with `jit_compile` off or on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['KERAS_BACKEND'] = 'tensorflow'

import keras
import numpy as np
import protocol
import tensorflow as tf
from keras import layers


def _conv_norm(channels: int, size: int = 3, strides: int = 1) -> list[layers.Layer]:
  return [layers.Conv2D(channels, size, strides, padding='same', use_bias=False),
          layers.BatchNormalization(momentum=0.9, epsilon=1e-5)]


def _residual_network() -> keras.Model:
  after = lambda x, *several: keras.Sequential(several)(x)
  images = keras.Input((28, 28, 1))
  x = after(images, *_conv_norm(16), layers.ReLU())
  for channels, strides in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
    y = after(x, *_conv_norm(channels, 3, strides), layers.ReLU(), *_conv_norm(channels))
    if strides != 1:
      x = after(x, *_conv_norm(channels, 1, strides))
    x = layers.ReLU()(layers.Add()([x, y]))
  return keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _network(model: str) -> keras.Model:
  if model == 'resnet':
    return _residual_network()
  inputs = [keras.Input((28, 28, 1))]
  if model == 'mlp':
    body = [layers.Flatten(), layers.Dense(128, 'relu'), layers.Dense(10)]
  elif model == 'cnn':
    body = [layers.Conv2D(32, 3, activation='relu'), layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation='relu'), layers.MaxPooling2D(),
            layers.Flatten(), layers.Dense(128, 'relu'), layers.Dense(10)]
  elif model == 'cnn_dropout':
    body = [layers.Conv2D(64, 3, activation='relu'), layers.MaxPooling2D(), layers.Dropout(0.25),
            layers.Conv2D(128, 3, activation='relu'), layers.MaxPooling2D(), layers.Dropout(0.4),
            layers.Conv2D(256, 3, activation='relu'), layers.Flatten(),
            layers.Dense(128, 'relu'), layers.Dropout(0.3), layers.Dense(10)]
  elif model == 'cnn_deep':
    body = []
    for channels, rate in ((16, 0.1), (32, 0.1), (64, 0.2)):
      body += [*_conv_norm(channels), layers.ReLU(), *_conv_norm(channels), layers.ReLU(),
               layers.MaxPooling2D(), layers.Dropout(rate)]
    body += [layers.Flatten(), layers.Dense(128, 'relu'), layers.Dropout(0.3), layers.Dense(10)]
  else:
    body = []
    for channels in (32, 64, 128):
      body += [*_conv_norm(channels), layers.ReLU(), layers.MaxPooling2D()]
    body += [layers.Flatten(), layers.Dense(128, 'relu'), layers.Dropout(0.3), layers.Dense(10)]
  return keras.Sequential(inputs + body)


class Keras:
  """A `protocol.Subject`."""

  def __init__(self, spec: dict[str, Any], images: np.ndarray, labels: np.ndarray):
    keras.utils.set_random_seed(spec['seed'])
    self.versions = {'keras': keras.__version__, 'tensorflow': tf.__version__}
    self.spec = spec
    self.images, self.labels = protocol.unit(images), labels
    if spec['bf16']:
      keras.mixed_precision.set_global_policy('mixed_bfloat16')
    self.network = _network(spec['model'])
    self.network.compile(
        keras.optimizers.Adam(protocol.LEARNING_RATE, protocol.BETA_1, protocol.BETA_2,
                              protocol.EPSILON),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=['accuracy'],
        jit_compile=spec['jit_compile'], steps_per_execution=spec['steps_per_execution'])
    self.datasets: dict[int, tf.data.Dataset] = {}

  def _dataset(self, examples: int) -> tf.data.Dataset:
    if examples not in self.datasets:
      pairs = tf.data.Dataset.from_tensor_slices((self.images[:examples], self.labels[:examples]))
      self.datasets[examples] = pairs.cache().shuffle(examples).batch(
          self.spec['batch'], drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return self.datasets[examples]

  def train(self, examples: int) -> None:
    """See `protocol.Subject`."""
    if self.spec['input'] == 'tf.data':
      self.network.fit(self._dataset(examples), epochs=1, verbose=0)
    else:
      self.network.fit(self.images[:examples], self.labels[:examples], epochs=1, verbose=0,
                       batch_size=self.spec['batch'])

  def predictor(self, batch: int, *, timed: bool) -> protocol.Predictor:
    """See `protocol.Subject`."""
    # `model.predict` does the same with more overhead.
    @tf.function(jit_compile=timed and self.spec['jit_compile'])
    def scores(part: tf.Tensor) -> tf.Tensor:
      return tf.nn.softmax(tf.cast(self.network(part, training=False), tf.float32))

    def place(images: np.ndarray) -> Callable[[], np.ndarray]:
      parts = tf.split(tf.constant(protocol.unit(images)), len(images) // batch)
      return lambda: tf.concat([scores(part) for part in parts], 0).numpy()
    return place


if __name__ == '__main__':
  protocol.run(Keras)
