"""The same run with many seeds, and with varied settings, as easily as once.

`python -m fmnist_jax.population --config=configs/cnn.py --seeds=8 --workdir=runs/cnn_x8` trains
members that are each the run which `python -m fmnist_jax.main` makes of that seed, and says how
sure their mean is. The same command again goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import concurrent.futures as futures
import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_jax import command, config_file
from fmnist_jax import config as config_lib
from fmnist_jax.errors import ConfigError, DivergenceError, WorkdirError
from fmnist_jax.interrupt import Interrupt, Interrupted

if TYPE_CHECKING:
  from fmnist_jax import progress, session, workdir

MODES = ('auto', 'vectorized', 'sequential')


@dataclasses.dataclass(frozen=True)
class Member:
  """One run of a population.

  Attributes:
    name: of its directory below WORKDIR/members.
    settings: those that are varied.
    config: of the run.
  """
  name: str
  settings: dict[str, float]
  config: config_lib.Config


def plan(config: config_lib.Config, seeds: int,
         vary: Mapping[str, Sequence[float]]) -> list[Member]:
  """The members of a population: every combination of varied values, with every seed.

  Args:
    config: of the member with the first seed, validated.
    seeds: how many; member k has seed `config.train.seed + k`.
    vary: values of continuous settings by dotted name, `model.dropout.0` for entries of tuples.

  Raises:
    ConfigError: for a field that cannot be varied, or a value out of its range.
  """
  if seeds < 1:
    raise ConfigError(f'--seeds is {seeds}; it must be at least 1.')
  for name, values in vary.items():
    _check_can_vary(config, name)
    if not values:
      raise ConfigError(f'--vary {name} has no values; write --vary {name}=VALUE,VALUE.')
    if len(set(values)) < len(values):
      raise ConfigError(f'--vary {name} lists a value twice.')
  members = []
  for combination in itertools.product(*vary.values()):
    settings = dict(zip(vary, map(float, combination)))
    for seed in range(config.train.seed, config.train.seed + seeds):
      own = config_lib.validate(config_lib.replace(config, {'train.seed': seed, **settings}))
      name = '_'.join([f'seed-{seed}', *(f'{key}-{value!r}' for key, value in settings.items())])
      members.append(Member(name, settings, own))
  return members


def _check_can_vary(config: config_lib.Config, name: str) -> None:
  fields = {key: (value, field.metadata['continuous'])
            for key, value, field in config_lib.leaves(config)}
  able = []
  for key, (value, continuous) in fields.items():
    if continuous:
      able += [f'{key}.{i}' for i in range(len(value))] if isinstance(value, tuple) else [key]
  if name in able:
    return
  if name not in fields:
    raise ConfigError(config_lib.unknown_field(name, [*able, *fields]))
  value, continuous = fields[name]
  if continuous:
    entries = [f'{name}.{i}' for i in range(len(value))]
    raise ConfigError(f'{name} has an entry a block; '
                      f'{"vary " + " or ".join(entries) if entries else "give the config some"}.')
  raise ConfigError(f'{name} cannot be varied within a population, since the program depends on '
                    f'it; those that can be: {", ".join(able)}.')


def features(config: config_lib.Config) -> tuple[str, ...]:
  """Which continuous settings are switched on: members that agree in this share a program."""
  return tuple(config_lib.continuous(config))


def fastest_mode(platform: str) -> str:
  """How members run fastest on a platform.

  CPU time of one training step of one member, ms, batch 128, bfloat16, matmul operations, on an
  AMD EPYC with AVX-512 (experiments/population_speed has whole populations):

             alone   2 in one program   8 in one program
      mlp     0.75               0.8                0.78
      cnn    15.1               24.7               41

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
  vary = dict(vary or {})
  config = config_lib.validate(config)
  plan(config, seeds, vary)  # Raises where it cannot be.
  if at_once < 0:
    raise ConfigError(f'--at_once is {at_once}; it must be at least 0.')
  if mode not in MODES:
    raise ConfigError(f'--mode is {mode!r}; it must be one of {", ".join(MODES)}.')
  # Here, so that a mistake in the arguments is told before jax is imported.
  import jax

  from fmnist_jax import (
    backend,
    evaluate,
    lockstep,
    models,
    progress,
    sharding,
    summary,
    train,
    workdir,
  )
  from fmnist_jax.session import Equipment
  with contextlib.ExitStack() as stack:
    if interrupt is None:
      interrupt = stack.enter_context(Interrupt())
    display = stack.enter_context(progress.Display())
    platform = backend.setup(deterministic=config.train.deterministic,
                             compile_cache=config.train.compile_cache)
    began = time.perf_counter()
    config, directory, dataset = train.load(config, pathlib.Path(directory))
    if not dataset.resident:
      raise ConfigError('A population keeps its data on the device, but this data set is streamed; '
                        'set data.residency=resident, or train its members with fmnist_jax.main.')
    models.check_fits(config.model, dataset.image_shape)
    config = train.resolve(config, platform, resident=True)
    members = plan(config, seeds, vary)
    held = stack.enter_context(workdir.Workdir(directory, config))
    mode = _settle(held, seeds, vary, mode, fastest_mode(platform))
    if mode == 'vectorized' and jax.process_count() > 1:
      raise ConfigError('With several processes members run one after another; use '
                        '--mode=sequential.')
    if not all(_is_done(held.path / 'members' / member.name) for member in members):
      together = mode == 'vectorized'
      mesh = (sharding.make_member_mesh(len(members), config.train.devices) if together else
              sharding.make_mesh(config.data.batch_size, config.train.devices))
      equipment = Equipment(config, dataset, mesh)
      display.say(f'{dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} '
                  f'validation examples; {len(members)} members, {mode}; '
                  f'{evaluate.device_name(mesh)}, {config.train.precision}, '
                  f'{config.train.operations} operations')
      display.say(progress.architecture(equipment.programs.module, dataset.image_shape))
      work = _Work(held, equipment, display, interrupt, time.perf_counter() - began)
      if together:
        work.in_step(members, at_once)
      else:
        work.apart(members, lockstep.threads(equipment, len(members), at_once))
    return summary.write(held.path, [(member.name, member.settings) for member in members], mode,
                         display.say)


