"""A run or one of its checkpoints -> results, predictions.

A saved checkpoint is measured again from nothing but its files and the data set.
"""

from __future__ import annotations

import hashlib
import io
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from fmnist_jax import config as config_lib
from fmnist_jax import (
    data,
    graph,
    machine,
    metrics,
    photograph,
    processes,
    report,
    settings,
    sharding,
    tensorboard,
)
from fmnist_jax.errors import ConfigError, DataError, DivergenceError, ExportError, UserError, told
from fmnist_jax.storage import files
from fmnist_jax.storage.workdir import Workdir
from fmnist_jax.trained_model import TrainedModel, load_run

Batch = tuple[Any, Any, Any]


class Batches:
  """A split as batches of one size on the mesh: images, labels and a mask that is False on padding.

  Iterating goes over every example once, in order. A resident split is placed on the devices at
  the first pass and stays there; a streamed one is read again each pass.
  """

  def __init__(self, split: Any, batch_size: int, mesh: Mesh, *, resident: bool):
    """Args: `batch_size` is rounded up to a multiple of the devices of `mesh`."""
    self._split = split
    self._size = sharding.padded(batch_size, mesh.size)
    self._sharding = sharding.by_example(mesh)
    self._kept: list[Batch] | None = [] if resident else None

  @property
  def examples(self) -> int:
    """How many examples there are, padding left out."""
    return len(self._split)

  def __iter__(self) -> Iterator[Batch]:
    if self._kept:
      yield from self._kept
      return
    read = []
    for start in range(0, len(self._split), self._size):
      indices = np.arange(start, min(start + self._size, len(self._split)))
      missing = self._size - len(indices)
      images = np.pad(self._split.fetch(indices), ((0, missing), (0, 0), (0, 0), (0, 0)))
      labels = np.pad(self._split.labels[indices], (0, missing))
      batch = sharding.put((images, labels, np.arange(self._size) < len(indices)), self._sharding)
      if self._kept is not None:
        read.append(batch)
      yield batch
    if self._kept is not None:
      self._kept = read


