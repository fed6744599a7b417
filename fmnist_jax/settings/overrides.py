"""Overrides from the command line: text for settings, names for sections."""

from __future__ import annotations

from typing import Any

from fmnist_jax.errors import ConfigError
from fmnist_jax.settings.fields import (
    WORDS,
    Kind,
    base_of,
    entry_type,
    fields_of,
    holds_sections,
    is_section,
    kind_of,
    leaves,
    replace,
    sections,
    shown,
    unknown,
)
from fmnist_jax.settings.saved import kind_called, kind_name, kinds, names


def override(section: Any, text: str) -> Any:
  """A copy with one override such as 'train.epochs=5' applied, unchecked but for its type.

  A section is swapped for another kind, with its defaults, by that kind's name ('optim=SGD'), a
  tuple of sections by names with commas between them ('data.augment=Flip,Shift').

  Raises:
    ConfigError: one sentence on what is wrong with it.
  """
  name, equals, value = text.partition('=')
  if not equals:
    raise ConfigError(f'{shown(name)} needs a value: --config.FIELD=VALUE.')
  hint, current = _find(section, name)
  if is_section(current):
    return replace(section, {name: _made(name, value, base_of(hint), current)})
  if holds_sections(current, hint):
    base = base_of(entry_type(hint))
    wanted = [part.strip() for part in value.strip('()').split(',') if part.strip()]
    return replace(section, {name: tuple(_made(name, part, base) for part in wanted)})
  kind = kind_of(hint, current)
  if kind is None:
    raise ConfigError(f'{name} is {shown(current)}, which cannot be set on the command line.')
  return replace(section, {name: parse(name, value, kind)})


def _find(section: Any, name: str) -> tuple[Any, Any]:
  """(annotation, value) of what a dotted name means; an entry of a tuple of sections too."""
  hint, value = Any, section
  for part in name.split('.'):
    if is_section(value):
      fields = {field.name: (hint, inner) for field, hint, inner in fields_of(value)}
      if part in fields:
        hint, value = fields[part]
        continue
    elif holds_sections(value, hint) and part.isdecimal() and int(part[:9]) < len(value):
      hint, value = entry_type(hint), value[int(part)]
      continue
    told = unknown(name, [leaf for leaf, _, _ in leaves(section)])
    kinds = [f'{place}={kind_name(type(entry))}' for place, wanted, entry in sections(section)
             if type(entry) is not wanted and name.startswith(f'{place}.')]
    raise ConfigError(f'{told} This config has {kinds[-1]}.' if kinds else told)
  return hint, value


def _made(name: str, text: str, base: type, current: Any = None) -> Any:
  known = kinds(base)
  if ':' in text and text not in known:
    known[text] = kind_called(name, text, base)
  if text not in known or (len(known) == 1 and current is not None):
    if current is None:
      raise ConfigError(f'{name} lists {shown(text)}; choose among {names(base)}.')
    inside = ', '.join(f'{name}.{field.name}' for field, _, _ in fields_of(current))
    ways = f'choose one of {names(base)}, or ' if len(known) > 1 else ''
    raise ConfigError(f'{name}={shown(text)}: {name} is a section; {ways}set one of its fields: '
                      f'{inside or "it has none"}.')
  try:
    return known[text]()
  except TypeError as error:
    raise ConfigError(f'{name}={text} needs settings that have no default ({error}); give it in a '
                      'config file.') from None


def parse(name: str, text: str, kind: Kind) -> Any:
  """The value that `text` stands for in a setting of a kind.

  Raises:
    ConfigError: when it is not of that kind.
  """
  if kind.optional and text.lower() == 'none':
    return None
  if kind.many:
    entries = text.strip().removeprefix('(').removesuffix(')').split(',')
    return tuple(parse(name, entry.strip(), Kind(kind.base)) for entry in entries if entry.strip())
  if kind.base is str:
    return text
  if kind.base is bool and text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    if kind.base is not bool:
      return kind.base(text)
  except ValueError:
    pass
  raise ConfigError(f'{name} is {shown(text)}; it must be {WORDS[kind.base]}.')
