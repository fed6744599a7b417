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
from fmnist_jax.storage import files
from fmnist_jax.transfer import Source


class Bench:
  """Where trials are trained; in several threads, each structure is compiled once."""

  def __init__(self, dataset: data.Dataset, source: Source | None, members: Mesh | None):
    """Args:
      dataset: dealt out.
      source: weights to start from.
      members: a mesh with a member axis, for trials that train together; None: they train apart.
    """
    self._dataset, self._source, self._members = dataset, source, members
    self._placed: dict[tuple[Mesh, str], Equipment] = {}
    self._fitted: dict[str, Equipment | ConfigError] = {}
    self._lock = threading.Lock()

  def fit(self, config: Config) -> tuple[Config, Equipment]:
    """A trial's config with nothing left to 'auto', and what trials of its structure train with.

    Raises:
      ConfigError: when its parts do not fit together or the data.
    """
    with self._lock:
      config = config_lib.validate(config)
      mesh = sharding.make_mesh(config.data.batch_size, config.train.devices)
      config = train.suited(config, self._dataset, mesh)
      structure = _structure(config)
      key = files.digest(structure)
      if key not in self._fitted:
        try:
          train.check_parts(config, self._dataset)
          # Data are placed once on a mesh, with what the loss takes them for.
          place = self._members or mesh, files.digest(structure['loss'])
          if place in self._placed:
            self._fitted[key] = self._placed[place].of(config)
          else:
            self._fitted[key] = self._placed[place] = Equipment(config, self._dataset, place[0],
                                                                self._source)
        except ConfigError as error:
          self._fitted[key] = error
      found = self._fitted[key]
      if isinstance(found, ConfigError):
        raise found
      return config, found


def _structure(config: Config) -> dict[str, Any]:
  """What runs of the same programs have in common: all but seed, locations, continuous values."""
  values: dict[str, Any] = dict.fromkeys(settings.locations(config), '')
  values |= dict.fromkeys(config_lib.continuous(config), 0.5) | {'train.seed': 0}
  return config_lib.to_json(config_lib.replace(config, values))
