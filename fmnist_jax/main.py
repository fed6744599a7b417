"""The command line: `python -m fmnist_jax.main --config=configs/cnn.py`.

Nothing heavy is imported before signals are watched and the arguments are read.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from fmnist_jax import command, config_file
from fmnist_jax.errors import ConfigError
from fmnist_jax.interrupt import Interrupt

_DESCRIPTION = """\
Trains, evaluates and explains an image classifier. The same command again goes on where the last
one stopped, to the same result."""


# Host and port of process 0 or 'auto', number of processes, index of this one.
Place = tuple[str, int | None, int | None]


def parse(argv: Sequence[str]) -> tuple[str, pathlib.Path, list[str], Place | None]:
  """Config file, work directory, overrides and place among processes; prints help when asked to."""
  rest, overrides = command.split_overrides(argv)
  parser = command.Parser(
      prog='python -m fmnist_jax.main', description=_DESCRIPTION, add_help=False,
      allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='configs/cnn.py', metavar='FILE',
                      help='config file: a path, or the name of a shipped one such as mlp '
                      '(default: %(default)s)')
  parser.add_argument('--workdir', metavar='DIR', help='where everything is written; a run found '
                      'there is continued (default: runs/<name of the config file>)')
  parser.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, where several '
                      'processes share the run; auto: jax finds it, --processes and --process out '
                      'by itself (TPU pods, SLURM, Open MPI, Kubernetes)')
  parser.add_argument('--processes', metavar='N', help='how many processes share the run')
  parser.add_argument('--process', metavar='I', help='which of them this is: 0 to N - 1')
  parser.add_argument('--config.SECTION.FIELD', metavar='VALUE', dest='_',
                      help='overrides a field of the config; all of them follow')
  parser.add_argument('-h', '--help', action='store_true', help='shows this and every field')
  args, unknown = parser.parse_known_args(rest)
  if args.help:
    parser.print_help()
    print(f'\nfields of {args.config}, with their values:\n')
    print(config_file.describe(config_file.load(args.config, overrides)))
    sys.exit(0)
  if unknown:
    raise ConfigError(f'There is no option {unknown[0]}; the options are --config, --workdir, '
                      '--coordinator, --processes, --process and --config.SECTION.FIELD=VALUE (see '
                      '--help).')
  workdir = pathlib.Path(args.workdir or pathlib.Path('runs') / pathlib.Path(args.config).stem)
  return args.config, workdir, overrides, _place(args.coordinator, args.processes, args.process)


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


def main(interrupt: Interrupt) -> None:
  """Reads the command line and runs it."""
  file, workdir, overrides, place = parse(sys.argv[1:])
  load = lambda: config_file.load(file, overrides)
  config = None if place else load()
  from fmnist_jax import backend
  backend.prepare_environment()
  from fmnist_jax import processes, train
  if place:
    processes.start(*place)
  with processes.leaving():
    config = config or processes.together(load)
    train.train_and_evaluate(config, workdir, interrupt=interrupt)


if __name__ == '__main__':
  command.run(main)
