"""This library: the programs that a run compiles, called as a run calls them.

The training set lies on the device as uint8; order, gather, normalisation, dropout, optimiser and
metrics are part of every epoch that is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fmnist_jax import backend

backend.prepare_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import protocol  # noqa: E402

from fmnist_jax import config as config_lib  # noqa: E402
from fmnist_jax import sharding, train  # noqa: E402
from fmnist_jax.epoch import Programs, hyper_arrays  # noqa: E402
from fmnist_jax.step import Sums  # noqa: E402

MODELS = {
    'mlp': config_lib.MLP(hidden=(128,)),
    'cnn': config_lib.CNN(channels=(32, 64), pool=(2, 2), dense=(128,)),
    'cnn_blocks': config_lib.CNN(channels=(32, 64, 128), padding='SAME', pool=(2, 2, 2),
                                 batch_norm=True, dense=(128,), dense_dropout=0.3)}


class Ours:
  """A `protocol.Subject`."""

  def __init__(self, spec: dict[str, Any], images: np.ndarray, labels: np.ndarray):
    # Without the cache of compiled programs, so that every start compiles: it is reported.
    platform = backend.setup(deterministic=False, compile_cache=False)
    config = config_lib.Config(
        data=config_lib.Data(batch_size=spec['batch']), model=MODELS[spec['model']],
        optim=config_lib.Adam(protocol.LEARNING_RATE, protocol.BETA_1, protocol.BETA_2,
                              protocol.EPSILON),
        train=config_lib.Train(seed=spec['seed'], precision=spec['precision']))
    config = train.resolve(config_lib.validate(config), platform, resident=True)
    mesh = sharding.make_mesh(spec['batch'])
    self.whole = sharding.replicated(mesh)
    self.programs = Programs(config, mesh, (28, 28, 1), 10, spec['examples'])
    self.versions = {**backend.versions(), 'precision': config.train.precision,
                     'operations': config.train.operations}
    self.hyper = self._put(hyper_arrays(config))
    self.state = self._call(self.programs.init, self._put(np.int32(spec['seed'])), self.hyper)
    self.images, self.labels = self._put((images[:spec['examples']], labels[:spec['examples']]))
    self.epoch = 0

  def _put(self, tree: Any) -> Any:
    return sharding.put(tree, self.whole)

  def _call(self, function: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Any:
    return self.programs.compiled(function, *args, donate=donate)(*args)

  def train(self, examples: int) -> None:
    """See `protocol.Subject`."""
    programs, config = self.programs, self.programs.config
    order = self._call(programs.order, self.state.key, self._put(np.int32(self.epoch)))
    self.epoch += 1
    steps, size = examples // config.data.batch_size, config.train.steps_per_dispatch
    sums, previous = self._put(Sums.zero()), None
    for start in range(0, steps, size):
      stop = min(start + size, steps)
      self.state, sums = self._call(
          programs.train, self.state, sums, self.hyper, self.images, self.labels, order,
          self._put(np.int32(start)), self._put(np.int32(stop)), donate=(0,))
      if previous is not None:
        jax.device_get(previous)  # As a run does, which shows them.
      previous = sums
    if int(sums.bad_step) >= 0:
      raise RuntimeError('The loss is not finite.')
    jax.block_until_ready(self.state)

  def predictor(self, batch: int, *, timed: bool) -> protocol.Predictor:
    """See `protocol.Subject`."""
    del timed
    variables = self.state.variables()

    def place(images: np.ndarray) -> Callable[[], np.ndarray]:
      parts = [self._put(part) for part in np.split(images, len(images) // batch)]
      return lambda: np.concatenate(jax.device_get(
          [self._call(self.programs.predict, variables, part) for part in parts]))
    return place


if __name__ == '__main__':
  protocol.run(Ours)
