"""A whole run: data, training, evaluation, report."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from absl import logging
from jax.sharding import Mesh

from fmnist_jax import config as config_lib
from fmnist_jax import data, machine, ops, parts, processes, sharding, tensorboard, transfer
from fmnist_jax import progress as progress_lib
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import ConfigError, DataError
from fmnist_jax.interrupt import Signals, Unwatched
from fmnist_jax.optimizers import Horizon
from fmnist_jax.storage.checkpoint import Checkpoints
from fmnist_jax.storage.workdir import Workdir
from fmnist_jax.trainer import Trainer


def resolve(config: config_lib.Config, platform: str, resident: bool,
            devices: int = 1) -> config_lib.Config:
  """The config with every 'auto' replaced by what it means here.

  Args:
    config: validated.
    platform: of the devices, 'cpu', 'gpu' or 'tpu'.
    resident: whether the data set fits on them.
    devices: how many there are.
  """
  chosen = {}
  bare = isinstance(config.model, nn.Module)  # It computes as it was written: nobody tells it how.
  if config.train.operations == 'auto':
    chosen['train.operations'] = 'native' if bare else ops.default_implementation(platform, devices)
  if config.train.precision == 'auto':
    chosen['train.precision'] = 'float32' if bare else ops.default_precision(platform)
  if config.data.residency == 'auto':
    chosen['data.residency'] = 'resident' if resident else 'streamed'
  return config_lib.replace(config, chosen)


def train_and_evaluate(config: config_lib.Config, directory: str | pathlib.Path, *,
                       dataset: data.Dataset | None = None,
                       on_record: Callable[[dict[str, Any]], None] = lambda record: None,
                       signals: Signals | None = None) -> dict[str, Any]:
  """Trains, or goes on training, and evaluates; everything is written below `directory`.

  Where jax knows of several processes (`jax.distributed`), all of them call this: they train one
  run on the devices of all. Signals, logging and jax's settings stay the program's own;
  `fmnist_jax.main` does more (`machine.setup`, `Interrupt`).

  Args:
    config: of the run.
    directory: its work directory; a run found there is continued, a finished one only read. Of
      several processes, process 0 alone uses it.
    dataset: what to train on, in place of what `config.data` loads; the config says how it is
      dealt out.
    on_record: called with each record of metrics.jsonl once it is on the disk; in process 0.
    signals: polled where stopping is safe, such as an `Interrupt`; none by default.

  Returns:
    The contents of results.json.

  Raises:
    UserError: one sentence on what is wrong and what to do.
    Interrupted: when a signal asked to leave; what was done is saved.
  """
  with contextlib.ExitStack() as stack:
    signals = stack.enter_context(processes.agreeing(signals or Unwatched()))
    console = stack.enter_context(progress_lib.Console())
    began = time.perf_counter()
    config, directory, dataset, mesh = _prepare_alike(config, pathlib.Path(directory), dataset)
    checkpoints = Checkpoints(directory / 'checkpoints')
    # Read before anything is written; what a run began from is in its own checkpoints.
    source = processes.together(
        lambda: transfer.find(config, dataset, begun=bool(checkpoints.steps())))
    workdir = stack.enter_context(Workdir(
        directory, config, tensorboard.recorder(config, directory, on_record)))
    checkpoints.clean()
    results = workdir.results()
    if results is not None:
      console.say(f'{workdir.path} is finished; choose another --workdir to train again.')
      return results
    trainer = processes.together(lambda: Trainer(
        config, workdir, Equipment(config, dataset, mesh, source), console, signals))
    # However this ends: nobody else may hold the directory while something is written.
    stack.callback(trainer.checkpoints.end_writing)
    data_seconds = time.perf_counter() - began - trainer.programs.compile_seconds
    console.say(progress_lib.introduction(config, dataset, sharding.device_name(mesh)))
    if source:
      console.say(source.told())
    trainer.resume()
    trainer.progress.seconds['data'] += data_seconds
    trainer.fit()
    return trainer.finish()


def _prepare_alike(config: config_lib.Config, directory: pathlib.Path, dataset: data.Dataset | None
                   ) -> tuple[config_lib.Config, pathlib.Path, data.Dataset, Mesh]:
  """`prepare`, of a config to be validated; in all processes, to the same end, or in none."""
  # Before the devices are started, which waits for every process.
  config = processes.together(lambda: config_lib.validate(config))
  config, directory, dataset, mesh = processes.together(lambda: prepare(config, directory, dataset))
  here = {'config': config_lib.to_json(config), 'sha256': dict(dataset.sha256)}
  first = processes.of_primary(lambda: here)
  def compare() -> None:
    if first is here:
      return
    changed = config_lib.differences(config_lib.from_json(first['config']), config)
    if changed:
      raise ConfigError(f'This process has another config than process 0 ({"; ".join(changed)}); '
                        'start all with the same command, on machines of one kind.')
    if first['sha256'] != here['sha256']:
      raise DataError(f'This process found other data under the name {dataset.name} than process '
                      '0 (the SHA-256 digests differ); give all of them the same.')
  processes.together(compare)
  return config, directory, dataset, mesh


def prepare(config: config_lib.Config, directory: pathlib.Path,
            dataset: data.Dataset | None = None
            ) -> tuple[config_lib.Config, pathlib.Path, data.Dataset, Mesh]:
  """What a run needs before it opens its directory: resolved config, directory, data, devices."""
  machine.check()
  tensorboard.check(config)
  if dataset is None:
    config, directory, dataset = load(config, directory)
  else:
    dataset = data.deal(config.data, dataset)
  config = _as_suits(config, dataset)
  check_parts(config, dataset)
  mesh = sharding.make_mesh(config.data.batch_size, config.train.devices)
  return suited(config, dataset, mesh), directory, dataset, mesh


def check_parts(config: config_lib.Config, dataset: data.Dataset) -> None:
  """Raises ConfigError unless the parts of a config fit together and the data."""
  parts.check(config, dataset.image_shape, dataset.num_classes,
              Horizon(len(dataset.train) // config.data.batch_size, config.train.epochs))


def suited(config: config_lib.Config, dataset: data.Dataset, mesh: Mesh) -> config_lib.Config:
  """The config with nothing left to 'auto', as it suits the data and the devices."""
  resident = data.is_resident(config.data.residency, dataset.train_bytes)
  return resolve(_as_suits(config, dataset), sharding.platform(mesh), resident, mesh.size)


def _as_suits(config: config_lib.Config, dataset: data.Dataset) -> config_lib.Config:
  """The config without what would make images of no class, such as mirrored digits."""
  if dataset.mirrored_alike:
    return config
  augment = tuple(one.unmirrored() for one in config.data.augment)
  tta = tuple(kind for kind in config.evaluate.tta if kind != 'flip')
  if (augment, tta) != (config.data.augment, config.evaluate.tta):
    logging.info('Images of %s are not mirrored: they would be of no class.', dataset.name)
  return config_lib.replace(config, {'data.augment': augment, 'evaluate.tta': tta})


def load(config: config_lib.Config,
         directory: pathlib.Path) -> tuple[config_lib.Config, pathlib.Path, data.Dataset]:
  """The data set; or, where the config allows it, another in a directory of its own."""
  try:
    return config, directory, data.load(config.data)
  except data.DataUnavailable as error:
    instead = config.data.fallback()
    if instead is None:
      raise
    directory = directory.absolute()
    if not directory.name:
      raise ConfigError(f'--workdir is {directory}; name a directory that may be made.') from error
    directory = directory.with_name(f'{directory.name}-synthetic')
    logging.warning('%s', error)
    logging.warning('=' * 88)
    logging.warning('TRAINING ON SYNTHETIC IMAGES: data.offline_fallback is set and the data set '
                    'could not be had.')
    logging.warning('Everything goes to %s and says "synthetic": true.', directory)
    logging.warning('=' * 88)
    config = dataclasses.replace(config, data=instead)
    return config, directory, data.load(config.data)
