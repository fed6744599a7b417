"""Sections as JSON, which names their kinds and imports nothing; differences between two."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from fmnist_jax.errors import ConfigError, UnknownPartError
from fmnist_jax.settings.fields import (
    Section,
    base_of,
    declared,
    default_of,
    entry_type,
    fields_of,
    holds_sections,
    is_section,
    is_section_type,
    is_sections_type,
    kind_of,
    leaves,
    sections,
    shown,
    unknown,
)


def kind_name(section_type: type) -> str:
  """'CNN' for a section of this library's own, 'lab.mixer:Mixer' for another's."""
  module = section_type.__module__
  if module.split('.')[0] == __name__.split('.')[0]:
    return section_type.__qualname__
  return f'{_main_name() if module == "__main__" else module}:{section_type.__qualname__}'


def _main_name() -> str:
  """The name by which another program can import the one that runs, if it has one."""
  main = sys.modules['__main__']
  spec, file = getattr(main, '__spec__', None), getattr(main, '__file__', None)
  return spec.name if spec else pathlib.Path(file).stem if file else '__main__'


def kinds(base: type) -> dict[str, type]:
  """The sections that have been defined so far and may stand where `base` is declared.

  By their full names and, where that leaves no doubt, by their class's name alone.
  """
  found: dict[str, type] = {}
  def add(kind: Any) -> None:
    if not getattr(kind, '__abstractmethods__', None) and dataclasses.is_dataclass(kind):
      found[kind_name(kind)] = kind  # type: ignore[arg-type, assignment]
    for inner in kind.__subclasses__():
      add(inner)
  add(base)
  short = [kind.__name__ for kind in found.values()]
  return found | {kind.__name__: kind for kind in found.values()
                  if short.count(kind.__name__) == 1}


def names(base: type) -> str:
  """The full names of `kinds`, in words."""
  if not issubclass(base, Section):
    return 'a Flax module'  # Those that Flax has itself are too many to list.
  return ', '.join(dict.fromkeys(kind_name(kind) for kind in kinds(base).values()))


def kind_called(place: str, name: Any, base: type) -> type:
  """The section type that config.json names; looked for among what is loaded, never imported."""
  known = kinds(base)
  if isinstance(name, str) and name in known:
    return known[name]
  if not isinstance(name, str) or ':' not in name:
    raise ConfigError(f'{place}.type is {shown(name)}; it must be one of {names(base)}.')
  module, _, path = name.partition(':')
  found: Any = sys.modules.get('__main__' if module == _main_name() else module)
  for part in path.split('.'):
    found = vars(found).get(part) if hasattr(found, '__dict__') else None
  if isinstance(found, type) and dataclasses.is_dataclass(found) and issubclass(found, base):
    return found
  raise UnknownPartError(f'{place}.type is {shown(name)}, which is not known here: give the config '
                         'file that defines it with --config=FILE, or its module with --import='
                         f'{module[:80]} (in Python, import it first).')


def to_json(section: Any) -> dict[str, Any]:
  """A section as plain JSON values; one that stands for a base names its own kind in `type`."""
  def encode(value: Any, hint: Any) -> Any:
    tag = {} if type(value) is hint else {'type': kind_name(type(value))}
    return tag | to_json(value)
  result: dict[str, Any] = {}
  for field, hint, value in fields_of(section):
    if is_section(value):
      result[field.name] = encode(value, hint)
    elif holds_sections(value, hint):
      result[field.name] = [encode(entry, None) for entry in value]
    elif kind_of(hint, value):
      result[field.name] = list(value) if isinstance(value, tuple) else value
  return result


def from_json(section_type: type, values: Any, prefix: str = '') -> Any:
  """The section that `to_json` wrote, not yet validated.

  Raises:
    ConfigError: for missing, unknown or ill-typed fields.
  """
  if not isinstance(values, Mapping):
    raise ConfigError(f'{prefix.rstrip(".") or "The config"} must be a JSON object.')
  fields = declared(section_type)
  known = [field.name for field, _ in fields]
  for name in values:
    if name not in known:
      raise ConfigError(unknown(prefix + str(name), [prefix + field for field in known]))
  arguments: dict[str, Any] = {}
  for field, hint in fields:
    name, place = field.name, prefix + field.name
    if name in values:
      arguments[name] = _decoded(place, values[name], hint)
    elif not _is_no_setting(hint, field):  # It would not have been saved, and has its default.
      raise ConfigError(f'The config lacks the field {place}.')
  return section_type(**arguments)


def _decoded(place: str, value: Any, hint: Any) -> Any:
  if is_section_type(hint):
    return _section(place, value, hint)
  if is_sections_type(hint) or (isinstance(value, list) and not kind_of(hint)
                                and any(isinstance(entry, Mapping) for entry in value)):
    if not isinstance(value, list):
      raise ConfigError(f'{place} is {shown(value)}; it must be a list of sections.')
    base = base_of(entry_type(hint))
    return tuple(_section(f'{place}.{i}', entry, base) for i, entry in enumerate(value))
  if isinstance(value, Mapping) and not kind_of(hint):  # A module in a field of any type.
    return _section(place, value, nn.Module)
  return tuple(value) if isinstance(value, list) else value


def _section(place: str, value: Any, base: Any) -> Any:
  if not isinstance(value, Mapping):
    raise ConfigError(f'{place} must be a JSON object.')
  if 'type' not in value and dataclasses.is_dataclass(base) and not getattr(
      base, '__abstractmethods__', None):
    return from_json(base, value, f'{place}.')  # type: ignore[arg-type]
  kind = kind_called(place, value.get('type'), base)
  return from_json(kind, {k: v for k, v in value.items() if k != 'type'}, f'{place}.')


def _is_no_setting(hint: Any, field: dataclasses.Field) -> bool:
  default = default_of(field)
  return (default is not dataclasses.MISSING and kind_of(hint, default) is None
          and not is_section(default) and not is_section_type(hint) and not is_sections_type(hint))


def differences(a: Any, b: Any, ignored: collections.abc.Collection[str] = ()) -> list[str]:
  """One line a setting in which two sections differ, but for those ignored: 'name: x -> y'."""
  def flat(section: Any) -> dict[str, Any]:
    named = {name: kind_name(type(value)) for name, base, value in sections(section)
             if type(value) is not base}
    return named | {name: value for name, value, _ in leaves(section)}
  left, right = flat(a), flat(b)
  missing = object()
  text = lambda values, name: json.dumps(values[name]) if name in values else 'absent'
  return [f'{name}: {text(left, name)} -> {text(right, name)}' for name in {**left, **right}
          if name not in ignored and left.get(name, missing) != right.get(name, missing)]
