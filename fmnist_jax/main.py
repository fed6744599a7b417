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


def parse(argv: Sequence[str]) -> tuple[str, pathlib.Path, list[str]]:
  """Config file, work directory and overrides of a command line; prints help when asked to."""
  rest, overrides = command.split_overrides(argv)
  parser = argparse.ArgumentParser(
      prog='python -m fmnist_jax.main', description=_DESCRIPTION, add_help=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='configs/cnn.py', metavar='FILE',
                      help='config file: a path, or the name of a shipped one such as mlp '
                      '(default: %(default)s)')
  parser.add_argument('--workdir', metavar='DIR', help='where everything is written; a run found '
                      'there is continued (default: runs/<name of the config file>)')
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
    raise ConfigError(f'There is no option {unknown[0]}; the options are --config, --workdir and '
                      '--config.SECTION.FIELD=VALUE (see --help).')
  workdir = pathlib.Path(args.workdir or pathlib.Path('runs') / pathlib.Path(args.config).stem)
  return args.config, workdir, overrides


def main(interrupt: Interrupt) -> None:
  """Reads the command line and runs it."""
  file, workdir, overrides = parse(sys.argv[1:])
  config = config_file.load(file, overrides)
  from fmnist_jax import backend
  backend.prepare_environment()
  from fmnist_jax import train
  train.train_and_evaluate(config, workdir, interrupt=interrupt)


if __name__ == '__main__':
  command.run(main)
