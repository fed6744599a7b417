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

from fmnist_jax import backend, data, evaluate, models, ops, report, sharding, workdir
from fmnist_jax import config as config_lib
from fmnist_jax import progress as progress_lib
from fmnist_jax.checkpoint import Checkpoints
from fmnist_jax.errors import WorkdirError
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

  Args:
    config: of the run.
    directory: its work directory; a run found there is continued, a finished one only read.
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
    display = stack.enter_context(progress_lib.Display())
    config = config_lib.validate(config)
    backend.setup(deterministic=config.train.deterministic,
                  compile_cache=config.train.compile_cache)
    began = time.perf_counter()
    config, directory, dataset = load(config, pathlib.Path(directory))
    models.check_fits(config.model, dataset.image_shape)
    mesh = sharding.make_mesh(config.data.batch_size, config.train.devices)
    config = resolve(config, sharding.platform(mesh), dataset.resident)
    held = stack.enter_context(workdir.Workdir(directory, config))
    if (held.path / 'plan.json').exists():
      raise WorkdirError(f'{held.path} holds a population, not a single run; choose another '
                         '--workdir.')
    Checkpoints(held.path / 'checkpoints').clean()
    if (held.path / 'results.json').exists():
      display.say(f'{held.path} is finished; choose another --workdir to train again.')
      return workdir.read_json(held.path / 'results.json')
    session = Session(config, held, Equipment(config, dataset, mesh), display, interrupt)
    data_seconds = time.perf_counter() - began - session.programs.compile_seconds
    _introduce(session)
    session.resume()
    session.progress.seconds['data'] += data_seconds
    display.start(config.train.epochs * session.programs.steps_per_epoch, int(session.state.step))
    session.fit()
    return finish(session)


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
  write(held, config, dataset, found, probabilities, split, with_report=with_report)
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
  workdir.write_bytes(held.path / 'predictions.npz', content.getvalue())
  if with_report:
    images, _ = split.arrays()
    shown = np.arange(min(1000, len(dataset.train)))
    report.write(held.path, history=held.history.read(), results=found,
                 probabilities=probabilities, labels=split.labels, images=images,
                 train_images=dataset.train.fetch(shown), train_labels=dataset.train.labels,
                 class_names=dataset.class_names, config=config_lib.to_json(config),
                 validation_labels=dataset.validation.labels if len(dataset.validation) else None)
  workdir.write_json(held.path / 'results.json', found)
