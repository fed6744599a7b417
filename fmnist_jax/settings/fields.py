"""What a section is made of: settings as declared, sections in sections, copies with changes."""

from __future__ import annotations

import abc
import collections.abc
import dataclasses
import difflib
import functools
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from fmnist_jax.errors import ConfigError

_KEY = 'fmnist_jax'  # In a dataclass field's metadata.
WORDS = {str: 'a string', int: 'a whole number', float: 'a number', bool: 'true or false'}


class Section(abc.ABC):  # noqa: B024
  """The base of what a config leaves open; a dataclass derived from it can stand in its place."""


class Limits(NamedTuple):
  """What `setting` declares beside the default."""
  help: str = ''
  low: float | None = None
  high: float | None = None
  choices: tuple[Any, ...] = ()
  continuous: bool = False
  open_high: bool = False
  location: bool = False


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None,
            choices: Sequence[str] = (), continuous: bool = False, open_high: bool = False,
            location: bool = False) -> Any:
  """A field of a section, with what drives its check, `--help` and populations.

  Args:
    default: the default value.
    help: meaning and unit, one line.
    low: smallest value allowed (of each entry, for tuples).
    high: largest value allowed.
    choices: the values allowed, for strings (of each entry, for tuples).
    continuous: whether members of a population may differ in it: the section then works with a
      traced array in its place as well.
    open_high: whether `high` itself is excluded.
    location: whether it only says where things lie or what is shown, so that a run may be
      continued with another value.
  """
  limits = Limits(help, low, high, tuple(choices), continuous, open_high, location)
  return dataclasses.field(default=default, metadata={_KEY: limits})


class Kind(NamedTuple):
  """The type of a setting: `base`, or a tuple of it, or None."""
  base: type
  many: bool = False
  optional: bool = False


class Field(NamedTuple):
  """A setting as declared."""
  name: str
  kind: Kind
  limits: Limits


@functools.cache
def hints(section_type: Any) -> dict[str, Any]:
  """Annotation of every field, evaluated where that is possible."""
  try:
    return typing.get_type_hints(section_type)
  except Exception:  # Names that exist in a function or for a type checker alone.
    found: dict[str, Any] = {}
    for owner in reversed(section_type.__mro__):
      names = vars(sys.modules.get(owner.__module__, typing))
      for name, hint in vars(owner).get('__annotations__', {}).items():
        try:
          found[name] = eval(hint, dict(names)) if isinstance(hint, str) else hint
        except Exception:
          found[name] = Any
    return found


def kind_of(hint: Any, value: Any = None) -> Kind | None:
  """The kind that an annotation means, else that of the value; None for what is no setting."""
  if hint in WORDS:
    return Kind(hint)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return kind_of(type(args[0])) if len(set(map(type, args))) == 1 else None
  if origin in (typing.Union, types.UnionType):
    found = {kind_of(arg) for arg in args if arg is not type(None)}
    if found == {Kind(int), Kind(float)}:
      found.discard(Kind(int))
    if len(found) == 1 and None not in found:
      return found.pop()._replace(optional=type(None) in args)  # type: ignore[union-attr]
  elif origin in (tuple, list, collections.abc.Sequence) and args and args[0] in WORDS:
    return Kind(args[0], many=True)
  if isinstance(value, (tuple, list)) and value and type(value[0]) in WORDS:
    return Kind(type(value[0]), many=True)
  return Kind(type(value)) if type(value) in WORDS else None


