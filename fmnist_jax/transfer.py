"""Weights of another run to start from: what of them fits this run's model, and what does not."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmnist_jax import config as config_lib
from fmnist_jax import data, models
from fmnist_jax.errors import CheckpointError
from fmnist_jax.freezing import name_of
from fmnist_jax.storage import readback, workdir
from fmnist_jax.storage.checkpoint import Checkpoints, Shapes
from fmnist_jax.trained_model import choose


@dataclasses.dataclass(frozen=True)
class Source:
  """The best weights of another run, as far as they fit.

  Attributes:
    described: what is recorded of them: `readback.SOURCE`.
    arrays: by the name of the variable.
  """
  described: dict[str, Any]
  arrays: Mapping[str, np.ndarray]

  def into(self, variables: Any) -> Any:
    """Variables on the host, by collection, with those taken in place of their own.

    Where they have a leading axis of members, each member gets the same.
    """
    return jax.tree.map_with_path(
        lambda path, own: np.broadcast_to(self.arrays.get(name_of(path), own), own.shape),
        variables)

  def told(self) -> str:
    """What was taken and what was not, in a sentence."""
    listed = lambda name: ', '.join(self.described[name]) or 'nothing'
    return (f'From {self.described["workdir"]}, step {self.described["step"]:,}, taken: '
            f'{listed("taken")}; starting fresh: {listed("fresh")}; left there: {listed("left")}.')


def find(config: config_lib.Config, dataset: data.Dataset, begun: bool) -> Source | None:
  """What `train.init_from` names, verified; None where it is not needed.

  The config of the other run is not read: its model may be of any kind, known here or not.

  Args:
    config: of the run that is to start.
    dataset: what it is to be trained on.
    begun: whether it has started already, and does not need it any more.

  Raises:
    CheckpointError: when there is no such run, it is damaged, or nothing of it fits.
  """
  if not config.train.init_from or begun:
    return None
  named = config.train.init_from
  directory = pathlib.Path(named).expanduser()
  if workdir.holds_population(directory):
    raise CheckpointError(f'train.init_from is {named}, a population; name one of its members: '
                          f'{directory / "members"}/...')
  checkpoints = Checkpoints(directory / 'checkpoints', readback.PROGRESS)
  latest = checkpoints.latest_good()
  if latest is None:
    raise CheckpointError(f'train.init_from is {named}, where there is no run with a checkpoint.')
  best = choose(checkpoints, 'best', latest, checkpoints.progress(latest))
  before = checkpoints.progress(best)['data']['class_names']
  here = _shapes(config.model, dataset.image_shape, dataset.num_classes)
  head = set() if before == list(dataset.class_names) else _head(config.model, dataset, here)
  there, sha256 = checkpoints.describe(best)
  stored = _evaluated(there)
  fits = {name: name in stored and there[stored[name]] == here[name] and _layer(name) not in head
          for name in here}
  layers = dict.fromkeys(map(_layer, here))
  taken = [layer for layer in layers
           if all(fits[name] for name in here if _layer(name) == layer)]
  if not taken:
    raise CheckpointError(
        f'Nothing of the run in {named} fits this model by name and shape: it has '
        f'{", ".join(dict.fromkeys(map(_layer, stored)))}, this model {", ".join(layers)}.')
  left = [layer for layer in dict.fromkeys(map(_layer, stored)) if layer not in taken]
  described = {'workdir': os.fspath(named), 'step': best, 'sha256': sha256, 'taken': taken,
               'fresh': [layer for layer in layers if layer not in taken], 'left': left}
  names = {name: stored[name] for name in here if _layer(name) in taken}
  arrays = checkpoints.arrays(best, {name: there[name] for name in names.values()})
  return Source(described, {name: arrays[other] for name, other in names.items()})


def _evaluated(there: Collection[str]) -> dict[str, str]:
  """Of the arrays of a checkpoint, those that the run was evaluated with: the averages, if kept.

  By the name of the variable.
  """
  averaged = any(name.startswith('state/ema/') for name in there)
  prefix = 'state/ema/' if averaged else 'state/'
  found = {}
  for name in there:
    for part, short in (('params/', 'params/'), ('model_state/', '')):
      if name.startswith(prefix + part):
        found[short + name.removeprefix(prefix + part)] = name
  return found


def _shapes(model: Any, image_shape: tuple[int, int, int], num_classes: int) -> Shapes:
  """Of every variable of a model, by name: 'params/Conv_0/kernel'."""
  module = models.build(model, num_classes, models.Compute())
  variables = jax.eval_shape(
      lambda images: module.init(jax.random.key(0), images, train=False),
      jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  return {name_of(path): (leaf.dtype.name, leaf.shape)
          for path, leaf in jax.tree.leaves_with_path(variables)}


def _head(model: Any, dataset: data.Dataset, here: Shapes) -> set[str]:
  """The layers that another number of classes would change: they are for certain classes.

  None of a Flax module that stands for itself, which is not told how many classes there are.
  """
  other = _shapes(model, dataset.image_shape, dataset.num_classes + 1)
  return {_layer(name) for name in here if other.get(name) != here[name]}


def _layer(name: str) -> str:
  """'Conv_0', of 'params/Conv_0/kernel' and 'batch_stats/Conv_0/mean'."""
  _, _, path = name.partition('/')
  return path.rpartition('/')[0] or path
