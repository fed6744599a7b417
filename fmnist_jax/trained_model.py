"""A trained model, loaded from its work directory for other programs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from fmnist_jax import config as config_lib
from fmnist_jax import machine, models, sharding, step
from fmnist_jax.errors import CheckpointError, DataError
from fmnist_jax.programs import Programs, hyper_arrays
from fmnist_jax.storage import files, readback, workdir
from fmnist_jax.storage.checkpoint import Checkpoints

T = TypeVar('T')


class TrainedModel:
  """A trained model loaded from a work directory.

  Attributes:
    workdir: the directory.
    config: what it was trained with.
    step: of the checkpoint that was loaded.
    class_names: of the outputs.
    image_shape: (H, W, C) that the model takes.
    state: all of it, `step.TrainState` of numpy arrays.
    variables: to evaluate with: 'params' and, with BatchNorm, 'batch_stats'.
    progress: what the newest checkpoint knows of the run: epoch, best, data set.
    programs: the compiled functions.
  """

  def __init__(self, directory: pathlib.Path, config: config_lib.Config, checkpoint: str):
    """Use `load_run`."""
    self.workdir = directory
    self.config = config
    checkpoints = Checkpoints(directory / 'checkpoints', readback.PROGRESS)
    described = _latest(checkpoints)[1]['data']
    self.class_names = tuple(described['class_names'])
    self.image_shape = tuple(described['image_shape'])
    if len(self.image_shape) != 3 or len(self.class_names) < 2:
      raise CheckpointError(f'The checkpoints of {directory} are of images of shape '
                            f'{list(self.image_shape)} in {len(self.class_names)} classes; there '
                            'must be three axes and two classes.')
    models.check_fits(config.model, self.image_shape, len(self.class_names))
    machine.check()
    mesh = sharding.make_mesh(sharding.padded(config.evaluate.batch_size, len(jax.devices())))
    self.programs = Programs(config, mesh, self.image_shape, len(self.class_names),
                             described['train_examples'])
    like = jax.eval_shape(self.programs.init, jax.ShapeDtypeStruct((), np.int32),
                          hyper_arrays(config))
    def read() -> None:
      latest, self.progress = _latest(checkpoints)
      self.step = choose(checkpoints, checkpoint, latest, self.progress)
      restored, _ = checkpoints.restore(
          self.step, {'state': like, 'sums': jax.eval_shape(step.Sums.zero)})
      self.state = restored['state']
    _again(checkpoints, read)
    self.variables = sharding.put(self.state.variables(), sharding.replicated(mesh))

  @property
  def parameters(self) -> int:
    """How many numbers the model learns, frozen ones included."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.variables['params']))

  @property
  def trained_parameters(self) -> int:
    """How many of them training adjusted."""
    return sum(leaf.size for leaf in self.programs.freezing.trained(self.variables['params']))

  @property
  def results(self) -> dict[str, Any]:
    """The contents of results.json; raises WorkdirError when the run is not finished."""
    return files.read_json(self.workdir / 'results.json', readback.RESULTS, sealed=True)

  @property
  def history(self) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return workdir.History(self.workdir / 'metrics.jsonl').read()

  def predict(self, images: Any) -> np.ndarray:
    """Class probabilities of images.

    Args:
      images: [N, H, W], or [N, H, W, C]; uint8 in 0..255 or floating point in [0, 1].

    Returns:
      float32 [N, K]; rows sum to 1.

    Raises:
      DataError: for another shape, type or range.
    """
    pixels = check_images(images, self.image_shape)
    if not len(pixels):
      return np.zeros((0, len(self.class_names)), np.float32)
    mesh = self.programs.mesh
    size = sharding.padded(min(self.config.evaluate.batch_size, len(pixels)), mesh.size)
    parts = []
    for start in range(0, len(pixels), size):
      batch = pixels[start:start + size]
      batch = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
      parts.append(self.programs.call(self.programs.predict, self.variables,
                                      sharding.put(batch, sharding.by_example(mesh))))
    return np.concatenate(jax.device_get(parts))[:len(pixels)]


