"""The command line: `python -m fmnist_jax.search --config=configs/cnn.py --space=cnn`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from fmnist_jax import command
from fmnist_jax.errors import ConfigError
from fmnist_jax.interrupt import Interrupt

_DESCRIPTION = """\
Searches for hyper-parameters of a config by validation data alone, with Optuna. The same command
again goes on; started on several machines with the same --storage, they share the trials."""


def main(interrupt: Interrupt, argv: Sequence[str] | None = None) -> None:
  """Reads the command line and searches."""
  rest, overrides = command.split_overrides(sys.argv[1:] if argv is None else argv)
  parser = command.Parser(prog='python -m fmnist_jax.search', description=_DESCRIPTION)
  command.add_config_arguments(
      parser, 'where everything is written; a search found there is continued (default: '
      'runs/CONFIG_search)')
  add = parser.add_argument
  add('--space', metavar='FILE', help='what is searched: Python with a function get_space(), or '
      'JSON; a path, or the name of a shipped one such as mlp')
  add('--range', action='append', default=[], metavar='FIELD=LOW..HIGH[:log|:STEP]', dest='ranges',
      help='searches a number too, such as optim.learning_rate=1e-4..3e-2:log')
  add('--choice', action='append', default=[], metavar='FIELD=A;B', dest='choices',
      help="searches values of a field, or kinds of a section: model.channels='16,32;32,64'")
  add('--trials', default='100', metavar='N', help='how many there are to be (default: 100)')
  add('--seeds', default='1', metavar='N', help='runs of each trial, whose mean counts (default: '
      '1)')
  add('--storage', default='', metavar='PATH|URL', help='where workers meet: a file on a disk that '
      'they share, or postgresql://USER@HOST/DATABASE, the password in $PGPASSWORD or ~/.pgpass '
      '(default: a file in the work directory)')
  add('--sampler', default='tpe', metavar='NAME', help='tpe, random, grid, qmc, gp, cmaes or '
      'nsgaii (default: tpe)')
  add('--pruner', default='median', metavar='NAME', help='what gives trials up at the end of an '
      'epoch: median, halving, hyperband or none (default: median)')
  add('--mode', default='auto', metavar='auto|vectorized|independent', help='vectorized: trials '
      'train together in one program; independent: each for itself, with the bits of its run '
      'alone; auto: what is faster here (default)')
  add('--at_once', default='0', metavar='N', help='most trials in one program, or most that train '
      'at a time; 0: as many as memory and cores allow (default)')
  add('--lease', default='60', metavar='SECONDS', help='a worker that gives no sign of life for so '
      'long loses its trials to others (default: 60)')
  add('--confirm', default='0', metavar='K', help='trains the best K again with five fresh seeds '
      '(default: 0)')
  args = parser.parse_args(rest)
  from fmnist_jax import config_file, machine, settings
  from fmnist_jax.search import space as space_lib
  whole = settings.Kind(int, False, False)
  numbers = {name: settings.parse(f'--{name}', getattr(args, name), whole)
             for name in ('trials', 'seeds', 'at_once', 'confirm')}
  lease = settings.parse('--lease', args.lease, settings.Kind(float, False, False))
  directory = args.workdir or f'runs/{config_file.default_name(args.config)}_search'
  config = command.load_config(args, overrides)
  space = space_lib.load(args.space, args.ranges, args.choices)
  if importlib.util.find_spec('optuna') is None:
    raise ConfigError('A search needs the package optuna: install fmnist_jax with pip install '
                      "'fmnist_jax[search]', or from a checkout with pip install -e '.[search]'.")
  machine.setup(compile_cache=config.train.compile_cache)
  from fmnist_jax.search import search
  how = search.How(trials=numbers['trials'], sampler=args.sampler, pruner=args.pruner,
                   mode=args.mode, at_once=numbers['at_once'], lease=lease,
                   confirm=numbers['confirm'])
  search.search(config, space, directory, seeds=numbers['seeds'], storage=args.storage, how=how,
                signals=interrupt)


if __name__ == '__main__':
  command.run(main)
