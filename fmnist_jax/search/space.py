"""What is searched: ranges and choices by dotted field, checked before anything starts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, settings
from fmnist_jax.config import Config
from fmnist_jax.errors import ConfigError
from fmnist_jax.storage import files

MOST_CHECKED = 1000  # combinations of choices that are tried on the config beforehand
# What all trials have in common, or no trial could be compared with another.
_SEARCHED = ('model', 'loss', 'optim', 'train', 'data.batch_size', 'data.augment')
_FIXED = ('train.seed', 'train.monitor', 'train.devices', 'train.deterministic',
          'train.compile_cache', 'train.init_from')


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers from `low` to `high`, both included.

  Attributes:
    low: the smallest.
    high: the largest.
    log: whether their logarithms are drawn evenly.
    step: between neighbours; None: any number, of whole numbers each.
  """
  low: float
  high: float
  log: bool = False
  step: float | None = None

  def __post_init__(self) -> None:
    """Raises ConfigError for what is no range."""
    ends = (self.low, self.high)
    if not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
      raise ConfigError(f'The range {self} needs numbers at its ends.')
    if not self.low < self.high:
      raise ConfigError(f'The range {self} is empty; give the smaller number first.')
    if self.log and self.low <= 0:
      raise ConfigError(f'The range {self} has no logarithm at its low end; begin above 0.')
    if type(self.log) is not bool:
      raise ConfigError(f'A range is log or not: true or false, but not {self.log!r}.')
    if self.step is not None and (
        self.log or type(self.step) not in (int, float) or not self.step > 0):
      raise ConfigError(f'The range {self} needs a step above 0, and cannot be log with one.')

  def __str__(self) -> str:
    """As on the command line."""
    step = '' if self.step is None else f':{self.step!r}'
    return f'{self.low!r}..{self.high!r}{":log" if self.log else step}'

  @classmethod
  def parse(cls, name: str, text: str) -> Range:
    """The range that '1e-4..3e-2:log' or '16..256:16' means; raises ConfigError."""
    ends, _, how = text.partition(':')
    low, dots, high = ends.partition('..')
    if not dots:
      raise ConfigError(f'{name} is {settings.shown(text)}; write LOW..HIGH, LOW..HIGH:log or '
                        'LOW..HIGH:STEP.')
    return cls(_number(name, low), _number(name, high), how == 'log',
               _number(name, how) if how not in ('', 'log') else None)

  def suggest(self, trial: Any, name: str, config: Config) -> Any:
    """A value that an Optuna trial draws."""
    if _leaf(config, name)[1].kind.base is int:
      return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1),
                               log=self.log)
    return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

  def put(self, config: Config, name: str, value: Any) -> Config:
    """A copy of a config with a value of the range."""
    return config_lib.replace(config, {name: value})

  def fields(self, name: str) -> set[str]:
    """The field that it sets: of that name."""
    return {name}


@dataclasses.dataclass(frozen=True, init=False)
class Choice:
  """Values of a field, kinds of a section, or several fields at once.

  `Choice((16, 32), (32, 64))` for a tuple of numbers, `Choice('AdamW', 'SGD')` for a section, or
  `Choice({'model.channels': (16,), 'model.pool': (2,)}, ...)` for fields that change together,
  under any name that is no field's.

  Attributes:
    options: each with the overrides that it means, by its text.
  """
  options: tuple[Any, ...]

  def __init__(self, *options: Any):
    """Args: the options, two at least; raises ConfigError for what an override cannot say."""
    object.__setattr__(self, 'options', options)
    if len(self.texts) < 2 or len(self.texts) < len(options):
      raise ConfigError(f'The choice among {", ".join(map(_text, options)) or "nothing"} needs two '
                        'options at least, and none twice.')

  def __str__(self) -> str:
    """As on the command line."""
    return ';'.join(self.texts)

  @property
  def texts(self) -> dict[str, Any]:
    """The options by their texts."""
    return {_text(option): option for option in self.options}

  def suggest(self, trial: Any, name: str, config: Config) -> Any:
    """The text of an option that an Optuna trial draws."""
    return trial.suggest_categorical(name, list(self.texts))

  def put(self, config: Config, name: str, value: Any) -> Config:
    """A copy of a config with the option of this text."""
    for field, wanted in _overrides(name, self.texts[value]).items():
      config = settings.override(config, f'{field}={_text(wanted)}')
    return config

  def fields(self, name: str) -> set[str]:
    """The fields that it sets: of that name, or several together."""
    return set().union(*(_overrides(name, option) for option in self.options))


