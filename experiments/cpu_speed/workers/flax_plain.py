"""Flax as its users write it: `nn.Conv`, `nn.max_pool`, one jitted step a batch.

float32, because that is the default. The data are numpy arrays; JAX runs steps asynchronously, so
the host takes the next batch while the last one is worked on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
from flax.training import train_state


class Network(nn.Module):
  """One of the three models."""
  model: str

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """float32 [B, 28, 28, 1] -> logits [B, 10]."""
    channels = {'mlp': (), 'cnn': (32, 64), 'cnn_blocks': (32, 64, 128)}[self.model]
    blocks = self.model == 'cnn_blocks'
    for width in channels:
      x = nn.Conv(width, (3, 3), padding='SAME' if blocks else 'VALID', use_bias=not blocks)(x)
      if blocks:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
      x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
    x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
    if blocks:
      x = nn.Dropout(0.3, deterministic=not train)(x)
    return nn.Dense(10)(x)


class TrainState(train_state.TrainState):
  """With BatchNorm statistics, if any, and the key of dropout."""
  statistics: Any
  key: jax.Array


@jax.jit
def _step(state: TrainState, images: jax.Array, labels: jax.Array) -> Any:
  key = jax.random.fold_in(state.key, state.step)

  def loss_fn(params: Any) -> Any:
    logits, updated = state.apply_fn({'params': params, **state.statistics}, images, train=True,
                                     rngs={'dropout': key}, mutable=list(state.statistics))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits, updated)

  (loss, (logits, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  state = state.apply_gradients(grads=grads, statistics=updated)
  return state, loss, (logits.argmax(-1) == labels).sum()


class Flax:
  """A `protocol.Subject`."""

  def __init__(self, spec: dict[str, Any], images: np.ndarray, labels: np.ndarray):
    self.versions = {'jax': jax.__version__, 'flax': flax.__version__, 'optax': optax.__version__}
    self.batch = spec['batch']
    self.images, self.labels = protocol.unit(images), labels
    self.random = np.random.default_rng(spec['seed'])
    network, key = Network(spec['model']), jax.random.key(spec['seed'])
    variables = dict(network.init(key, jnp.zeros((1, 28, 28, 1)), train=False))
    self.state = TrainState.create(
        apply_fn=network.apply, params=variables.pop('params'), statistics=variables, key=key,
        tx=optax.adam(protocol.LEARNING_RATE, protocol.BETA_1, protocol.BETA_2,
                      protocol.EPSILON))

  def train(self, examples: int) -> None:
    """See `protocol.Subject`."""
    order = self.random.permutation(examples)
    results = []
    for start in range(0, examples - self.batch + 1, self.batch):
      rows = order[start:start + self.batch]
      self.state, *result = _step(self.state, self.images[rows], self.labels[rows])
      results.append(result)
    losses = jax.device_get(jax.block_until_ready(results))
    if not np.isfinite(np.array(losses, np.float32)).all():
      raise RuntimeError('The loss is not finite.')
    jax.block_until_ready(self.state)

  def predictor(self, batch: int, *, timed: bool) -> protocol.Predictor:
    """See `protocol.Subject`."""
    del timed
    state = self.state
    variables = {'params': state.params, **state.statistics}
    scores = jax.jit(lambda v, x: jax.nn.softmax(state.apply_fn(v, x, train=False)))

    def place(images: np.ndarray) -> Callable[[], np.ndarray]:
      parts = jax.device_put(np.split(protocol.unit(images), len(images) // batch))
      return lambda: np.concatenate(jax.device_get([scores(variables, part) for part in parts]))
    return place


if __name__ == '__main__':
  protocol.run(Flax)
