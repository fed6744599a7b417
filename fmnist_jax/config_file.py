"""Config files, and overrides from the command line.

A config file is Python with a function `get_config()` that returns a `fmnist_jax.Config`, or the
config.json of a run. An override is `SECTION.FIELD=VALUE`; where a section comes in several kinds,
`optim=SGD` swaps it for another kind with its defaults, so put it before overrides of that kind's
fields.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import sys
import textwrap
import traceback
import types
from collections.abc import Iterable
from typing import Any

from fmnist_jax import config as config_lib
from fmnist_jax import settings
from fmnist_jax.errors import ConfigError
from fmnist_jax.storage import files


def find(path: str, folder: str = 'configs', what: str = 'config file') -> pathlib.Path:
  """The config file meant by `path`: that file, else the one of this name that is shipped.

  `cnn`, `cnn.py` and `configs/cnn.py` all name the shipped `cnn.py` outside a checkout.

  Args:
    path: given by somebody.
    folder: where shipped ones are.
    what: they are, in words.

  Raises:
    ConfigError: when there is none, listing those that are shipped.
  """
  given = pathlib.Path(path)
  if os.path.isfile(path):  # Which, unlike pathlib's, raises for no name, however strange.
    return given
  package = pathlib.Path(__file__).resolve().parent
  places = [package / folder, package.parent / folder]  # When installed, and in a checkout.
  for place in places:
    shipped = place / f'{given.stem}.py'
    if os.path.isfile(shipped) and given.parent in (pathlib.Path('.'), pathlib.Path(folder)):
      return shipped
  names = sorted(file.stem for place in places for file in place.glob('*.py')
                 if file.stem != '__init__')
  raise ConfigError(f'There is no {what} {path or repr(path)}; give a path, or one of the '
                    f'shipped ones: {", ".join(dict.fromkeys(names))}.')


def load(path: str, overrides: Iterable[str] = ()) -> config_lib.Config:
  """The validated config of a file, with overrides such as 'train.epochs=5' applied in order.

  Raises:
    ConfigError: one sentence on what is wrong and where.
  """
  file = find(path)
  config = _saved(file) if file.suffix == '.json' else _written(file)
  # A first look, so that overrides meet a well-formed config; they may be what makes it valid.
  if isinstance(config, config_lib.Config):
    for override in overrides:
      config = settings.override(config, override)
  return config_lib.validate(config)


def default_name(path: str) -> str:
  """What a run of this config is called: after the file, or after the run that a .json is of."""
  given = pathlib.Path(path)
  return given.resolve().parent.name if given.suffix == '.json' else given.stem


def _saved(file: pathlib.Path) -> Any:
  return settings.from_json(config_lib.Config, files.read_json(file))


def _written(file: pathlib.Path) -> Any:
  get_config = vars(module(file)).get('get_config')
  if not callable(get_config):
    raise ConfigError(f'{file} has no function get_config(); it must return a fmnist_jax.Config.')
  return guarded(file, get_config)


_ours: set[str] = set()  # Modules that `module` made, and may make again.


def module(file: pathlib.Path) -> types.ModuleType:
  """Runs a Python file as the module that it would be imported as.

  The sections that it defines can then be named in config.json, as 'lab.mixer:Mixer'. What has
  been imported already is taken as it is.

  Raises:
    ConfigError: with the line, for whatever it raises; when another module has its name.
  """
  name = _module_name(file)
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None or spec.loader is None:
    raise ConfigError(f'{file} is no Python file; give a .py, or the config.json of a run.')
  loader, made = spec.loader, importlib.util.module_from_spec(spec)
  if '.' in name:
    guarded(file, lambda: importlib.import_module(name.rpartition('.')[0]))
  before = sys.modules.get(name)
  if before is not None and name not in _ours:
    if pathlib.Path(getattr(before, '__file__', None) or name).resolve() == file.resolve():
      return before
    raise ConfigError(f'{file} would be the module {name}, which is another; rename the file.')
  sys.modules[name] = made  # Dataclasses look for their module while they are made.
  try:
    guarded(file, lambda: loader.exec_module(made))
  except BaseException:
    del sys.modules[name]
    raise
  _ours.add(name)
  return made


def _module_name(file: pathlib.Path) -> str:
  """The dotted name by which Python would import a file; outside its path, the file's own name."""
  path = file.resolve()
  for folder in sys.path:
    root = pathlib.Path(folder or '.').resolve()
    if root in path.parents:
      parts = path.relative_to(root).with_suffix('').parts
      if all(part.isidentifier() for part in parts):
        return '.'.join(parts)
  return path.stem


def guarded(file: pathlib.Path, action: Any) -> Any:
  """Runs somebody's code; what it raises becomes one sentence with the line of the file."""
  try:
    return action()
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    line = frames[-1].lineno if frames else getattr(error, 'lineno', None)
    raise ConfigError(f'{file}{f", line {line}" if line else ""}: {type(error).__name__}: '
                      f'{error}.') from error


def import_parts(names: Iterable[str]) -> None:
  """Makes sections of one's own known: modules by name, or files.

  Raises:
    ConfigError: when one cannot be imported.
  """
  for name in names:
    if name.endswith('.py') or os.sep in name:
      module(find(name))
      continue
    try:
      importlib.import_module(name)
    except Exception as error:
      raise ConfigError(f'The module {name} cannot be imported ({type(error).__name__}: {error}); '
                        'run from the folder that holds it, or set PYTHONPATH.') from error


def describe(config: config_lib.Config) -> str:
  """Every field with its value and meaning, one a line, for `--help`."""
  lines = []
  fill = lambda text: textwrap.fill(text, 96, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  for name, value, field in config_lib.leaves(config):
    choices = ', '.join(map(str, field.limits.choices))
    text = field.limits.help + (f' [{choices}]' if choices else '')
    shown = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
    lines.append(f'  --config.{name}={shown or "()" if isinstance(value, tuple) else shown}')
    if text:
      lines.append(fill(text))
  augment = ','.join(type(entry).__name__ for entry in config.data.augment)
  lines.append(f'  --config.data.augment={augment or "()"}')
  lines.append(fill('one after another, each with its defaults '
                    f'[{settings.names(config_lib.Augmentation)}]'))
  for name, base, section in settings.sections(config):
    if type(section) is not base and not name[-1].isdecimal():
      lines.append(f'  --config.{name}={settings.kind_name(type(section))}')
      lines.append(fill(f'kind, reset to its defaults [{settings.names(base)}]'))
  return '\n'.join(lines)