def check_images(images: Any, image_shape: tuple[int, ...]) -> np.ndarray:
  """Images as [N, H, W, C], uint8 or float32 in [0, 1]; raises DataError as `predict` does."""
  try:
    array = np.asarray(images)
  except (ValueError, TypeError, OverflowError, RecursionError) as error:
    raise DataError(f'The images are not an array ({error}); stack images of one size.') from error
  height, width, channels = image_shape
  shape = array.shape
  if array.ndim == 3 and channels == 1:
    array = array[..., None]
  if array.ndim != 4 or array.shape[1:] != (height, width, channels):
    plain = f'[N, {height}, {width}] or ' if channels == 1 else ''
    raise DataError(f'The images have shape {list(shape)}; this model takes {plain}'
                    f'[N, {height}, {width}, {channels}].')
  if array.dtype == np.uint8:
    return array
  if not np.issubdtype(array.dtype, np.floating):
    raise DataError(f'The images are {array.dtype}; give uint8 in 0..255 or floating point in '
                    '[0, 1].')
  # Before they become float32, where large numbers would be infinite. NaN is in no range.
  if array.size and not (array.min() >= 0 and array.max() <= 1):
    raise DataError('The images hold values that are not finite or outside [0, 1]; scale floating '
                    'point images to [0, 1].')
  return array.astype(np.float32)


def _again(checkpoints: Checkpoints, read: Callable[[], T]) -> T:
  """What is read beside a trainer at work, which removes its older checkpoints meanwhile."""
  for _ in range(20):
    before = checkpoints.steps()
    try:
      return read()
    except CheckpointError:
      if checkpoints.steps() == before:
        raise
  raise CheckpointError(f'The checkpoints in {checkpoints.directory} change faster than they can '
                        'be read; wait for the run, or name another step.')


def _latest(checkpoints: Checkpoints) -> tuple[int, dict[str, Any]]:
  """Step and progress of the newest checkpoint."""
  def read() -> tuple[int, dict[str, Any]]:
    steps = checkpoints.steps()
    latest = checkpoints.latest_good()
    if steps and latest != steps[-1] and checkpoints.steps() != steps:
      raise CheckpointError('It was removed while it was read.')
    if latest is None:
      raise CheckpointError(f'{checkpoints.directory.parent} has no checkpoint yet; train it '
                            'first.')
    return latest, checkpoints.progress(latest)
  return _again(checkpoints, read)


def choose(checkpoints: Checkpoints, which: str, latest: int, progress: dict[str, Any]) -> int:
  """The step of the checkpoint called 'best', 'latest' or by its step.

  Raises:
    CheckpointError: when there is none, listing those that there are.
  """
  if which == 'latest':
    return latest
  if which == 'best':
    wanted = progress['best_step']
  elif which.isdecimal() and len(which) < 20:
    wanted = int(which)
  else:
    raise CheckpointError(f'The checkpoint is {which!r}; it must be best, latest or a step.')
  if wanted not in checkpoints.steps():
    kept = ', '.join(map(str, checkpoints.steps()))
    raise CheckpointError(f'There is no checkpoint of step {wanted}; there are those of {kept}.')
  return wanted


def load_run(directory: str | pathlib.Path, checkpoint: str = 'best',
             changes: Mapping[str, Any] | None = None) -> TrainedModel:
  """Loads a trained model.

  Args:
    directory: the run's work directory.
    checkpoint: 'best', 'latest' or a step.
    changes: settings to work with in place of the run's own, by dotted name, such as
      'evaluate.tta'.

  Raises:
    UserError: when there is no such run or checkpoint, or it is damaged.
  """
  directory = pathlib.Path(directory)
  config = config_lib.replace(workdir.read_config(directory), changes or {})
  return TrainedModel(directory, config_lib.validate(config), checkpoint)
