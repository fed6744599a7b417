"""All commands under one name: `fmnist-jax train --config=cnn`, or `python -m fmnist_jax ...`."""

from __future__ import annotations

import importlib
import os
import sys

from fmnist_jax import command
from fmnist_jax.errors import ConfigError
from fmnist_jax.interrupt import Interrupt

COMMANDS = {'train': 'fmnist_jax.main', 'evaluate': 'fmnist_jax.evaluate',
            'predict': 'fmnist_jax.predict', 'population': 'fmnist_jax.population.__main__',
            'search': 'fmnist_jax.search.__main__', 'compare': 'fmnist_jax.compare',
            'export': 'fmnist_jax.export.__main__'}


def dispatch(interrupt: Interrupt) -> None:
  """Runs the command that the first argument names with those after it."""
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('-h', '--help'):
    print(f'usage: fmnist-jax {"|".join(COMMANDS)} ...\n\nfmnist-jax COMMAND --help explains each; '
          'python -m fmnist_jax.main and the like are the same commands.')
    return
  if name not in COMMANDS:
    raise ConfigError(f'There is no command {name}; the commands are {", ".join(COMMANDS)}.')
  importlib.import_module(COMMANDS[name]).main(interrupt, sys.argv[2:])


def main() -> None:
  """The console command."""
  sys.path.insert(0, os.getcwd())  # As `python -m` does, so that --import finds what lies here.
  command.run(dispatch)


if __name__ == '__main__':
  main()
