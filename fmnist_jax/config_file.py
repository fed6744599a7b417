"""Config files, and overrides from the command line.

A config file is Python with a function `get_config()` that returns a `fmnist_jax.config.Config`.
An override is `SECTION.FIELD=VALUE`; where a section comes in several kinds, `optim=SGD` swaps it
for another kind with its defaults, so put it before overrides of that kind's fields.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import runpy
import textwrap
import traceback
from collections.abc import Iterable
from typing import Any

from fmnist_jax import config as config_lib
from fmnist_jax.errors import ConfigError


def find(path: str) -> pathlib.Path:
  """The config file meant by `path`: that file, else the one of this name that is shipped.

  `cnn`, `cnn.py` and `configs/cnn.py` all name the shipped `cnn.py` outside a checkout.

  Raises:
    ConfigError: when there is none, listing those that are shipped.
  """
  given = pathlib.Path(path)
  if os.path.isfile(path):  # Which, unlike pathlib's, raises for no name, however strange.
    return given
  package = pathlib.Path(__file__).resolve().parent
  # Inside the package when installed, beside it in a checkout.
  for folder in (package / 'configs', package.parent / 'configs'):
    shipped = folder / f'{given.stem}.py'
    if os.path.isfile(shipped) and given.parent in (pathlib.Path('.'), pathlib.Path('configs')):
      return shipped
  names = sorted(file.stem for folder in (package / 'configs', package.parent / 'configs')
                 for file in folder.glob('*.py') if file.stem != '__init__')
  raise ConfigError(f'There is no config file {path or repr(path)}; give a path, or one of the '
                    f'shipped ones: {", ".join(dict.fromkeys(names))}.')


def load(path: str, overrides: Iterable[str] = ()) -> config_lib.Config:
  """The validated config of a file, with overrides such as 'train.epochs=5' applied in order.

  Raises:
    ConfigError: one sentence on what is wrong and where.
  """
  file = find(path)
  try:
    get_config = runpy.run_path(str(file)).get('get_config')
    if not callable(get_config):
      raise ConfigError(f'{file} has no function get_config(); it must return a '
                        'fmnist_jax.config.Config.')
    config = get_config()
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    line = frames[-1].lineno if frames else getattr(error, 'lineno', None)
    raise ConfigError(f'{file}{f", line {line}" if line else ""}: {type(error).__name__}: '
                      f'{error}.') from error
  # A first look, so that overrides meet a well-formed config; they may be what makes it valid.
  if not isinstance(config, config_lib.Config):
    return config_lib.validate(config)
  for override in overrides:
    config = _apply(config, override)
  return config_lib.validate(config)


def _apply(config: config_lib.Config, override: str) -> config_lib.Config:
  name, equals, text = override.partition('=')
  if not equals:
    raise ConfigError(f'{config_lib.shown(name)} needs a value: --config.FIELD=VALUE.')
  *sections, last = name.split('.')
  parents: list[Any] = [config]
  for depth, section in enumerate(sections):
    # Fields alone: every object has attributes such as __class__.
    fields = [field.name for field in dataclasses.fields(parents[-1])]
    parents.append(getattr(parents[-1], section) if section in fields else None)
    if not dataclasses.is_dataclass(parents[-1]):
      raise ConfigError(_unknown(config, name, depth))
  value: Any
  owner = parents[-1]
  hints = {field.name: field for field in dataclasses.fields(owner)}
  if last not in hints:
    raise ConfigError(_unknown(config, name, len(sections)))
  if dataclasses.is_dataclass(getattr(owner, last)):
    kinds = {kind.__name__: kind for kind in config_lib.section_types(type(owner), last)}
    if text not in kinds or len(kinds) == 1:
      known = [f'{name}.{field.name}' for field in dataclasses.fields(getattr(owner, last))]
      ways = f'choose one of {", ".join(kinds)}, or ' if len(kinds) > 1 else ''
      raise ConfigError(f'{name}={config_lib.shown(text)}: {name} is a section; {ways}set '
                        f'one of its fields: {", ".join(known)}.')
    value = kinds[text]()
  else:
    value = parse(name, text, str(hints[last].type))
  for section, parent in zip(reversed([*sections, last]), reversed(parents)):
    value = dataclasses.replace(parent, **{section: value})
  return value


def _unknown(config: config_lib.Config, name: str, depth: int) -> str:
  known = [leaf for leaf, _, _ in config_lib.leaves(config)]
  for kind in ('model', 'optim'):
    if name.startswith(f'{kind}.') and depth:
      chosen = type(getattr(config, kind)).__name__
      return f'{config_lib.unknown_field(name, known)} This config has {kind}={chosen}.'
  return config_lib.unknown_field(name, known)


def parse(name: str, text: str, kind: str) -> Any:
  """The value that `text` stands for in a field of type `kind`, e.g. 'float', 'tuple[int, ...]'.

  Raises:
    ConfigError: when it is not of that type.
  """
  if kind.startswith('tuple['):
    inner = kind.removeprefix('tuple[').split(',')[0]
    entries = text.strip().removeprefix('(').removesuffix(')').split(',')
    return tuple(parse(name, entry.strip(), inner) for entry in entries if entry.strip())
  if kind == 'str':
    return text
  if kind == 'bool':
    if text.lower() in ('true', 'false'):
      return text.lower() == 'true'
    raise ConfigError(f'{name} is {config_lib.shown(text)}; it must be true or false.')
  try:
    return {'int': int, 'float': float}[kind](text)
  except ValueError:
    words = {'int': 'a whole number', 'float': 'a number'}[kind]
    raise ConfigError(f'{name} is {config_lib.shown(text)}; it must be {words}.') from None


def describe(config: config_lib.Config) -> str:
  """Every field with its value and meaning, one a line, for `--help`."""
  lines = []
  for name, value, field in config_lib.leaves(config):
    choices = ', '.join(field.metadata['choices'])
    text = field.metadata['help'] + (f' [{choices}]' if choices else '')
    shown = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
    lines.append(f'  --config.{name}={shown or "()" if isinstance(value, tuple) else shown}\n'
                 + textwrap.fill(text, 96, initial_indent=' ' * 6, subsequent_indent=' ' * 6))
  for name in ('model', 'optim', 'optim.schedule'):
    owner, section = (config, name) if '.' not in name else (config.optim, 'schedule')
    kinds = config_lib.section_types(type(owner), section)
    lines.append(f'  --config.{name}={type(getattr(owner, section)).__name__}\n'
                 f'      kind, reset to its defaults [{", ".join(k.__name__ for k in kinds)}]')
  return '\n'.join(lines)
