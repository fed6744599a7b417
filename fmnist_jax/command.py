"""What every entry point does with signals, a user's mistakes and overrides of a config.

This module imports neither jax nor anything that does.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fmnist_jax.errors import ConfigError, UserError
from fmnist_jax.interrupt import Interrupt, Interrupted


def run(main: Callable[[Interrupt], None]) -> NoReturn:
  """Calls `main` with signals watched, then exits.

  The exit code is 0, 1 after a `UserError`, whose sentence is printed, or 128 + a signal's number,
  SIGPIPE's where the reader of our output has left.
  """
  code = 0
  try:
    with Interrupt() as interrupt:
      main(interrupt)
  except UserError as error:
    if not error.told:
      print(f'error: {error}', file=sys.stderr)
    code = 1
  except Interrupted as interrupted:
    print(interrupted, file=sys.stderr)
    code = interrupted.exit_code
  except BrokenPipeError:
    # Whoever read our output has left. Python would fail again on flushing it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 128 + signal.SIGPIPE
  sys.exit(code)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--config.FIELD=VALUE` (or `--config.FIELD VALUE`) from the other arguments."""
  rest, overrides = [], []
  arguments = iter(argv)
  for argument in arguments:
    if not argument.startswith('--config.'):
      rest.append(argument)
      continue
    override = argument.removeprefix('--config.')
    if '=' not in override:
      value = next(arguments, None)
      if value is None or value.startswith('--'):
        raise ConfigError(f'{argument} needs a value: {argument}=VALUE.')
      override = f'{override}={value}'
    overrides.append(override)
  return rest, overrides