def _is_done(directory: pathlib.Path) -> bool:
  return any((directory / name).exists() for name in ('results.json', 'diverged.json'))


def _settle(held: workdir.Workdir, seeds: int, vary: Mapping[str, Sequence[float]], mode: str,
            fastest: str) -> str:
  """The mode; raises WorkdirError when the directory holds another population, or a run."""
  from fmnist_jax import workdir
  path = held.path / 'plan.json'
  wanted = {'seeds': seeds, 'vary': {name: list(map(float, values))
                                     for name, values in vary.items()}}
  if not path.exists():
    if (held.path / 'metrics.jsonl').exists() or (held.path / 'checkpoints').exists():
      raise WorkdirError(f'{held.path} holds a single run, not a population; choose another '
                         '--workdir.')
    mode = fastest if mode == 'auto' else mode
    workdir.write_json(path, {**wanted, 'mode': mode})
    return mode
  saved = workdir.read_json(path)
  wanted['mode'] = saved['mode'] if mode == 'auto' else mode
  changed = [f'{name}: {saved[name]} -> {wanted[name]}' for name in wanted
             if saved[name] != wanted[name]]
  if changed:
    raise WorkdirError(f'{held.path} holds another population ({"; ".join(changed)}); choose '
                       'another --workdir, or delete this one to start anew.')
  return saved['mode']


class _Signals:
  """Stands in for `Interrupt` in the threads of members: all leave when one fails."""

  def __init__(self, interrupt: Interrupt):
    self._interrupt, self._stopped = interrupt, threading.Event()

  def stop(self) -> None:
    """Makes the others save and leave."""
    self._stopped.set()

  def check(self) -> None:
    """Raises `Interrupted` when a signal came, or a thread failed."""
    if self._stopped.is_set():
      raise Interrupted(self._interrupt.requested or signal.SIGTERM)
    self._interrupt.check()

  def deferred(self) -> contextlib.AbstractContextManager[None]:
    """Nothing: the main thread defers signals for all."""
    return contextlib.nullcontext()


class _Named:
  """Stands in for `Display`: lines of a member begin with its name."""

  def __init__(self, display: progress.Display, name: str):
    self._display, self._name = display, name

  def say(self, text: str) -> None:
    """Prints a line."""
    self._display.say(f'{self._name}  {text}')

  def update(self, *_: Any) -> None:
    """Nothing: there is no bar."""