def _overrides(name: str, option: Any) -> Mapping[str, Any]:
  return option if isinstance(option, Mapping) else {name: option}


def _number(name: str, text: str) -> float | int:
  """Whole where it is written so: which of the two a field takes is checked later."""
  try:
    return int(text)
  except ValueError:
    return settings.parse(name, text, settings.Kind(float, False, False))


def _text(value: Any) -> str:
  """What an override says for a value."""
  if isinstance(value, Mapping):
    return ' '.join(f'{name}={_text(inner)}' for name, inner in value.items())
  if isinstance(value, (tuple, list)):
    return ','.join(map(_text, value)) or '()'
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, (str, int, float)):
    return str(value) if isinstance(value, str) else repr(value)
  raise ConfigError(f'{settings.shown(value)} cannot be an option of a choice: give a string, a '
                    'number, true or false, a tuple of these, or the name of a kind of section.')


class Space:
  """What is searched.

  A domain whose field a trial's config does not have, such as optim.momentum where `optim` became
  Adam, is left out of that trial.

  Attributes:
    domains: by dotted name; sections before what lies in them.
  """

  def __init__(self, domains: Mapping[str, Range | Choice]):
    self.domains = dict(sorted(domains.items(), key=lambda item: item[0].count('.')))

  def to_json(self) -> dict[str, Any]:
    """As plain JSON values, which `from_json` reads."""
    return json.loads(json.dumps({
        name: domain.options if isinstance(domain, Choice) else dataclasses.asdict(domain)
        for name, domain in self.domains.items()}))

  @classmethod
  def from_json(cls, values: Any) -> Space:
    """The space of an object: lists are choices, objects with `low` and `high` ranges.

    Raises:
      ConfigError: for another form.
    """
    if not isinstance(values, Mapping):
      raise ConfigError('A space must be an object of ranges and choices by dotted name.')
    domains: dict[str, Range | Choice] = {}
    for name, value in values.items():
      if isinstance(value, (Range, Choice)):
        domains[name] = value
      elif isinstance(value, list):
        domains[name] = Choice(*value)
      elif isinstance(value, Mapping) and {'low', 'high'} <= value.keys() <= {
          field.name for field in dataclasses.fields(Range)}:
        domains[name] = Range(**value)
      else:
        raise ConfigError(f'{name} is {settings.shown(value)}; a space takes a list of options, or '
                          'a range: {"low": 1e-4, "high": 1e-2, "log": true}.')
    return cls(domains)

  def draw(self, config: Config, trial: Any) -> Config:
    """The config of a trial, unchecked: every domain that fits it draws its value.

    Args:
      config: to start from.
      trial: an Optuna trial, or what has its `suggest_float`, `_int` and `_categorical`.
    """
    for name, domain in self.domains.items():
      if _fits(config, name, domain):
        config = domain.put(config, name, domain.suggest(trial, name, config))
    return config

  def check(self, config: Config) -> None:
    """Raises ConfigError unless every field is there and may have the values it is given."""
    if not self.domains:
      raise ConfigError('There is nothing to search; give --space=FILE, or --range and --choice.')
    for name, domain in self.domains.items():
      for field in domain.fields(name):
        if field in _FIXED or not any(field == part or field.startswith(f'{part}.')
                                      for part in _SEARCHED):
          raise ConfigError(f'{field} cannot be searched: all trials share it. What can be: model, '
                            'loss, optim, train (but for its seed, what chooses the best epoch and '
                            'the machine), data.batch_size and data.augment.')
    few = list(itertools.islice(self.combinations(config), MOST_CHECKED + 1))
    rng = random.Random(0)
    seen: set[str] = set()
    for number in range(min(len(few), MOST_CHECKED)):
      # Of more than can be tried, some at random, which have every option sooner or later.
      lowest = _Lowest(few[number] if len(few) <= MOST_CHECKED else rng)
      checked = config_lib.validate(self.draw(config, lowest))
      for name in lowest.high.keys() - seen:  # Its low end was just looked at.
        config_lib.validate(self.domains[name].put(checked, name, lowest.high[name]))
      seen |= lowest.drawn
    for name in self.domains.keys() - seen:
      known = [field for field, _, _ in config_lib.leaves(config)]
      raise ConfigError(settings.unknown(name, known))

  def grid(self, config: Config, most: int) -> dict[str, dict[str, str]]:
    """Every combination of choices, or so many of them, in an order that is always the same.

    Returns:
      What they draw, by the names of the trials that they are.

    Raises:
      ConfigError: for a space with ranges.
    """
    ranges = [name for name, domain in self.domains.items() if isinstance(domain, Range)]
    if ranges:
      raise ConfigError(f'--sampler=grid tries every combination of choices, but {ranges[0]} is a '
                        'range; list its values with --choice.')
    found = list(itertools.islice(self.combinations(config), max(most, MOST_CHECKED)))
    random.Random(0).shuffle(found)
    return {f'{number:04d}-{files.digest(params)[:4]}': params
            for number, params in enumerate(found[:most])}

  def combinations(self, config: Config) -> Iterator[dict[str, str]]:
    """Every combination of choices, by name."""
    def walk(config: Config, left: Sequence[str], chosen: dict[str, str]) -> Iterator[dict]:
      if not left:
        yield chosen
        return
      name, *rest = left
      domain = self.domains[name]
      if isinstance(domain, Range) or not _fits(config, name, domain):
        yield from walk(config, rest, chosen)
        return
      for text in domain.texts:
        yield from walk(domain.put(config, name, text), rest, {**chosen, name: text})
    yield from walk(config, list(self.domains), {})


