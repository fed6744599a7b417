"""The command line: `python -m fmnist_jax.main --config=configs/cnn.py`.

Nothing heavy is imported before signals are watched and the arguments are read.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from fmnist_jax import command
from fmnist_jax.errors import ConfigError
from fmnist_jax.interrupt import Interrupt

_DESCRIPTION = """\
Trains, evaluates and explains an image classifier. The same command again goes on where the last
one stopped, to the same result."""


# Host and port of process 0 or 'auto', number of processes, index of this one.
Place = tuple[str, int | None, int | None]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], Place | None]:
  """Arguments, overrides and place among processes; prints help when asked to.

  The work directory has its default.
  """
  rest, overrides = command.split_overrides(argv)
  parser = command.Parser(
      prog='python -m fmnist_jax.main', description=_DESCRIPTION, add_help=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  command.add_config_arguments(
      parser, 'where everything is written; a run found there is continued (default: runs/<name '
      'of the config file>)')
  parser.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, where several '
                      'processes share the run; auto: jax finds it, --processes and --process out '
                      'by itself (TPU pods, SLURM, Open MPI, Kubernetes)')
  parser.add_argument('--processes', metavar='N', help='how many processes share the run')
  parser.add_argument('--process', metavar='I', help='which of them this is: 0 to N - 1')
  parser.add_argument('-h', '--help', action='store_true', help='shows this and every field')
  args = parser.parse_args(rest)
  if args.help:
    from fmnist_jax import config_file
    config = command.load_config(args, overrides)
    parser.print_help()
    print(f'\nfields of {args.config}, with their values:\n')
    print(config_file.describe(config))
    sys.exit(0)
  place = _place(args.coordinator, args.processes, args.process)
  from fmnist_jax import config_file
  args.workdir = pathlib.Path(
      args.workdir or pathlib.Path('runs') / config_file.default_name(args.config))
  return args, overrides, place


def _place(coordinator: str | None, processes: str | None, process: str | None) -> Place | None:
  if coordinator is None and processes is None and process is None:
    return None
  if coordinator == 'auto' and processes is None and process is None:
    return coordinator, None, None
  host, _, port = (coordinator or '').rpartition(':')
  numbers = [port, processes or '', process or '']
  if not host or not all(number.isdecimal() and len(number) < 10 for number in numbers):
    raise ConfigError('Several processes need all of --coordinator=HOST:PORT, --processes=N and '
                      '--process=I, the latter two whole numbers, or --coordinator=auto alone.')
  number, index = int(numbers[1]), int(numbers[2])
  if index >= number:
    raise ConfigError(f'--process is {index}, but of --processes={number} the first is 0 and the '
                      f'last {number - 1}.')
  return coordinator, number, index  # type: ignore[return-value]


def main(interrupt: Interrupt, argv: Sequence[str] | None = None) -> None:
  """Reads the command line and runs it."""
  args, overrides, place = parse(sys.argv[1:] if argv is None else argv)
  from fmnist_jax import machine, processes, train
  if place:
    processes.start(*place)
  with processes.leaving():
    config = processes.together(lambda: command.load_config(args, overrides))
    machine.setup(compile_cache=config.train.compile_cache)
    train.train_and_evaluate(config, args.workdir, signals=interrupt)


if __name__ == '__main__':
  command.run(main)
