"""The command line: `python -m fmnist_jax.population --config=configs/cnn.py --seeds=8`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fmnist_jax import command
from fmnist_jax.errors import ConfigError
from fmnist_jax.interrupt import Interrupt

_DESCRIPTION = """\
Trains a config with several seeds, and with varied settings, and sums up: mean, standard deviation
and 95 % interval of every score, the ensemble, all curves in one picture. The same command again
goes on where the last one stopped, to the same result."""


def parse_vary(arguments: Sequence[str]) -> dict[str, list[float]]:
  """'NAME=V1,V2' of each --vary, as values by name."""
  from fmnist_jax import settings
  vary: dict[str, list[float]] = {}
  for argument in arguments:
    name, equals, text = argument.partition('=')
    if not equals:
      raise ConfigError(f'--vary {argument} needs values: --vary {argument}=VALUE,VALUE.')
    if name in vary:
      raise ConfigError(f'--vary {name} is given twice; list all its values in one.')
    vary[name] = list(settings.parse(f'--vary {name}', text, settings.Kind(float, True, False)))
  return vary


def main(interrupt: Interrupt, argv: Sequence[str] | None = None) -> None:
  """Reads the command line and trains."""
  rest, overrides = command.split_overrides(sys.argv[1:] if argv is None else argv)
  parser = command.Parser(prog='python -m fmnist_jax.population',
                          description=_DESCRIPTION)
  command.add_config_arguments(
      parser, 'where everything is written; a population found there is continued (default: '
      'runs/CONFIG_xSEEDS)')
  parser.add_argument('--seeds', default='8', metavar='N',
                      help='how many; member k has the seed of the config + k (default: 8)')
  parser.add_argument('--vary', action='append', default=[], metavar='NAME=V1,V2',
                      help='trains every seed with each of these values of a continuous setting, '
                      'such as optim.learning_rate=1e-3,3e-3; of several, every combination')
  parser.add_argument('--mode', default='auto', metavar='auto|vectorized|independent',
                      help='vectorized: members train together in one program; independent: each '
                      'for itself, with the bits of its run alone; auto: what is faster here '
                      '(default)')
  parser.add_argument('--at_once', default='0', metavar='N', help='most members in one vectorised '
                      'program, or most that train at a time; 0: as many as memory and cores '
                      'allow (default)')
  args = parser.parse_args(rest)
  from fmnist_jax import config_file, machine, settings
  number = settings.Kind(int, False, False)
  seeds = settings.parse('--seeds', args.seeds, number)
  at_once = settings.parse('--at_once', args.at_once, number)
  directory = args.workdir or f'runs/{config_file.default_name(args.config)}_x{seeds}'
  config = command.load_config(args, overrides)
  vary = parse_vary(args.vary)
  from fmnist_jax.population.train import train_population
  machine.setup(compile_cache=config.train.compile_cache)
  train_population(config, directory, seeds=seeds, vary=vary, mode=args.mode, at_once=at_once,
                   signals=interrupt)


if __name__ == '__main__':
  command.run(main)
