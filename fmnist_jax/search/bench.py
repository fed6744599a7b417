"""What trials share: data on the devices, and one set of compiled programs for each structure."""

from __future__ import annotations

import threading
from typing import Any

from jax.sharding import Mesh

from fmnist_jax import config as config_lib
from fmnist_jax import data, settings, sharding, train
from fmnist_jax.config import Config
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import ConfigError
from fmnist_jax.programs import Programs
from fmnist_jax.storage import files
from fmnist_jax.transfer import Source


def structure(config: Config) -> str:
  """What runs of the same programs have in common: all but seed, locations, continuous values."""
  return files.digest(_plain(config))


def _plain(config: Config) -> dict[str, Any]:
  values: dict[str, Any] = dict.fromkeys(settings.locations(config), '')
  values |= dict.fromkeys(config_lib.continuous(config), 0.5) | {'train.seed': 0}
  return config_lib.to_json(config_lib.replace(config, values))


class Bench:
  """Where trials are trained; in several threads, each structure is compiled once."""

  def __init__(self, dataset: data.Dataset, source: Source | None, members: Mesh | None):
    """Args:
      dataset: dealt out.
      source: weights to start from.
      members: a mesh with a member axis, for trials that train together; None: they train apart.
    """
    self._dataset, self._source, self._members = dataset, source, members
    self._equipment: dict[tuple[Mesh, str], Equipment] = {}
    self._fitted: dict[str, Equipment | ConfigError] = {}
    self._lock = threading.Lock()

  def fit(self, config: Config) -> tuple[Config, str]:
    """A trial's config with nothing left to 'auto', and its structure.

    Raises:
      ConfigError: when its parts do not fit together or the data.
    """
    with self._lock:
      config = config_lib.validate(config)
      mesh = sharding.make_mesh(config.data.batch_size, config.train.devices)
      config = train.suited(config, self._dataset, mesh)
      key = structure(config)
      if key not in self._fitted:
        try:
          train.check_parts(config, self._dataset)
          self._fitted[key] = self._equip(config, self._members or mesh)
        except ConfigError as error:
          self._fitted[key] = error
      found = self._fitted[key]
      if isinstance(found, ConfigError):
        raise found
      return config, key

  def equipment(self, key: str) -> Equipment:
    """Of a structure that something was fitted to."""
    found = self._fitted[key]
    assert isinstance(found, Equipment)
    return found

  def _equip(self, config: Config, mesh: Mesh) -> Equipment:
    """Data are placed once on a mesh, with what the loss takes them for, for all programs."""
    place = (mesh, files.digest(_plain(config)['loss']))
    if place not in self._equipment:
      self._equipment[place] = Equipment(config, self._dataset, mesh, self._source)
      return self._equipment[place]
    shared = self._equipment[place]
    one = shared.programs
    programs = Programs(config, mesh, one.image_shape, one.num_classes, one.train_examples,
                        one.class_counts)
    if not programs.horizon.steps_per_epoch:
      raise ConfigError(f'data.batch_size is {config.data.batch_size}, but there are only '
                        f'{one.train_examples} training examples.')
    return shared.with_programs(programs)