def measure(programs: Any, variables: Any, batches: Batches,
            poll: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
  """Mean loss (nats) and accuracy over a split, float64, each example counted once.

  Args:
    programs: of the run; or of members, which gives arrays [M].
    variables: of the module.
    batches: of the split.
    poll: called before each batch; may raise to stop.
  """
  sums = programs.zero()
  for images, labels, mask in batches:
    poll()
    sums = programs.call(programs.evaluate, variables, sums, images, labels, mask)
  total = jax.device_get(sums)
  return total.loss.astype(np.float64) / total.count, total.correct / total.count


def predict(programs: Any, variables: Any, batches: Batches,
            poll: Callable[[], None]) -> np.ndarray:
  """Class probabilities of a split, float32 [N, K] ([M, N, K]), in its order; see `measure`."""
  parts = []
  for images, _, _ in batches:
    poll()
    # Fetched at the end only, so that the device does not wait for the host.
    parts.append(programs.call(programs.predict, variables, images))
  return np.concatenate(jax.device_get(parts), axis=-2)[..., :batches.examples, :]


def split_of(dataset: data.Dataset, name: str) -> data.Split:
  """The 'test' or 'validation' split.

  Raises:
    ConfigError: for another name.
    DataError: when there is no such split.
  """
  if name not in ('test', 'validation'):
    raise ConfigError(f'The split is {name!r}; it must be test or validation.')
  if name == 'test':
    return dataset.test
  if not dataset.validation:
    raise DataError(f'No validation data was kept of {dataset.name}; use the test split.')
  return dataset.validation


@processes.by_primary
def write(directory: Workdir, config: config_lib.Config, dataset: data.Dataset,
          results: dict[str, Any], probabilities: np.ndarray, variables: Any, *,
          with_report: bool) -> None:
  """Writes predictions, report and, last because it marks the run as finished, results.json.

  Args:
    directory: of the run, its history complete.
    config: of the run.
    dataset: what it was trained on.
    results: `results(...)`.
    probabilities: float32 [N, K].
    variables: of the module, that gave them.
    with_report: whether to write report/ too.
  """
  directory.held()
  split, content = split_of(dataset, results['split']), io.BytesIO()
  np.savez(content, probabilities=probabilities, labels=split.labels)
  files.write_bytes(directory.path / 'predictions.npz', content.getvalue())
  history = directory.history.read()
  try:
    tensorboard.update(config, directory.path, history, results)
    if with_report:
      images, _ = split.arrays()
      shown = np.arange(min(1000, len(dataset.train)))
      report.write(directory.path, history=history, results=results,
                   probabilities=probabilities, labels=split.labels, images=images,
                   train_images=dataset.train.fetch(shown), train_labels=dataset.train.labels,
                   class_names=dataset.class_names, config=config_lib.to_json(config),
                   network=_network(config, dataset, variables),
                   validation_labels=dataset.validation.labels if dataset.validation else None)
  except UserError:
    raise  # A disk: the same command again writes it.
  except Exception as error:  # Of matplotlib, which must not cost the results.
    logging.warning('The report could not be drawn (%s: %s); the results are complete without '
                    'it.', type(error).__name__, ' '.join(str(error).split())[:300])
  files.write_json(directory.path / 'results.json', results, sealed=True)


def network_of(config: config_lib.Config, variables: Any, image_shape: tuple[int, int, int],
               class_names: Sequence[str]) -> graph.Graph:
  """What a page runs; raises ExportError where it cannot, see also `graph.trace`."""
  if config.data.preparation() is not photograph.to_input:
    raise ExportError('Pictures of this data set are prepared in a way of their own, which no page '
                      'knows.')
  return graph.trace(config.model, variables, image_shape, class_names)


def _network(config: config_lib.Config, dataset: data.Dataset,
             variables: Any) -> graph.Graph | str:
  """What the report's page runs, or why it cannot."""
  try:
    report.check_weights(sum(leaf.size for leaf in jax.tree.leaves(variables)))
    return network_of(config, variables, dataset.image_shape, dataset.class_names)
  except UserError as error:
    return str(error)
  except Exception as error:  # Of somebody's own code, which must not cost the report.
    return f'{told(error)}.'


def results(*, described: Mapping[str, Any], split: str, probabilities: np.ndarray,
            labels: np.ndarray, parameters: int, trained: int, progress: Mapping[str, Any],
            config: config_lib.Config, seconds: Mapping[str, float], mesh: Mesh
            ) -> dict[str, Any]:
  """The contents of results.json, as the README lists them.

  Args:
    described: of the data set: `trainer.describe`.
    split: 'test' or 'validation'.
    probabilities: float32 [N, K].
    labels: int32 [N].
    parameters: how many the model has.
    trained: how many of them were trained.
    progress: of the run: epoch, best_epoch, best_validation_accuracy.
    config: of the run.
    seconds: by phase: data, compile, train, evaluate.
    mesh: what the predictions were computed on.

  Raises:
    DivergenceError: when the model predicts what is no probability.
  """
  if not np.isfinite(probabilities).all():
    raise DivergenceError(f'The best model gives {split} images probabilities that are not finite; '
                          'train again with a lower optim.learning_rate or with optim.clip_norm.')
  # Of few runs there is something to say here.
  special = {'lost_epoch': progress['lost_epoch'], 'init_from': progress['init_from'],
             'trained_parameters': trained if trained < parameters else None,
             'tta': list(config.evaluate.tta) or None,
             'teachers': described.get('teachers')}
  return {
      **{name: value for name, value in special.items() if value is not None},
      'dataset': described['name'], 'synthetic': described['synthetic'], 'split': split,
      **metrics.summarize(probabilities, labels, described['class_names']),
      'parameters': parameters, 'best_epoch': progress['best_epoch'],
      'best_validation_accuracy': progress['best_validation_accuracy'],
      'epochs': progress['epoch'], 'seed': config.train.seed,
      'seconds': {phase: round(value, 3) for phase, value in seconds.items()},
      'data_sha256': described['sha256'], 'versions': machine.versions(),
      'device': sharding.device_name(mesh), 'precision': config.train.precision,
      'operations': config.train.operations}


def dataset_of(run: TrainedModel, data_dir: str) -> data.Dataset:
  """The data set that a run was trained on, dealt out.

  Args:
    run: a trained model.
    data_dir: where the data set is; empty: where the run found it.

  Raises:
    DataError: when it is missing, damaged or another one.
  """
  source = run.config.data
  if data_dir:
    source = settings.replace(source, {'data_dir': data_dir})
  dataset = data.load(source)
  if dataset.sha256 != run.progress['data']['sha256']:
    raise DataError(f'{run.workdir} was trained on other data than {dataset.name} is now (the '
                    'SHA-256 digests differ); give the data it was trained on with --data_dir.')
  return dataset


def said(directory: str | pathlib.Path, dataset: data.Dataset) -> tuple[np.ndarray, str]:
  """What the best checkpoint of a run says of the training examples of a data set.

  Args:
    directory: the run's work directory.
    dataset: what it was trained on, dealt out in the same way.

  Returns:
    Class probabilities, float32 [N, K], and the SHA-256 of the weights.

  Raises:
    UserError: when the run is missing, damaged, or was trained on other images.
  """
  if processes.count() > 1:
    raise ConfigError('Models teach in a single process only.')
  run = load_run(directory)
  trained = run.progress['data']
  if (trained['sha256'], trained['train_examples'], trained['class_names']) != (
      dict(dataset.sha256), len(dataset.train), list(dataset.class_names)):
    raise DataError(f'{directory} was trained on other images than the training examples of '
                    f'{dataset.name} are here; a teacher has to have the same ones, so that it '
                    'knows no more of the validation images.')
  batches = Batches(dataset.train, run.config.evaluate.batch_size, run.programs.mesh,
                    resident=False)
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(run.variables):
    digest.update(np.asarray(leaf).tobytes())
  return predict(run.programs, run.variables, batches, lambda: None), digest.hexdigest()


def evaluate_run(directory: str | pathlib.Path, split: str = 'test',
                 checkpoint: str = 'best', data_dir: str = '',
                 tta: Sequence[str] | None = None) -> dict[str, Any]:
  """Measures a checkpoint on a split and writes `results-<split>-<checkpoint>.json` beside it.

  Args:
    directory: the run's work directory.
    split: 'test' or 'validation'.
    checkpoint: 'best', 'latest' or a step.
    data_dir: where the data set is, if not where the run found it.
    tta: test-time augmentation in place of what the run's `evaluate.tta` says; it is then part of
      the file's name.

  Returns:
    What it wrote, the fields of results.json.

  Raises:
    UserError: when the run, the checkpoint or the data set is missing, damaged or another one.
  """
  run = load_run(directory, checkpoint, {} if tta is None else {'evaluate.tta': tuple(tta)})
  began = time.perf_counter()
  dataset = dataset_of(run, data_dir)
  if 'flip' in run.config.evaluate.tta and not dataset.mirrored_alike:
    raise ConfigError(f'Images of {dataset.name} are not mirrored, as they would be of no class; '
                      'leave flip out.')
  chosen = split_of(dataset, split)
  loaded = time.perf_counter()
  batches = Batches(chosen, run.config.evaluate.batch_size, run.programs.mesh, resident=False)
  probabilities = predict(run.programs, run.variables, batches, lambda: None)
  compiling = run.programs.compile_seconds
  seconds = {'data': loaded - began, 'compile': compiling,
             'train': run.progress['seconds']['train'],
             'evaluate': time.perf_counter() - loaded - compiling}
  measured = results(described=run.progress['data'], split=split, probabilities=probabilities,
                     labels=chosen.labels, parameters=run.parameters,
                     trained=run.trained_parameters, progress=run.progress,
                     config=run.config, seconds=seconds, mesh=run.programs.mesh)
  files.write_json(run.workdir / results_name(split, checkpoint, tta), measured, sealed=True)
  return measured


def results_name(split: str, checkpoint: str, tta: Sequence[str] | None = None) -> str:
  """The file that `evaluate_run` writes in a work directory, by its arguments."""
  views = [] if tta is None else ['-'.join(('tta', *tta)) if tta else 'plain']
  return f'results-{"-".join([split, checkpoint, *views])}.json'