def is_section(value: Any) -> bool:
  """Whether a value is a section."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_sections_type(hint: Any) -> bool:
  """Whether an annotation is of a tuple of sections."""
  return typing.get_origin(hint) is tuple and is_section_type(entry_type(hint))


def entry_type(hint: Any) -> Any:
  """What an annotation of a tuple says of its entries."""
  return (typing.get_args(hint) or (Any,))[0]


def holds_sections(value: Any, hint: Any) -> bool:
  """Whether a field holds a tuple of sections, or may."""
  return isinstance(value, (tuple, list)) and (
      is_sections_type(hint) or (bool(value) and all(map(is_section, value))))


def is_section_type(hint: Any) -> bool:
  """Whether an annotation is of one section."""
  return isinstance(hint, type) and (
      dataclasses.is_dataclass(hint) or issubclass(hint, (Section, nn.Module)))


def declared(section_type: Any) -> list[tuple[dataclasses.Field, Any]]:
  """(field, annotation) of all that sections of a type have of their own."""
  annotations = hints(section_type)
  # A Flax module's place in others is no setting.
  hidden = {'parent', 'name'} if issubclass(section_type, nn.Module) else set()
  return [(field, annotations.get(field.name, Any)) for field in dataclasses.fields(section_type)
          if field.init and field.name not in hidden]


def fields_of(section: Any) -> list[tuple[dataclasses.Field, Any, Any]]:
  """(field, annotation, value) of all that a section has of its own."""
  return [(field, hint, getattr(section, field.name)) for field, hint in declared(type(section))]


def default_of(field: dataclasses.Field) -> Any:
  """The default of a field, or dataclasses.MISSING."""
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default


def limits_of(field: dataclasses.Field, hint: Any) -> Limits:
  """What `setting` declared of a field; an annotation `Literal[...]` declares choices too."""
  limits = field.metadata.get(_KEY, Limits())
  if typing.get_origin(hint) is typing.Literal and not limits.choices:
    return limits._replace(choices=typing.get_args(hint))
  return limits


def within(name: str, hint: Any, value: Any) -> list[tuple[str, Any, Any]] | None:
  """(dotted name, annotation, section) of the sections in a field; None of one that has others.

  Those in tuples go by number.
  """
  if is_section(value):
    return [(name, hint, value)]
  if holds_sections(value, hint):
    return [(f'{name}.{i}', entry_type(hint), entry) for i, entry in enumerate(value)]
  return None


def leaves(section: Any, prefix: str = '') -> Iterator[tuple[str, Any, Field]]:
  """Yields (dotted name, value, field) of every setting of a section and the sections in it.

  What is no setting, such as a function in a field of a Flax module, is left out.
  """
  for field, hint, value in fields_of(section):
    name = prefix + field.name
    inner = within(name, hint, value)
    if inner is not None:
      for place, _, entry in inner:
        yield from leaves(entry, f'{place}.')
    elif kind := kind_of(hint, value):
      yield name, value, Field(field.name, kind, limits_of(field, hint))


def sections(section: Any, prefix: str = '') -> Iterator[tuple[str, Any, Any]]:
  """(dotted name, declared type, section) of every section inside a section, outer ones first."""
  for field, hint, value in fields_of(section):
    for name, base, entry in within(prefix + field.name, hint, value) or ():
      yield name, base_of(base), entry
      yield from sections(entry, f'{name}.')


def base_of(hint: Any) -> type:
  """What a section must be; in a field of a Flax module that does not say, another module."""
  return hint if is_section_type(hint) else nn.Module


def is_on(value: Any) -> bool:
  """Whether a setting enables its feature: not the Python number 0 and not an empty tuple.

  Arrays, traced ones included, count as on: which features a program has must be known when it
  is traced.
  """
  if isinstance(value, tuple):
    return any(is_on(entry) for entry in value)
  return not (isinstance(value, (int, float)) and value == 0)


def continuous(section: Any) -> dict[str, float]:
  """The continuous settings that are in use: dotted name -> value, 'model.dropout.0' for entries.

  A setting of 0 is a feature switched off, absent from the compiled program, and not listed.
  """
  found = {}
  for name, value, field in leaves(section):
    if field.limits.continuous and value is not None:
      entries = {f'{name}.{i}': entry for i, entry in enumerate(value)} if isinstance(
          value, tuple) else {name: value}
      found.update({key: entry for key, entry in entries.items() if is_on(entry)})
  return found


def locations(section: Any) -> set[str]:
  """The dotted names of settings that say only where things lie or what is shown."""
  return {name for name, _, field in leaves(section) if field.limits.location}


def replace(section: Any, values: Mapping[str, Any]) -> Any:
  """A copy with dotted settings or sections replaced, unchecked; `name.0` is an entry of a tuple.

  Raises:
    ConfigError: for a setting that does not exist, naming the nearest one that does.
  """
  left = dict(values)

  def changed(name: str, value: Any) -> Any:
    if name in left:
      return left.pop(name)
    if is_section(value):
      return copy(value, f'{name}.')
    if isinstance(value, (tuple, list)):
      return tuple(changed(f'{name}.{i}', entry) for i, entry in enumerate(value))
    return value

  def copy(section: Any, prefix: str) -> Any:
    return dataclasses.replace(section, **{
        field.name: changed(prefix + field.name, value)
        for field, _, value in fields_of(section)})

  result = copy(section, '')
  if left:
    raise ConfigError(unknown(next(iter(left)), [name for name, _, _ in leaves(section)]))
  return result


def unknown(name: str, known: Sequence[str]) -> str:
  """One sentence about a mistyped setting, naming the nearest real one."""
  # Names of megabytes are not compared: that takes minutes.
  nearest = difflib.get_close_matches(name[:80], sorted(known), n=1, cutoff=0.5)
  if nearest:
    return f'There is no config field {shown(name)}; did you mean {nearest[0]!r}?'
  sections = dict.fromkeys(field.split('.')[0] for field in known)
  return f'There is no config field {shown(name)}; the sections are {", ".join(sections)}.'


def shown(value: Any) -> str:
  """A value as a sentence can hold it."""
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # Integers of thousands of digits have no text.
    return f'some {type(value).__name__}'
  return text if len(text) <= 80 else f'{text[:60]}... ({len(text):,} characters)'
