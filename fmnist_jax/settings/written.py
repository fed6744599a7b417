"""Sections as Python source, as a person would write them in a config file."""

from __future__ import annotations

from typing import Any

from fmnist_jax.settings.fields import default_of, fields_of, holds_sections, is_section, within

_WIDTH = 100


def source(section: Any, indent: int = 0) -> str:
  """The expression that makes a section: its kind, and the fields that differ from their defaults.

  Args:
    section: to be written.
    indent: columns before its first line.
  """
  name = type(section).__name__
  arguments = [f'{field.name}={_value(value, hint, indent + 4)}'
               for field, hint, value in fields_of(section) if value != default_of(field)]
  line = f'{name}({", ".join(arguments)})'
  if '\n' not in line and indent + len(line) + len('return ') <= _WIDTH:
    return line
  separator = ',\n' + ' ' * (indent + 4)
  return f'{name}(\n{" " * (indent + 4)}{separator.join(arguments)})'


def _value(value: Any, hint: Any, indent: int) -> str:
  if is_section(value):
    return source(value, indent)
  if holds_sections(value, hint):
    inner = [source(entry, indent) for entry in value]
    return f'({", ".join(inner)}{"," * (len(inner) == 1)})'
  return repr(value)


def imports(section: Any) -> dict[str, set[str]]:
  """The names of the kinds that `source` uses, by the modules that define them."""
  found: dict[str, set[str]] = {}
  def add(section: Any) -> None:
    found.setdefault(type(section).__module__, set()).add(type(section).__name__)
    for field, hint, value in fields_of(section):
      if value == default_of(field):
        continue
      for _, _, entry in within(field.name, hint, value) or ():
        add(entry)
  add(section)
  return found
