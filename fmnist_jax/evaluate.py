"""A run or one of its checkpoints -> results, predictions.

`python -m fmnist_jax.evaluate --workdir=runs/cnn` measures a saved checkpoint again, from nothing
but its files and the data set.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fmnist_jax import command, data, files, metrics, report, sharding, step
from fmnist_jax.epoch import Programs
from fmnist_jax.errors import DataError, DivergenceError
from fmnist_jax.run import load_run

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


def measure(programs: Programs, variables: Any, batches: Batches,
            poll: Callable[[], None]) -> tuple[float, float]:
  """Mean loss (nats) and accuracy over a split, each example counted once.

  Args:
    programs: of the run.
    variables: of the module.
    batches: of the split.
    poll: called before each batch; may raise to stop.
  """
  sums = sharding.put(step.Sums.zero(), sharding.replicated(programs.mesh))
  for images, labels, mask in batches:
    poll()
    args = (variables, sums, images, labels, mask)
    sums = programs.compiled(programs.evaluate, *args)(*args)
  total = jax.device_get(sums)
  return float(total.loss) / int(total.count), int(total.correct) / int(total.count)


def predict(programs: Programs, variables: Any, batches: Batches,
            poll: Callable[[], None]) -> np.ndarray:
  """Class probabilities of a split, float32 [N, K], in its order; see `measure`."""
  parts = []
  for images, _, _ in batches:
    poll()
    args = (variables, images)
    # Fetched at the end only, so that the device does not wait for the host.
    parts.append(programs.compiled(programs.predict, *args)(*args))
  return np.concatenate(jax.device_get(parts))[:batches.examples]


def results(*, described: Mapping[str, Any], split: str, probabilities: np.ndarray,
            labels: np.ndarray, parameters: int, progress: Mapping[str, Any], seed: int,
            seconds: Mapping[str, float], mesh: Mesh) -> dict[str, Any]:
  """The contents of results.json, as the README lists them.

  Args:
    described: of the data set: `data.Dataset.describe()`.
    split: 'test' or 'validation'.
    probabilities: float32 [N, K].
    labels: int32 [N].
    parameters: how many the model has.
    progress: of the run: epoch, best_epoch, best_validation_accuracy.
    seed: of the run.
    seconds: by phase: data, compile, train, evaluate.
    mesh: what the predictions were computed on.

  Raises:
    DivergenceError: when the model predicts what is no probability.
  """
  if not np.isfinite(probabilities).all():
    raise DivergenceError(f'The best model gives {split} images probabilities that are not finite; '
                          'train again with a lower optim.learning_rate or with optim.clip_norm.')
  return {
      'dataset': described['name'], 'synthetic': described['synthetic'], 'split': split,
      **metrics.summarize(probabilities, labels, described['class_names']),
      'parameters': parameters, 'best_epoch': progress['best_epoch'],
      'best_validation_accuracy': progress['best_validation_accuracy'],
      'epochs': progress['epoch'], 'seed': seed,
      'seconds': {phase: round(value, 3) for phase, value in seconds.items()},
      'data_sha256': described['sha256'], 'versions': versions(), 'device': device_name(mesh)}


def versions() -> dict[str, str]:
  """Versions of everything that numbers can depend on."""
  names = ('fmnist_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  found = {'python': platform.python_version()}
  for name in names:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = 'not installed as a package'
  return found


def device_name(mesh: Mesh) -> str:
  """The devices in words, e.g. '4 x cpu (AMD EPYC 7B13)'."""
  device = mesh.devices.flat[0]
  name = device.device_kind
  if device.platform == 'cpu':
    name = _cpu_name()
  return f'{mesh.size} x {device.platform} ({name})'


def _cpu_name() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  if info.is_file():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  return platform.processor() or platform.machine()


def evaluate_run(directory: str | pathlib.Path, split: str = 'test',
                 checkpoint: str = 'best', data_dir: str = '') -> dict[str, Any]:
  """Measures a checkpoint on a split and writes `results-<split>-<checkpoint>.json` beside it.

  Args:
    directory: the run's work directory.
    split: 'test' or 'validation'.
    checkpoint: 'best', 'latest' or a step.
    data_dir: where the data set is, if not where the run found it.

  Returns:
    What it wrote, the fields of results.json.

  Raises:
    UserError: when the run, the checkpoint or the data set is missing, damaged or another one.
  """
  run = load_run(directory, checkpoint)
  began = time.perf_counter()
  settings = run.config.data
  dataset = data.load(dataclasses.replace(settings, data_dir=data_dir or settings.data_dir))
  described = run.progress['data']
  if dataset.sha256 != described['sha256']:
    raise DataError(f'{directory} was trained on other data than {dataset.name} is now (the '
                    'SHA-256 digests differ); give the data it was trained on with --data_dir.')
  chosen = dataset.validation if split == 'validation' else dataset.test
  if not len(chosen):
    raise DataError(f'{directory} was trained without validation data; use --split=test.')
  loaded = time.perf_counter()
  batches = Batches(chosen, run.config.evaluate.batch_size, run.programs.mesh, resident=False)
  probabilities = predict(run.programs, run.variables, batches, lambda: None)
  compiling = run.programs.compile_seconds
  seconds = {'data': loaded - began, 'compile': compiling,
             'train': run.progress['seconds']['train'],
             'evaluate': time.perf_counter() - loaded - compiling}
  found = results(described=described, split=split, probabilities=probabilities,
                  labels=chosen.labels, parameters=run.parameters, progress=run.progress,
                  seed=run.config.train.seed, seconds=seconds, mesh=run.programs.mesh)
  files.write_json(run.workdir / f'results-{split}-{checkpoint}.json', found)
  return found


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = command.Parser(
      prog='python -m fmnist_jax.evaluate',
      description='Measures a checkpoint of a finished or running run again, prints precision, '
      'recall and F1 of each class, and writes results-SPLIT-CHECKPOINT.json into the workdir.')
  parser.add_argument('--workdir', required=True, help='directory of the run')
  parser.add_argument('--split', choices=('test', 'validation'), default='test',
                      help='what to measure on (default: test)')
  parser.add_argument('--checkpoint', default='best', metavar='best|latest|STEP',
                      help='which checkpoint (default: best)')
  parser.add_argument('--data_dir', default='', help='folder with the data set\'s files, if not '
                      'where the run found them')
  args = parser.parse_args(argv)
  found = evaluate_run(args.workdir, args.split, args.checkpoint, args.data_dir)
  print(report.classification_table(found))
  print(f'wrote {pathlib.Path(args.workdir) / f"results-{args.split}-{args.checkpoint}.json"}')


if __name__ == '__main__':
  command.run(lambda interrupt: main())
