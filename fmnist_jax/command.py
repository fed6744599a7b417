"""What every entry point does with signals, a user's mistakes, and arguments that several have.

Nothing that imports jax is imported before signals are watched: see `run`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fmnist_jax import machine
from fmnist_jax.errors import ConfigError, UserError, one_line
from fmnist_jax.interrupt import Interrupt, Interrupted

if TYPE_CHECKING:
  from fmnist_jax.config import Config


class Parser(argparse.ArgumentParser):
  """Tells a mistake as all others are told: one sentence, exit code 1. Takes no abbreviations."""

  def __init__(self, **how: Any):
    """Args: as of argparse."""
    self._options: list[str] = []
    super().__init__(allow_abbrev=False, **how)

  def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
    """See argparse."""
    action = super().add_argument(*names, **how)
    self._options += action.option_strings
    return action

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    """See argparse; an option that is none is told before one that is missing."""
    args = sys.argv[1:] if args is None else list(args)
    for argument in args[:args.index('--')] if '--' in args else args:
      name = argument.partition('=')[0]
      if name.startswith('--') and name not in self._options:
        close = difflib.get_close_matches(name, self._options, 1, 0.75)
        raise ConfigError(f'There is no option {argument}; '
                          + (f'did you mean {close[0]}?' if close else 'see --help.'))
    return super().parse_known_args(args, namespace)

  def error(self, message: str) -> NoReturn:
    """Raises ConfigError."""
    raise ConfigError(f'{message[0].upper()}{message[1:]}; see --help.')


def run(main: Callable[[Interrupt], None], *, leave: bool = True) -> NoReturn:
  """Calls `main` with signals watched and the environment prepared for jax, then exits.

  The exit code is 0, 1 after a `UserError`, whose sentence is printed, or 128 + a signal's number,
  SIGPIPE's where the reader of our output has left.

  Args:
    main: the program.
    leave: whether a signal that is not `deferred` ends it on the spot, see `Interrupt`; False for
      one that has something to do then.
  """
  code = 0
  if isinstance(sys.stdout, io.TextIOWrapper):
    # Paths may hold bytes that are no characters; a run must not fail on printing them.
    sys.stdout.reconfigure(errors='backslashreplace')
  machine.prepare_environment()
  try:
    with Interrupt(leave=leave) as interrupt:
      main(interrupt)
  except UserError as error:
    if not error.told:
      print(f'error: {one_line(str(error))}', file=sys.stderr)
    code = 1
  except Interrupted as interrupted:
    print(interrupted, file=sys.stderr)
    code = interrupted.exit_code
  except BrokenPipeError:
    # Whoever read our output has left. Python would fail again on flushing it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 128 + signal.SIGPIPE
  except OSError as error:
    # The terminal is gone, or the disk that our output goes to is full.
    if error.errno not in (errno.EIO, errno.ENOSPC) or error.filename is not None:
      raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
      print(f'error: The output could not be written: {error.strerror}; what was saved is intact.',
            file=sys.stderr)
    code = 1
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


def add_config_arguments(parser: argparse.ArgumentParser, workdir: str) -> None:
  """The arguments that say what is trained, and where; `workdir` explains the default directory."""
  parser.add_argument('--config', default='configs/cnn.py', metavar='FILE',
                      help='config file: a path, the name of a shipped one such as mlp, or the '
                      'config.json of a run (default: %(default)s)')
  add_import_argument(parser)
  parser.add_argument('--workdir', metavar='DIR', help=workdir)
  parser.add_argument('--config.SECTION.FIELD', metavar='VALUE', dest='_',
                      help='overrides a field of the config; see fmnist_jax.main --help')


def add_import_argument(parser: argparse.ArgumentParser) -> None:
  """`--import`, for models and other parts of one's own that a config.json names."""
  parser.add_argument('--import', action='append', default=[], metavar='MODULE', dest='imports',
                      help='a module or .py file to import first, which defines parts of your own '
                      'that a config.json names; may be given several times')


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments that say which run is used."""
  parser.add_argument('--workdir', required=True, metavar='DIR', help='directory of the run')
  parser.add_argument('--checkpoint', default='best', metavar='best|latest|STEP',
                      help='which checkpoint (default: best)')
  parser.add_argument('--config', metavar='FILE', help='the config file of the run, where it '
                      'defines a model or another part of your own')
  add_import_argument(parser)


def prepare_run(args: argparse.Namespace) -> None:
  """Imports what the run that `add_run_arguments` names is made of, and starts jax as it says."""
  from fmnist_jax import config_file
  from fmnist_jax.storage import workdir
  config_file.import_parts(args.imports + [args.config] * bool(args.config))
  machine.setup(compile_cache=workdir.read_config(args.workdir).train.compile_cache)


def load_config(args: argparse.Namespace, overrides: Sequence[str]) -> Config:
  """The config that the arguments of `add_config_arguments` name."""
  from fmnist_jax import config_file
  config_file.import_parts(args.imports)
  return config_file.load(args.config, overrides)
