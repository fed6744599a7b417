"""Hyper-parameters of a config, searched for by any number of workers.

Every worker runs the same command: it leases trials, trains them on validation data alone, tells
what became of them, and looks after what others leave undone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import optuna

from fmnist_jax import config as config_lib
from fmnist_jax import processes, progress, settings, sharding, train, transfer
from fmnist_jax.config import Config
from fmnist_jax.errors import ConfigError, DivergenceError, WorkdirError
from fmnist_jax.interrupt import Signals, Unwatched
from fmnist_jax.locks import locked
from fmnist_jax.population import train as population
from fmnist_jax.population.independent import threads
from fmnist_jax.population.train import MODES, fastest_mode
from fmnist_jax.search import apart, lanes, summary
from fmnist_jax.search.attempts import Desk
from fmnist_jax.search.bench import Bench
from fmnist_jax.search.board import PRUNERS, SAMPLERS, Board, pruner_of, sampler_of
from fmnist_jax.search.directories import Directories
from fmnist_jax.search.space import Space
from fmnist_jax.search.storage import Address
from fmnist_jax.storage import files


@dataclasses.dataclass(frozen=True)
class How:
  """How a search goes about it; none of it is kept, so going on may be otherwise.

  Attributes:
    trials: how many draws of the space.
    sampler: one of `board.SAMPLERS`.
    pruner: one of `board.PRUNERS`.
    mode: one of `population.train.MODES`.
    at_once: most threads, or lanes in a program; 0: as many as cores and memory allow.
    lease: seconds without a sign of life after which a worker's trials are taken from it.
    confirm: how many of the best to train again with fresh seeds.
  """
  trials: int = 100
  sampler: str = 'tpe'
  pruner: str = 'median'
  mode: str = 'auto'
  at_once: int = 0
  lease: float = 60.0
  confirm: int = 0

  def check(self) -> None:
    """Raises ConfigError for what cannot be."""
    for name, low in (('trials', 1), ('at_once', 0), ('confirm', 0)):
      if getattr(self, name) < low:
        raise ConfigError(f'--{name} is {getattr(self, name)}; it must be at least {low}.')
    if not 1 <= self.lease < 1e6:
      raise ConfigError(f'--lease is {self.lease:g}; it must be at least 1, and below a million.')
    for name, choices in (('sampler', SAMPLERS), ('pruner', PRUNERS), ('mode', MODES)):
      if getattr(self, name) not in choices:
        raise ConfigError(f'--{name} is {getattr(self, name)!r}; it must be one of '
                          f'{", ".join(choices)}.')


def search(config: Config, space: Space, directory: str | pathlib.Path, *, seeds: int = 1,
           storage: str = '', how: How | None = None,
           signals: Signals | None = None) -> dict[str, Any]:
  """Searches, or goes on searching, together with other workers that do the same.

  Args:
    config: what is not searched.
    space: what is.
    directory: everything is written below it.
    seeds: runs of a trial, whose mean validation accuracy counts; the first has the config's seed.
    storage: where workers meet: a path, for a journal, or a PostgreSQL address; empty: a journal in
      `directory`.
    how: see `How`.
    signals: polled where stopping is safe, such as an `Interrupt`; none by default.

  Returns:
    The contents of search.json.

  Raises:
    UserError: one sentence on what is wrong and what to do.
    Interrupted: when a signal asked to leave; trials are given back, what was done is saved: of
      trials in lanes, what was done when they were last saved, see `lanes.SAVED_EVERY`.
  """
  how, signals, directory = how or How(), signals or Unwatched(), pathlib.Path(directory)
  how.check()
  if seeds < 1:
    raise ConfigError(f'--seeds is {seeds}; it must be at least 1.')
  config = config_lib.validate(config)
  if not config.data.validation_examples:
    raise ConfigError('A search compares trials by validation data, but data.validation_examples '
                      'is 0.')
  space.check(config)
  grid = space.grid(config, how.trials) if how.sampler == 'grid' else {}
  how = dataclasses.replace(how, trials=len(grid) or how.trials)
  sampler = sampler_of(how.sampler)
  if storage:
    Address(storage)  # Raises before data are read.
  if processes.count() > 1:
    raise ConfigError('A search is many workers, each a single process; start the same command on '
                      'each machine without --coordinator.')
  with contextlib.ExitStack() as stack:
    console = stack.enter_context(progress.Console())
    own = config_lib.replace(config, {'evaluate.split': 'validation'})
    resolved, directory, dataset, mesh = train.prepare(own, directory)
    if resolved.data.residency != 'resident':
      raise ConfigError('A search keeps its data on the device, but this data set is streamed; set '
                        'data.residency=resident.')
    own = dataclasses.replace(own, data=resolved.data)
    plan = {'config': config_lib.to_json(config), 'space': space.to_json(), 'seeds': seeds}
    _settle(directory, config, plan)
    address = Address(storage or os.fspath(directory / 'journal.jsonl'))
    stack.callback(address.close)
    study = _study(address, directory, config, plan, sampler,
                   pruner_of(how.pruner, config.train.epochs))
    board = Board(study, address, space, own, how.trials, how.lease)
    places = Directories(directory / 'trials', board.worker)
    with locked(directory / '.restoring'):  # Workers that share the directory, one at a time.
      lacking = board.restore(*places.read())
      board.restore({}, grid)
    if lacking:
      console.say(f'{address.shown} lacked {lacking} trials that the directories have.')
    if not board.finished():
      source = transfer.find(own, dataset, False)
      mode = how.mode if how.mode != 'auto' else fastest_mode(sharding.platform(mesh))
      bench = Bench(dataset, source, sharding.make_member_mesh(how.trials, config.train.devices)
                    if mode == 'vectorized' else None)
      desk = Desk(board, places, bench, seeds, console.say)
      console.say(f'{dataset.name}: {len(dataset.train):,} training, '
                  f'{len(dataset.validation or ()):,} validation examples; '
                  f'{sharding.device_name(mesh)}; {how.trials} trials, {mode}, sampler '
                  f'{how.sampler}, pruner {how.pruner}; worker {board.worker} at {address.shown}')
      with board:
        if mode == 'vectorized':
          lanes.train(desk, how.trials, how.at_once, signals)
        else:
          _, equipment = bench.fit(own)
          apart.train(desk, threads(equipment, how.trials, how.at_once), signals)
    outcomes, importances = board.outcomes(), board.importances()
  with locked(directory / '.writing'):  # One worker confirms, the others find it done.
    names = summary.ranked(outcomes)
    for name in names[:how.confirm]:
      fresh = config_lib.replace(drawn(own, space, outcomes[name]), {
          'train.seed': config.train.seed + seeds})
      try:
        population.train_population(fresh, directory / 'confirm' / name,
                                    seeds=summary.CONFIRMING, signals=signals)
      except DivergenceError as error:  # What was found is written all the same.
        print(f'{name} with fresh seeds: {error}')
    best = drawn(config, space, outcomes[names[0]]) if names else None
    return summary.write(directory, plan, best, outcomes, importances, print)


def drawn(config: Config, space: Space, outcome: Mapping[str, Any]) -> Config:
  """The config of a trial."""
  return space.draw(config, optuna.trial.FixedTrial(outcome['params']))


def _settle(directory: pathlib.Path, config: Config, plan: Mapping[str, Any]) -> None:
  """Writes study.json; raises WorkdirError when the directory holds something else."""
  path = directory / 'study.json'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / '.settling'):
      if not path.exists():
        others = sorted(entry.name for entry in directory.iterdir()
                        if not entry.name.startswith('.'))
        if others:
          raise WorkdirError(f'{directory} holds files but no search (it has {others[0]!r}); '
                             'choose another --workdir or empty it.')
        files.write_json(path, plan)
  except OSError as error:
    raise WorkdirError(f'{directory} cannot be used: {files.reason(error)}; choose another '
                       '--workdir or give permission.') from error
  saved = files.read_json(path, {'config': dict, 'space': dict, 'seeds': range(2**31)})
  changed = config_lib.differences(config_lib.from_json(saved['config']), config)
  for name in ('seeds', 'space'):
    if saved[name] != plan[name]:
      changed.append(f'{name}: {saved[name]} -> {plan[name]}')
  if changed:
    raise WorkdirError(f'{directory} holds another search ({"; ".join(changed)}); choose another '
                       '--workdir, or delete this one to start anew.')


def _study(address: Address, directory: pathlib.Path, config: Config, plan: Mapping[str, Any],
           sampler: optuna.samplers.BaseSampler,
           pruner: optuna.pruners.BasePruner) -> optuna.Study:
  """The study of this search: the same for every worker, of another search another."""
  nowhere = config_lib.replace(config, dict.fromkeys(settings.locations(config), ''))
  same = files.digest({**plan, 'config': config_lib.to_json(nowhere)})
  storage = address.open()
  try:
    return optuna.create_study(
        study_name=f'{directory.absolute().name}-{same[:12]}', storage=storage, sampler=sampler,
        pruner=pruner, direction='maximize', load_if_exists=True)
  except Exception as error:  # Of a database that another program uses otherwise.
    raise ConfigError(f'The storage {address.shown} cannot be used: {address.tame(error)}.'
                      ) from None
