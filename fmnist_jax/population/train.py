"""The same run with many seeds, and with varied settings, as easily as once.

`python -m fmnist_jax.population --config=configs/cnn.py --seeds=8 --workdir=runs/cnn_x8` trains
members that are each the run which `python -m fmnist_jax.main` makes of that seed, and says how
sure their mean is. The same command again goes on where the last one stopped.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fmnist_jax import config as config_lib
from fmnist_jax import processes, progress, sharding, train, transfer
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.interrupt import Signals, Unwatched
from fmnist_jax.population import summary
from fmnist_jax.population.independent import Work, is_done, threads
from fmnist_jax.population.plan import plan
from fmnist_jax.storage import files, readback
from fmnist_jax.storage.workdir import Workdir

MODES = ('auto', 'vectorized', 'independent')


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
  return 'independent' if platform == 'cpu' else 'vectorized'


def train_population(config: config_lib.Config, directory: str | pathlib.Path, *, seeds: int,
                     vary: Mapping[str, Sequence[float]] | None = None, mode: str = 'auto',
                     at_once: int = 0, signals: Signals | None = None) -> dict[str, Any]:
  """Trains the members of a population, or goes on with them, and sums up their results.

  Args:
    config: of the member with the first seed.
    directory: everything is written below it.
    seeds: how many; member k has seed `config.train.seed + k`.
    vary: values of continuous settings by dotted name; every combination is trained.
    mode: 'vectorized': members train in step with each other, in one program over all of them;
      'independent': each for itself, in threads on a CPU, compiled once, with the bits of its run
      alone; 'auto': what measured faster, or what the directory was begun with.
    at_once: most members in one vectorised program, or most threads with a member each; 0: as many
      as memory, and for threads the cores, allow.
    signals: polled where stopping is safe, such as an `Interrupt`; none by default.

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
  if processes.count() > 1:
    raise ConfigError('A population is trained in a single process; give each process members of '
                      'its own, or train one run on all with fmnist_jax.main.')
  signals = signals or Unwatched()
  with contextlib.ExitStack() as stack:
    console = stack.enter_context(progress.Console())
    began = time.perf_counter()
    config, directory, dataset, mesh = train.prepare(config, pathlib.Path(directory))
    if config.data.residency != 'resident':
      raise ConfigError('A population keeps its data on the device, but this data set is streamed; '
                        'set data.residency=resident, or train its members with fmnist_jax.main.')
    members = plan(config, seeds, vary)
    done = all(is_done(directory / 'members' / member.name) for member in members)
    source = transfer.find(config, dataset, done)
    workdir = stack.enter_context(Workdir(directory, config))
    mode = _settle(workdir, seeds, vary, source, mode, fastest_mode(sharding.platform(mesh)))
    if not done:
      together = mode == 'vectorized'
      if together:
        mesh = sharding.make_member_mesh(len(members), config.train.devices)
      equipment = Equipment(config, dataset, mesh, source)
      console.say(progress.introduction(config, dataset, sharding.device_name(mesh),
                                        f'{len(members)} members, {mode}; '))
      if source:
        console.say(source.told())
      work = Work(workdir, equipment, console, signals, time.perf_counter() - began)
      if together:
        work.in_step(members, at_once)
      else:
        work.apart(members, threads(equipment, len(members), at_once))
    return summary.write(workdir.path, [(member.name, member.settings) for member in members], mode,
                         console.say)


def _settle(workdir: Workdir, seeds: int, vary: Mapping[str, Sequence[float]],
            source: transfer.Source | None, mode: str, fastest: str) -> str:
  """The mode; raises WorkdirError when the directory holds another population, or a run."""
  path = workdir.path / 'plan.json'
  wanted = {'seeds': seeds, 'vary': {name: list(map(float, values))
                                     for name, values in vary.items()},
            'init_from_sha256': source and source.described['sha256']}
  if not path.exists():
    if (workdir.path / 'metrics.jsonl').exists() or (workdir.path / 'checkpoints').exists():
      raise WorkdirError(f'{workdir.path} holds a single run, not a population; choose another '
                         '--workdir.')
    mode = fastest if mode == 'auto' else mode
    files.write_json(path, {**wanted, 'mode': mode})
    return mode
  saved = files.read_json(path, readback.PLAN)
  if source is None:  # Not needed any more.
    wanted['init_from_sha256'] = saved['init_from_sha256']
  wanted['mode'] = saved['mode'] if mode == 'auto' else mode
  changed = [f'{name}: {saved[name]} -> {wanted[name]}' for name in wanted
             if saved[name] != wanted[name]]
  if changed:
    raise WorkdirError(f'{workdir.path} holds another population ({"; ".join(changed)}); choose '
                       'another --workdir, or delete this one to start anew.')
  return saved['mode']
