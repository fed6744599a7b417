"""Checks: every setting's type and range, every section's kind."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

import jax

from fmnist_jax.errors import ConfigError
from fmnist_jax.settings.fields import (
    WORDS,
    Field,
    Kind,
    Limits,
    base_of,
    default_of,
    fields_of,
    holds_sections,
    is_section,
    is_section_type,
    is_sections_type,
    kind_of,
    leaves,
    replace,
    sections,
    shown,
)
from fmnist_jax.settings.saved import names

# A network of more layers than this is a mistake, and would take minutes to trace.
_MOST_ENTRIES = 256


def validate(section: Any) -> Any:
  """Checks every setting's type and range, then each section as a whole.

  A section that has a method `check_settings(name)` is asked, with its dotted name, once its
  settings are right; it raises ConfigError.

  Returns:
    A copy with numbers widened to their field's type (1 -> 1.0).

  Raises:
    ConfigError: one sentence naming the field, its value and what it must be.
  """
  _check_sections(section, '')
  section = replace(section, {name: _check(name, value, field)
                              for name, value, field in leaves(section)})
  for name, _, entry in [('', None, section), *sections(section)]:
    if hasattr(entry, 'check_settings'):
      entry.check_settings(name)
  return section


def _check_sections(section: Any, prefix: str) -> None:
  for field, hint, value in fields_of(section):
    name = prefix + field.name
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    if is_sections_type(hint) and not isinstance(value, (tuple, list)):
      raise ConfigError(f'{name} is {shown(value)}; it must be a tuple of sections of a kind: '
                        f'{names(inner)}.')
    if holds_sections(value, hint) and len(value) <= _MOST_ENTRIES:
      several = [(f'{name}.{i}', entry) for i, entry in enumerate(value)]
    elif is_section(value) or is_section_type(inner):
      several = [(name, value)]
    elif kind_of(hint, value) or _is_default(field, value):
      continue
    else:
      raise ConfigError(f'{name} is {shown(value)}, which a config cannot hold: give a string, a '
                        'number, true or false, a tuple of these, or leave it at its default.')
    for place, entry in several:
      base = base_of(inner)
      if not is_section(entry) or not isinstance(entry, base):
        raise ConfigError(f'{place} is {shown(entry)}; it must be one of '
                          f'{names(base)}, or a dataclass of your own derived from '
                          f'{base.__name__}.')
      if any(own.name == 'type' for own, _, _ in fields_of(entry)):
        raise ConfigError(f'{place} has a setting called type, which config.json needs for the '
                          'name of the section; call it something else.')
      _check_sections(entry, f'{place}.')


def _is_default(field: dataclasses.Field, value: Any) -> bool:
  default = default_of(field)
  if isinstance(value, (tuple, list, Mapping)):  # Which a copy of the section has copies of.
    return jax.tree.leaves_with_path(value) == jax.tree.leaves_with_path(default)
  return value is default or field.default_factory is not dataclasses.MISSING


def _check(name: str, value: Any, field: Field) -> Any:
  value = _check_type(name, value, field.kind)
  for i, entry in enumerate(value if isinstance(value, tuple) else (value,)):
    place = f'{name}[{i}]' if isinstance(value, tuple) else name
    if isinstance(entry, (int, float)) and not isinstance(entry, bool):
      _check_number(place, entry, field.limits)
    if field.limits.choices and entry not in field.limits.choices:
      raise ConfigError(f'{place} is {shown(entry)}; it must be one of '
                        f'{", ".join(map(str, field.limits.choices))}.')
  return value


def _check_number(name: str, value: Any, limits: Limits) -> None:
  low, high = limits.low, limits.high
  if isinstance(value, float) and not math.isfinite(value):
    raise ConfigError(f'{name} is {value}; it must be a finite number.')
  too_high = high is not None and (value > high or (limits.open_high and value == high))
  if (low is not None and value < low) or too_high:
    bounds = [f'at least {low}' if low is not None else '',
              f'{"below" if limits.open_high else "at most"} {high}' if high is not None else '']
    raise ConfigError(f'{name} is {shown(value)}; it must be {" and ".join(filter(None, bounds))}.')


def _check_type(name: str, value: Any, kind: Kind) -> Any:
  """Returns `value` as the kind says, ints widened to floats; raises ConfigError."""
  if kind.optional and value is None:
    return None
  if kind.many:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f'{name} is {shown(value)}; it must be a tuple such as (32, 64).')
    if len(value) > _MOST_ENTRIES:
      raise ConfigError(f'{name} has {len(value):,} entries; it must have at most {_MOST_ENTRIES}.')
    return tuple(_check_type(f'{name}[{i}]', entry, Kind(kind.base))
                 for i, entry in enumerate(value))
  if kind.base is float and type(value) is int:
    try:
      return float(value)
    except OverflowError:
      raise ConfigError(f'{name} is {shown(value)}; it must be a finite number.') from None
  if not isinstance(value, kind.base) or (kind.base is int and isinstance(value, bool)):
    raise ConfigError(f'{name} is {shown(value)}; it must be {WORDS[kind.base]}.')
  return value
