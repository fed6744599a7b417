"""The same run with many seeds, and with varied settings, as easily as once.

`python -m fmnist_jax.population --config=configs/cnn.py --seeds=8 --workdir=runs/cnn_x8` trains
members that are each the run which `python -m fmnist_jax.main` makes of that seed, and says how
sure their mean is. The same command again goes on where the last one stopped.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_jax import command, config_file
from fmnist_jax import config as config_lib
from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.interrupt import Interrupt
from fmnist_jax.plan import plan

if TYPE_CHECKING:
  from fmnist_jax import workdir

MODES = ('auto', 'vectorized', 'sequential')


def fastest_mode(platform: str) -> str:
  """How members run fastest on a platform.

  CPU time of one training step of one member, ms, batch 128, bfloat16, matmul operations, on an
  AMD EPYC with AVX-512 (experiments/population_speed has whole populations):

             alone   2 in one program   8 in one program
      mlp     0.75               0.8                0.78
      cnn    15.1               24.7               41

  Whole populations of 16, models a minute (experiments/population_speed): of mlp 17.4 apart and
  12.6 in one program, of cnn 1.13 and 0.52.

  So on a CPU members train apart: what one program over all of them loses in the cache it does not
  gain elsewhere, and a step runs on one core, so there are as many threads as cores. An
  accelerator, which one small model leaves idle, gets them together.
  """
  return 'sequential' if platform == 'cpu' else 'vectorized'


def train_population(config: config_lib.Config, directory: str | pathlib.Path, *, seeds: int,
                     vary: Mapping[str, Sequence[float]] | None = None, mode: str = 'auto',
                     at_once: int = 0, interrupt: Interrupt | None = None) -> dict[str, Any]:
  """Trains the members of a population, or goes on with them, and sums up their results.

  Args:
    config: of the member with the first seed.
    directory: everything is written below it.
    seeds: how many; member k has seed `config.train.seed + k`.
    vary: values of continuous settings by dotted name; every combination is trained.
    mode: 'vectorized': members train in step with each other, in one program over all of them;
      'sequential': each for itself, compiled once, with the bits of its run alone; 'auto': what
      measured faster, or what the directory was begun with.
    at_once: most members in one vectorised program, or most threads with a member each; 0: as many
      as memory, and for threads the cores, allow.
    interrupt: the program's handling of signals; one of its own by default.

  Returns:
    The contents of population.json.

  Raises:
    UserError: one sentence on what is wrong and what to do.
    Interrupted: when a signal asked to leave; what was done is saved.
  """
  vary = dict(sorted((vary or {}).items()))  # The order they are given in means nothing.
  config = config_lib.validate(config)
  plan(config, seeds, vary)  # Raises where it cannot be.
  if at_once < 0:
    raise ConfigError(f'--at_once is {at_once}; it must be at least 0.')
  if mode not in MODES:
    raise ConfigError(f'--mode is {mode!r}; it must be one of {", ".join(MODES)}.')
  # Here, so that a mistake in the arguments is told before jax is imported.
  from fmnist_jax import (
    backend,
    evaluate,
    models,
    processes,
    progress,
    sharding,
    summary,
    train,
    workdir,
  )
  from fmnist_jax.members import Work, is_done, threads
  from fmnist_jax.session import Equipment
  with contextlib.ExitStack() as stack:
    if interrupt is None:
      interrupt = stack.enter_context(Interrupt())
    display = stack.enter_context(progress.Display())
    if processes.count() > 1:
      raise ConfigError('A population is trained in a single process; give each process members of '
                        'its own, or train one run on all with fmnist_jax.main.')
    platform = backend.setup(deterministic=config.train.deterministic,
                             compile_cache=config.train.compile_cache)
    began = time.perf_counter()
    config, directory, dataset = train.load(config, pathlib.Path(directory))
    if not dataset.resident:
      raise ConfigError('A population keeps its data on the device, but this data set is streamed; '
                        'set data.residency=resident, or train its members with fmnist_jax.main.')
    models.check_fits(config.model, dataset.image_shape, dataset.num_classes)
    config = train.resolve(config, platform, resident=True)
    members = plan(config, seeds, vary)
    held = stack.enter_context(workdir.Workdir(directory, config))
    mode = _settle(held, seeds, vary, mode, fastest_mode(platform))
    if not all(is_done(held.path / 'members' / member.name) for member in members):
      together = mode == 'vectorized'
      mesh = (sharding.make_member_mesh(len(members), config.train.devices) if together else
              sharding.make_mesh(config.data.batch_size, config.train.devices))
      equipment = Equipment(config, dataset, mesh)
      display.say(f'{dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} '
                  f'validation examples; {len(members)} members, {mode}; '
                  f'{evaluate.device_name(mesh)}, {config.train.precision}, '
                  f'{config.train.operations} operations')
      display.say(progress.architecture(equipment.programs.module, dataset.image_shape))
      work = Work(held, equipment, display, interrupt, time.perf_counter() - began)
      if together:
        work.in_step(members, at_once)
      else:
        work.apart(members, threads(equipment, len(members), at_once))
    return summary.write(held.path, [(member.name, member.settings) for member in members], mode,
                         display.say)


def _settle(held: workdir.Workdir, seeds: int, vary: Mapping[str, Sequence[float]], mode: str,
            fastest: str) -> str:
  """The mode; raises WorkdirError when the directory holds another population, or a run."""
  from fmnist_jax import files, readback
  path = held.path / 'plan.json'
  wanted = {'seeds': seeds, 'vary': {name: list(map(float, values))
                                     for name, values in vary.items()}}
  if not path.exists():
    if (held.path / 'metrics.jsonl').exists() or (held.path / 'checkpoints').exists():
      raise WorkdirError(f'{held.path} holds a single run, not a population; choose another '
                         '--workdir.')
    mode = fastest if mode == 'auto' else mode
    files.write_json(path, {**wanted, 'mode': mode})
    return mode
  saved = files.read_json(path, readback.PLAN)
  wanted['mode'] = saved['mode'] if mode == 'auto' else mode
  changed = [f'{name}: {saved[name]} -> {wanted[name]}' for name in wanted
             if saved[name] != wanted[name]]
  if changed:
    raise WorkdirError(f'{held.path} holds another population ({"; ".join(changed)}); choose '
                       'another --workdir, or delete this one to start anew.')
  return saved['mode']


_DESCRIPTION = """\
Trains a config with several seeds, and with varied settings, and sums up: mean, standard deviation
and 95 % interval of every score, the ensemble, all curves in one picture. The same command again
goes on where the last one stopped, to the same result."""


def parse_vary(arguments: Sequence[str]) -> dict[str, list[float]]:
  """'NAME=V1,V2' of each --vary, as values by name."""
  vary: dict[str, list[float]] = {}
  for argument in arguments:
    name, equals, text = argument.partition('=')
    if not equals:
      raise ConfigError(f'--vary {argument} needs values: --vary {argument}=VALUE,VALUE.')
    if name in vary:
      raise ConfigError(f'--vary {name} is given twice; list all its values in one.')
    vary[name] = list(config_file.parse(f'--vary {name}', text, 'tuple[float, ...]'))
  return vary


def main(interrupt: Interrupt) -> None:
  """Reads the command line and trains."""
  rest, overrides = command.split_overrides(sys.argv[1:])
  parser = command.Parser(prog='python -m fmnist_jax.population',
                          description=_DESCRIPTION, allow_abbrev=False)
  parser.add_argument('--config', default='configs/cnn.py', metavar='FILE',
                      help='config file: a path, or the name of a shipped one such as mlp '
                      '(default: %(default)s)')
  parser.add_argument('--seeds', default='8', metavar='N',
                      help='how many; member k has the seed of the config + k (default: 8)')
  parser.add_argument('--workdir', metavar='DIR', help='where everything is written; a population '
                      'found there is continued (default: runs/CONFIG_xSEEDS)')
  parser.add_argument('--vary', action='append', default=[], metavar='NAME=V1,V2',
                      help='trains every seed with each of these values of a continuous setting, '
                      'such as optim.learning_rate=1e-3,3e-3; of several, every combination')
  parser.add_argument('--mode', default='auto', metavar='|'.join(MODES),
                      help='vectorized: members train together in one program; sequential: each '
                      'for itself, with the bits of its run alone; auto: what is faster here '
                      '(default)')
  parser.add_argument('--at_once', default='0', metavar='N', help='most members in one vectorised '
                      'program, or most that train at a time; 0: as many as memory and cores '
                      'allow (default)')
  parser.add_argument('--config.SECTION.FIELD', metavar='VALUE', dest='_',
                      help='overrides a field of the config')
  args, unknown = parser.parse_known_args(rest)
  if unknown:
    raise ConfigError(f'There is no option {unknown[0]}; see --help for those there are.')
  seeds = config_file.parse('--seeds', args.seeds, 'int')
  directory = args.workdir or f'runs/{pathlib.Path(args.config).stem}_x{seeds}'
  config = config_file.load(args.config, overrides)
  at_once = config_file.parse('--at_once', args.at_once, 'int')
  vary = parse_vary(args.vary)
  from fmnist_jax import backend
  backend.prepare_environment()
  train_population(config, directory, seeds=seeds, vary=vary, mode=args.mode, at_once=at_once,
                   interrupt=interrupt)


if __name__ == '__main__':
  command.run(main)
