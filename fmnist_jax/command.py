"""What every entry point does with signals and with a user's mistakes.

This module imports neither jax nor anything that does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from fmnist_jax.errors import UserError
from fmnist_jax.interrupt import Interrupt, Interrupted


def run(main: Callable[[Interrupt], None]) -> NoReturn:
  """Calls `main` with signals watched, then exits.

  The exit code is 0, 1 after a `UserError`, whose sentence is printed, or 128 + a signal's number.
  """
  code = 0
  try:
    with Interrupt() as interrupt:
      main(interrupt)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    code = 1
  except Interrupted as interrupted:
    print(interrupted, file=sys.stderr)
    code = interrupted.exit_code
  sys.exit(code)