class _Lowest:
  """A trial with these choices, or random ones, and ranges at their low ends."""

  def __init__(self, choices: Mapping[str, str] | random.Random):
    self._choices = choices
    self.drawn: set[str] = set()
    self.high: dict[str, Any] = {}  # Ends of the ranges.

  def suggest_categorical(self, name: str, texts: Sequence[str]) -> str:
    """See Optuna."""
    self.drawn.add(name)
    choices = self._choices
    return choices.choice(texts) if isinstance(choices, random.Random) else choices[name]

  def suggest_float(self, name: str, low: Any, high: Any, **_: Any) -> Any:
    """See Optuna."""
    self.drawn.add(name)
    self.high[name] = high
    return low

  suggest_int = suggest_float


def _fits(config: Config, name: str, domain: Range | Choice) -> bool:
  """Whether a config has the field of a domain; raises ConfigError for a range of no number."""
  if isinstance(domain, Choice) and domain.fields(name) != {name}:
    return True
  try:
    config_lib.replace(config, {name: None})
  except ConfigError:
    return False
  if isinstance(domain, Choice):
    return True
  value, field = _leaf(config, name)
  if field.kind.base not in (int, float) or isinstance(value, tuple):
    entries = f'ranges of {name}.0 and so on, or ' if field.kind.base in (int, float) else ''
    raise ConfigError(f'{name} is {settings.shown(value)}, of which there is no range; give '
                      f'{entries}a choice.')
  if field.kind.base is int and not all(
      type(number) is int for number in (domain.low, domain.high, domain.step or 1)):
    raise ConfigError(f'{name} is a whole number; so must be the ends and the step of its range, '
                      f'{domain}.')
  return True


def _leaf(config: Config, name: str) -> tuple[Any, Any]:
  """(value, field) of a setting, or of an entry of a tuple; raises ConfigError for a section."""
  for found, value, field in config_lib.leaves(config):
    if name == found:
      return value, field
    if name.rpartition('.')[0] == found:
      return value[int(name.rpartition('.')[2])], field
  raise ConfigError(f'{name} is a section; give a choice of its kinds, or ranges of its fields.')


def load(path: str | None, ranges: Sequence[str], choices: Sequence[str]) -> Space:
  """The space of a file and of arguments such as 'optim.learning_rate=1e-4..3e-2:log'.

  A file is Python with a function `get_space()` that returns ranges and choices by dotted name, or
  JSON; `path` may be the name of a shipped one.

  Raises:
    ConfigError: for what is wrong with either, and for a field that is given twice.
  """
  found: dict[str, Any] = {}
  if path:
    file = config_file.find(path, 'configs/spaces', 'space')
    if file.suffix == '.json':
      values = files.read_json(file)
    else:
      get_space = vars(config_file.module(file)).get('get_space')
      if not callable(get_space):
        raise ConfigError(f'{file} has no function get_space(); it must return ranges and choices '
                          'by dotted name.')
      values = config_file.guarded(file, get_space)
    found.update(Space.from_json(values).domains)
  for option, arguments, parse in (
      ('--range', ranges, Range.parse),
      ('--choice', choices, lambda _, text: Choice(*text.split(';')))):
    for argument in arguments:
      name, equals, text = argument.partition('=')
      if not equals:
        raise ConfigError(f'{option} {argument} needs values: {option} FIELD=VALUES.')
      if name in found:
        raise ConfigError(f'{name} is searched twice; give it once.')
      found[name] = parse(f'{option} {name}', text)
  return Space(found)
