"""This library: the equipment of a run, whose epochs are dispatched as a run dispatches them.

The training set lies on the device as uint8; order, gather, normalisation, dropout, optimiser and
metrics are part of every epoch that is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fmnist_jax import machine

machine.prepare_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import protocol  # noqa: E402

from fmnist_jax import config as config_lib  # noqa: E402
from fmnist_jax import data, sharding, train  # noqa: E402
from fmnist_jax.equipment import Equipment  # noqa: E402
from fmnist_jax.programs import hyper_arrays  # noqa: E402

MODELS = {
    'mlp': config_lib.MLP(hidden=(128,)),
    'cnn': config_lib.CNN(channels=(32, 64), pool=(2, 2), dense=(128,)),
    'cnn_blocks': config_lib.CNN(channels=(32, 64, 128), padding='SAME', pool=(2, 2, 2),
                                 batch_norm=True, dense=(128,), dense_dropout=0.3),
    'cnn_deep': config_lib.CNN(channels=(16, 32, 64), convolutions=2, padding='SAME',
                               pool=(2, 2, 2), batch_norm=True, dropout=(0.1, 0.1, 0.2),
                               dense=(128,), dense_dropout=0.3),
    'cnn_dropout': config_lib.CNN(channels=(64, 128, 256), pool=(2, 2, 0),
                                  dropout=(0.25, 0.4, 0.0), dense=(128,), dense_dropout=0.3),
    'resnet': config_lib.ResNet(channels=(16, 32, 64), blocks=2)}


class Ours:
  """A `protocol.Subject`."""

  def __init__(self, spec: dict[str, Any], images: np.ndarray, labels: np.ndarray):
    # Without the cache of compiled programs, so that every start compiles: it is reported.
    platform = machine.setup(compile_cache=False)
    config = config_lib.Config(
        data=config_lib.Data(batch_size=spec['batch'], validation_examples=0),
        model=MODELS[spec['model']],
        optim=config_lib.Adam(learning_rate=protocol.LEARNING_RATE, b1=protocol.BETA_1,
                              b2=protocol.BETA_2, eps=protocol.EPSILON),
        train=config_lib.Train(seed=spec['seed'], precision=spec['precision'],
                               operations=spec.get('operations', 'auto')))
    config = train.resolve(config_lib.validate(config), platform, resident=True)
    dataset = data.deal(config.data, data.Dataset.of_arrays(
        'training', images[:spec['examples']], labels[:spec['examples']], images[:1], labels[:1]))
    self.equipment = Equipment(config, dataset, sharding.make_mesh(spec['batch']))
    self.programs = self.equipment.programs
    self.versions = {**machine.versions(), 'precision': config.train.precision,
                     'operations': config.train.operations}
    self.hyper = self.programs.put(hyper_arrays(config))
    self.state = self.programs.call(self.programs.init,
                                    self.programs.put(np.int32(spec['seed'])), self.hyper)
    self.epoch = 0

  def train(self, examples: int) -> None:
    """See `protocol.Subject`."""
    steps, previous = examples // self.programs.config.data.batch_size, None
    calls = self.equipment.train(self.state, self.programs.zero(), self.hyper, self.epoch)
    self.epoch += 1
    for done, self.state, sums in calls:
      if previous is not None:
        jax.device_get(previous)  # As a run does, which shows them.
      previous = sums
      if done >= steps:  # A warm-up may end with a call that the epoch goes on after.
        break
    if int(sums.bad_step) >= 0:
      raise RuntimeError('The loss is not finite.')
    jax.block_until_ready(self.state)

  def predictor(self, batch: int, *, timed: bool) -> protocol.Predictor:
    """See `protocol.Subject`."""
    del timed
    variables = self.state.variables()

    def place(images: np.ndarray) -> Callable[[], np.ndarray]:
      parts = [self.programs.put(part) for part in np.split(images, len(images) // batch)]
      return lambda: np.concatenate(jax.device_get(
          [self.programs.call(self.programs.predict, variables, part) for part in parts]))
    return place


if __name__ == '__main__':
  protocol.run(Ours)
