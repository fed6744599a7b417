"""Which members a population has: seeds, and every combination of varied settings."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from fmnist_jax import config as config_lib
from fmnist_jax import settings
from fmnist_jax.errors import ConfigError

MOST_MEMBERS = 10_000


@dataclasses.dataclass(frozen=True)
class Member:
  """One run of a population.

  Attributes:
    name: of its directory below WORKDIR/members.
    settings: those that are varied.
    config: of the run.
  """
  name: str
  settings: dict[str, float]
  config: config_lib.Config


def plan(config: config_lib.Config, seeds: int,
         vary: Mapping[str, Sequence[float]]) -> list[Member]:
  """The members of a population: every combination of varied values, with every seed.

  Args:
    config: of the member with the first seed, validated.
    seeds: how many; member k has seed `config.train.seed + k`.
    vary: values of continuous settings by dotted name, `model.dropout.0` for entries of tuples.

  Raises:
    ConfigError: for a field that cannot be varied, or a value out of its range.
  """
  if seeds < 1:
    raise ConfigError(f'--seeds is {seeds}; it must be at least 1.')
  for name, values in vary.items():
    _check_can_vary(config, name)
    if not values:
      raise ConfigError(f'--vary {name} has no values; write --vary {name}=VALUE,VALUE.')
    if len(set(values)) < len(values):
      raise ConfigError(f'--vary {name} lists a value twice.')
  total = seeds * math.prod(map(len, vary.values()))
  if total > MOST_MEMBERS:
    raise ConfigError(f'--seeds and --vary make {total:,} members; there can be at most '
                      f'{MOST_MEMBERS:,}.')
  members = []
  for combination in itertools.product(*vary.values()):
    settings = dict(zip(vary, map(float, combination)))
    for seed in range(config.train.seed, config.train.seed + seeds):
      own = config_lib.validate(config_lib.replace(config, {'train.seed': seed, **settings}))
      name = '_'.join([f'seed-{seed}', *(f'{key}-{value!r}' for key, value in settings.items())])
      members.append(Member(name, settings, own))
  return members


def _check_can_vary(config: config_lib.Config, name: str) -> None:
  fields = {key: (value, field.limits.continuous)
            for key, value, field in config_lib.leaves(config)}
  able = []
  for key, (value, continuous) in fields.items():
    if continuous:
      able += [f'{key}.{i}' for i in range(len(value))] if isinstance(value, tuple) else [key]
  if name in able:
    return
  if name not in fields:
    raise ConfigError(settings.unknown(name, [*able, *fields]))
  value, continuous = fields[name]
  if continuous:
    entries = [f'{name}.{i}' for i in range(len(value))]
    raise ConfigError(f'{name} has an entry a block; '
                      f'{"vary " + " or ".join(entries) if entries else "give the config some"}.')
  raise ConfigError(f'{name} cannot be varied within a population, since the program depends on '
                    f'it; those that can be: {", ".join(able)}.')


def features(config: config_lib.Config) -> tuple[str, ...]:
  """Which continuous settings are switched on: members that agree in this share a program."""
  return tuple(config_lib.continuous(config))
