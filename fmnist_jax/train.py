"""A whole run: data, training, evaluation, report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import time
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from fmnist_jax import (
  backend,
  data,
  evaluate,
  files,
  models,
  ops,
  processes,
  readback,
  report,
  sharding,
  workdir,
)
from fmnist_jax import config as config_lib
from fmnist_jax import progress as progress_lib
from fmnist_jax.checkpoint import Checkpoints
from fmnist_jax.errors import ConfigError, DataError, WorkdirError
from fmnist_jax.interrupt import Interrupt
from fmnist_jax.session import Equipment, Session


def resolve(config: config_lib.Config, platform: str, resident: bool) -> config_lib.Config:
  """The config with every 'auto' replaced by what it means here.

  Args:
    config: validated.
    platform: of the devices, 'cpu', 'gpu' or 'tpu'.
    resident: whether the data set fits on them.
  """
  chosen = {}
  if config.train.operations == 'auto':
    chosen['train.operations'] = ops.default_implementation(platform)
  if config.train.precision == 'auto':
    chosen['train.precision'] = ops.default_precision(platform)
  if config.data.residency == 'auto':
    chosen['data.residency'] = 'resident' if resident else 'streamed'
  return config_lib.replace(config, chosen)


def train_and_evaluate(config: config_lib.Config, directory: str | pathlib.Path, *,
                       interrupt: Interrupt | None = None) -> dict[str, Any]:
  """Trains, or goes on training, and evaluates; everything is written below `directory`.

  Where jax knows of several processes (`jax.distributed`), all of them call this: they train one
  run on the devices of all.

  Args:
    config: of the run.
    directory: its work directory; a run found there is continued, a finished one only read. Of
      several processes, process 0 alone uses it.
    interrupt: the program's handling of signals; one of its own by default.

  Returns:
    The contents of results.json.

  Raises:
    UserError: one sentence on what is wrong and what to do.
    Interrupted: when a signal asked to leave; what was done is saved.
  """
  with contextlib.ExitStack() as stack:
    if interrupt is None:
      interrupt = stack.enter_context(Interrupt())
    signals: Interrupt | processes.Agreed = interrupt
    if processes.count() > 1:
      signals = processes.Agreed(interrupt)
      stack.enter_context(signals.deferred())
    display = stack.enter_context(progress_lib.Display(silent=not processes.is_primary()))
    # First of all, since starting the devices waits for every process.
    config = processes.together(lambda: config_lib.validate(config))
    processes.together(lambda: backend.setup(deterministic=config.train.deterministic,
                                             compile_cache=config.train.compile_cache))
    began = time.perf_counter()
    config, directory, dataset, mesh = processes.together(
        lambda: prepare(config, pathlib.Path(directory)))
    if processes.count() > 1:
      _check_alike(config, dataset)
    held = processes.together(lambda: stack.enter_context(
        workdir.Workdir(directory, config, hold=processes.is_primary())))
    found = processes.of_primary(lambda: finished(held))
    if found is not None:
      display.say(f'{held.path} is finished; choose another --workdir to train again.')
      return found
    session = Session(config, held, processes.together(lambda: Equipment(config, dataset, mesh)),
                      display, signals)
    data_seconds = time.perf_counter() - began - session.programs.compile_seconds
    _introduce(session)
    session.resume()
    session.progress.seconds['data'] += data_seconds
    display.start(config.train.epochs * session.programs.steps_per_epoch, int(session.state.step))
    session.fit()
    return finish(session)


def prepare(config: config_lib.Config, directory: pathlib.Path
            ) -> tuple[config_lib.Config, pathlib.Path, data.Dataset, Mesh]:
  """What a run needs before it opens its directory: resolved config, directory, data, devices."""
  config, directory, dataset = load(config, directory)
  models.check_fits(config.model, dataset.image_shape, dataset.num_classes)
  mesh = sharding.make_mesh(config.data.batch_size, config.train.devices)
  return resolve(config, sharding.platform(mesh), dataset.resident), directory, dataset, mesh


def _check_alike(config: config_lib.Config, dataset: data.Dataset) -> None:
  """Raises ConfigError or DataError in all processes unless they are about to do the same."""
  first, sha256 = processes.of_primary(
      lambda: (config_lib.to_json(config), dataset.sha256))
  def compare() -> None:
    changed = config_lib.differences(config_lib.from_json(first), config)
    if changed:
      raise ConfigError(f'This process has another config than process 0 ({"; ".join(changed)}); '
                        'start all with the same command, on machines of one kind.')
    if dataset.sha256 != sha256:
      raise DataError(f'This process found other data under the name {dataset.name} than process '
                      '0 (the SHA-256 digests differ); give all of them the same.')
  processes.together(compare)


def finished(held: workdir.Workdir) -> dict[str, Any] | None:
  """The results of a run that is finished; otherwise its directory is made ready."""
  if (held.path / 'plan.json').exists():
    raise WorkdirError(f'{held.path} holds a population, not a single run; choose another '
                       '--workdir.')
  Checkpoints(held.path / 'checkpoints').clean()
  if not (held.path / 'results.json').exists():
    return None
  return files.read_json(held.path / 'results.json', readback.RESULTS)


def load(config: config_lib.Config,
         directory: pathlib.Path) -> tuple[config_lib.Config, pathlib.Path, data.Dataset]:
  """The data set; or, where the config allows it, the synthetic one in a directory of its own."""
  try:
    return config, directory, data.load(config.data)
  except data.DataUnavailable as error:
    if not config.data.offline_fallback:
      raise
    directory = directory.with_name(f'{directory.name}-synthetic')
    logging.warning('%s', error)
    logging.warning('=' * 88)
    logging.warning('TRAINING ON SYNTHETIC IMAGES, NOT ON %s: data.offline_fallback is set and the '
                    'data set could not be had.', config.data.name)
    logging.warning('Everything goes to %s and says "synthetic": true.', directory)
    logging.warning('=' * 88)
    config = config_lib.replace(config, {'data.name': 'synthetic'})
    return config, directory, data.load(config.data)


def _introduce(session: Session) -> None:
  """Says what is about to happen."""
  config, say = session.config, session.display.say
  programs, train = session.programs, session.dataset.train
  say(f'{session.dataset.name}: {len(train):,} training, {len(session.dataset.validation):,} '
      f'validation examples, {config.data.residency}; {evaluate.device_name(session.mesh)}, '
      f'{config.train.precision}, {config.train.operations} operations')
  say(progress_lib.architecture(programs.module, programs.image_shape))


def finish(session: Session, *, with_report: bool = True) -> dict[str, Any]:
  """Measures the best checkpoint and writes predictions, report and, last, results.json."""
  config, held, dataset = session.config, session.directory, session.dataset
  began, compiled = time.perf_counter(), session.programs.compile_seconds
  session.restore(session.progress.best_step)
  split = dataset.validation if config.evaluate.split == 'validation' else dataset.test
  batches = evaluate.Batches(split, config.evaluate.batch_size, session.mesh, resident=False)
  probabilities = evaluate.predict(session.programs, session.state.variables(), batches,
                                   session.interrupt.check)
  compiling = session.programs.compile_seconds - compiled
  seconds = session.progress.seconds
  seconds = {**seconds, 'compile': seconds['compile'] + compiling,
             'evaluate': time.perf_counter() - began - compiling}
  progress = dataclasses.asdict(session.progress)
  found = evaluate.results(
      described=progress['data'], split=config.evaluate.split, probabilities=probabilities,
      labels=split.labels, parameters=session.parameters, progress=progress,
      seed=config.train.seed, seconds=seconds, mesh=session.mesh)
  processes.of_primary(lambda: write(held, config, dataset, found, probabilities, split,
                                     with_report=with_report))
  say = session.display.say
  if with_report:
    say(report.classification_table(found))
  where = f'; report: {held.path / "report" / "report.html"}' if with_report else ''
  say(f'{config.evaluate.split} accuracy {found["accuracy"]:.2%}, loss {found["loss"]:.4f}, of '
      f'epoch {found["best_epoch"]}{where}')
  return found


def write(held: workdir.Workdir, config: config_lib.Config, dataset: data.Dataset,
          found: dict[str, Any], probabilities: np.ndarray, split: data.Split, *,
          with_report: bool) -> None:
  """Writes predictions, report and, last because it marks the run as finished, results.json.

  Args:
    held: the run's directory, its history complete.
    config: of the run.
    dataset: what it was trained on.
    found: `evaluate.results(...)`.
    probabilities: float32 [N, K].
    split: what they were predicted on.
    with_report: whether to write report/ too.
  """
  content = io.BytesIO()
  np.savez(content, probabilities=probabilities, labels=split.labels)
  files.write_bytes(held.path / 'predictions.npz', content.getvalue())
  if with_report:
    images, _ = split.arrays()
    shown = np.arange(min(1000, len(dataset.train)))
    report.write(held.path, history=held.history.read(), results=found,
                 probabilities=probabilities, labels=split.labels, images=images,
                 train_images=dataset.train.fetch(shown), train_labels=dataset.train.labels,
                 class_names=dataset.class_names, config=config_lib.to_json(config),
                 validation_labels=dataset.validation.labels if len(dataset.validation) else None)
  files.write_json(held.path / 'results.json', found)