@dataclasses.dataclass
class _Work:
  """What training members needs.

  Attributes:
    population: the directory.
    equipment: programs and data.
    display: where to say what happens.
    interrupt: polled while training.
    data_seconds: spent on loading so far, booked on the first member that trains.
  """
  population: workdir.Workdir
  equipment: session.Equipment
  display: progress.Display
  interrupt: Interrupt
  data_seconds: float

  def _by_features(self, members: Sequence[Member]) -> list[
      tuple[session.Equipment, list[Member]]]:
    """Members that share a program, each lot with its own."""
    lots: dict[tuple[str, ...], list[Member]] = {}
    for member in members:
      lots.setdefault(features(member.config), []).append(member)
    return [(self.equipment.with_features_of(lot[0].config), lot) for lot in lots.values()]

  def _hold(self, member: Member) -> workdir.Workdir:
    from fmnist_jax import workdir
    return workdir.Workdir(self.population.path / 'members' / member.name,
                           member.config)

  def apart(self, members: Sequence[Member], at_once: int) -> None:
    """Every member as its run alone would be, bit for bit; compiled once.

    Args:
      members: to train, or to go on with.
      at_once: how many at a time, each in a thread of its own.
    """
    tasks = [(equipment, member) for equipment, lot in self._by_features(members)
             for member in lot]
    if at_once == 1:
      for equipment, member in tasks:
        self._train_one(equipment, member, self.interrupt)
      return
    signals = _Signals(self.interrupt)

    def work(task: tuple[session.Equipment, Member]) -> None:
      signals.check()
      try:
        self._train_one(*task, signals)
      except BaseException:
        signals.stop()
        raise

    with self.interrupt.deferred(), futures.ThreadPoolExecutor(at_once, 'member') as threads:
      errors = [future.exception() for future in [threads.submit(work, task) for task in tasks]]
    # What went wrong first made the others leave.
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Interrupted)):
      raise error

  def _train_one(self, equipment: session.Equipment, member: Member,
                 interrupt: Interrupt | _Signals) -> None:
    from fmnist_jax import train, workdir
    from fmnist_jax.session import Session
    with self._hold(member) as held:
      if _is_done(held.path):
        return
      named: Any = _Named(self.display, member.name)
      polled: Any = interrupt
      run = Session(member.config, held, equipment, named, polled)
      try:
        run.resume()
        run.progress.seconds['data'] += self.data_seconds
        self.data_seconds = 0.0
        run.fit()
        train.finish(run, with_report=False)
      except DivergenceError as error:
        self.display.say(f'{member.name} is given up: {error}')
        workdir.write_json(held.path / 'diverged.json', {'message': str(error)})
      finally:
        run.checkpoints.close()

  def in_step(self, members: Sequence[Member], at_once: int) -> None:
    """Members in groups, each group one program over a member axis."""
    from fmnist_jax import lockstep, workdir
    lots = self._by_features(members)
    path = self.population.path / 'groups.json'
    if not path.exists():
      # Kept, because a group goes on from its checkpoint only as the group it was.
      workdir.write_json(path, [lockstep.group_size(equipment, len(lot), at_once)
                                for equipment, lot in lots])
    number = itertools.count()
    for (equipment, lot), size in zip(lots, workdir.read_json(path)):
      for start in range(0, len(lot), size):
        directory = self.population.path / 'groups' / str(next(number))
        self._train_group(lot[start:start + size], size, directory, equipment)

  def _train_group(self, group: Sequence[Member], size: int, directory: pathlib.Path,
                   equipment: session.Equipment) -> None:
    from fmnist_jax import lockstep
    with contextlib.ExitStack() as stack:
      held = [(member.config, stack.enter_context(self._hold(member))) for member in group]
      if all(_is_done(own.path) for _, own in held):
        shutil.rmtree(directory, ignore_errors=True)
        return
      directory.mkdir(parents=True, exist_ok=True)
      together = lockstep.Lockstep(held, directory, equipment, size, self.display, self.interrupt)
      stack.callback(together.checkpoints.close)
      together.resume()
      together.progress.seconds['data'] += self.data_seconds
      self.data_seconds = 0.0
      self.display.say(f'{group[0].name} to {group[-1].name}:')
      together.fit()
      together.finish()


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
  parser = argparse.ArgumentParser(prog='python -m fmnist_jax.population',
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
