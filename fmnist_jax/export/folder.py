"""A run -> a folder of files for other programs, each checked before any is seen.

`onnx`, `int8` and `serving` make them, `card` the text beside them; `runtime` is ONNX Runtime.
"""

from __future__ import annotations

import importlib.util
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fmnist_jax import config as config_lib
from fmnist_jax import data, evaluation, graph, machine, metrics, photograph, settings
from fmnist_jax.errors import ExportError
from fmnist_jax.programs import Programs
from fmnist_jax.storage import files, readback
from fmnist_jax.trained_model import TrainedModel, load_run

LIBRARIES = ('onnx', 'onnxruntime', 'safetensors')
CARD = 'MODEL_CARD.md'
NAMES = ('model.onnx', 'model_int8.onnx', 'model.safetensors', 'model.stablehlo', CARD)
DIFFERENCE = 1e-5  # of a probability, at most
LOSS = 0.01  # of accuracy in 8 bits, at most
CALIBRATION_IMAGES = 500


def export_run(directory: str | pathlib.Path, output: str | pathlib.Path,
               checkpoint: str = 'best', data_dir: str = '') -> dict[str, Any]:
  """Writes a run's model as ONNX, in float32 and in 8 bits, safetensors, StableHLO, and a card.

  The folder appears whole, after ONNX Runtime and jax gave, by these files, the probabilities of
  all test images that the model gives in float32 with XLA's own operations, within 1e-5; in 8 bits,
  at most one image in a hundred fewer right. The same run gives the same bytes on one machine.
  What cannot be had of a model of one's own is left out, and the card says why.

  Args:
    directory: the run's work directory.
    output: the folder to write; one that an export wrote is replaced.
    checkpoint: 'best', 'latest' or a step.
    data_dir: where the data set is, if not where the run found it.

  Returns:
    `files`: for each name its `bytes` and, of those that were run, `accuracy` and `difference` (the
    largest, of a probability), and by ONNX Runtime `images_per_second`; else None. `missing`: for
    each name that was left out, why.

  Raises:
    UserError: when the run, the checkpoint or the data set is missing, damaged or another one, a
      library is missing, a file computes something else, or the folder holds something else.
  """
  absent = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
  if absent:
    raise ExportError(f'Exporting needs {", ".join(absent)}; install it with pip install '
                      "'fmnist_jax[export]', or from a checkout with pip install -e '.[export]'.")
  output = pathlib.Path(output)
  check_replaceable(output)
  run = load_run(directory, checkpoint)
  dataset = evaluation.dataset_of(run, data_dir)
  export = _Export(run, dataset)
  export.make()
  check_replaceable(output)
  files.replace_folder(output, export.contents)
  return {'files': export.measured, 'missing': export.missing}


class _Export:
  """The files of one model, as they are made.

  Attributes:
    contents: what each file holds, by name.
    measured: see `export_run`.
    missing: likewise.
  """

  def __init__(self, run: TrainedModel, dataset: data.Dataset):
    self._run, self._dataset = run, dataset
    self._images, self._labels = dataset.test.arrays()
    self._expected = _native(run, dataset)
    if not np.isfinite(self._expected).all():
      raise ExportError(f'The model of {run.workdir} gives probabilities that are not finite; '
                        'train it again with a lower optim.learning_rate or with optim.clip_norm.')
    self._results = metrics.summarize(self._expected, self._labels, run.class_names)
    self._facts = _facts(run, self._results)
    self.contents: dict[str, bytes] = {}
    self.measured: dict[str, dict[str, Any]] = {}
    self.missing: dict[str, str] = {}

  def make(self) -> None:
    """All of them."""
    from fmnist_jax.export import card, onnx, runtime, serving
    run = self._run
    try:
      network = graph.trace(run.config.model, run.variables, run.image_shape, run.class_names)
      model = onnx.build(network, {name: fact if isinstance(fact, str) else json.dumps(fact)
                                   for name, fact in self._facts.items()})
      session = runtime.Session(model)
    except ExportError as error:
      self.missing |= {'model.onnx': str(error), 'model_int8.onnx': 'It is made of model.onnx.'}
    else:
      self._add_onnx(model, session)
    self._add('model.safetensors', serving.weights(run.variables, self._facts))
    try:
      program = serving.program(run.config.model, run.variables, run.image_shape,
                                len(run.class_names))
    except ExportError as error:
      self.missing['model.stablehlo'] = str(error)
    else:
      self._add('model.stablehlo', program, self._checked('model.stablehlo', serving.call(
          program, self._images, run.config.evaluate.batch_size)))
    self._add(CARD, card.render(
        self._facts, self._results, self.measured, self.missing,
        calibrated=len(self._calibration())).encode('utf-8', 'backslashreplace'))

  def _add_onnx(self, model: bytes, session: Any) -> None:
    from fmnist_jax.export import int8, runtime
    found = self._checked('model.onnx', session.probabilities(self._images))
    self._add('model.onnx', model, found, session.images_per_second(self._images))
    small = int8.quantized(model, self._calibration())
    session = runtime.Session(small)
    found = session.probabilities(self._images)
    lost = self._right(self._expected) - self._right(found)
    if lost > math.ceil(LOSS * len(found)):
      self.missing['model_int8.onnx'] = (
          f'In 8 bits {lost:,} of {len(found):,} test images fewer are right, more than one in a '
          'hundred.')
    else:
      self._add('model_int8.onnx', small, found, session.images_per_second(self._images))

  def _calibration(self) -> np.ndarray:
    """Training images of all classes, without augmentation."""
    chosen = self._dataset.clean_train
    assert chosen is not None  # It was dealt out.
    return chosen.first(CALIBRATION_IMAGES).arrays()[0]

  def _checked(self, name: str, found: np.ndarray) -> np.ndarray:
    """Probabilities that are the model's, or an error."""
    difference = np.abs(found - self._expected).max()
    if not difference <= DIFFERENCE:
      raise ExportError(f'{name} gives probabilities that differ from the model\'s by up to '
                        f'{difference:.1e}, more than {DIFFERENCE:.0e}; nothing was written.')
    return found

  def _right(self, probabilities: np.ndarray) -> int:
    return int((probabilities.argmax(-1) == self._labels).sum())

  def _add(self, name: str, content: bytes, found: np.ndarray | None = None,
           speed: float | None = None) -> None:
    self.contents[name] = content
    self.measured[name] = {
        'bytes': len(content),
        'accuracy': None if found is None else self._right(found) / len(found),
        'difference': None if found is None else float(np.abs(found - self._expected).max()),
        'images_per_second': speed}


def _native(run: TrainedModel, dataset: data.Dataset) -> np.ndarray:
  """Probabilities of the test images in float32 with XLA's own operations, [N, K]."""
  config = config_lib.replace(run.config, {
      'train.precision': 'float32', 'train.operations': 'native', 'evaluate.tta': ()})
  programs = Programs(config, run.programs.mesh, run.image_shape, len(run.class_names),
                      run.programs.train_examples)
  batches = evaluation.Batches(dataset.test, run.config.evaluate.batch_size, programs.mesh,
                               resident=False)
  with jax.default_matmul_precision('float32'):  # Accelerators would round more.
    return evaluation.predict(programs, run.variables, batches, lambda: None)


def _facts(run: TrainedModel, results: Mapping[str, Any]) -> dict[str, Any]:
  """What every file says of the model, JSON values."""
  described, saved = run.progress['data'], config_lib.to_json(run.config)
  height, width, channels = run.image_shape
  # The specification is what stands below the first line.
  usual = channels in (1, 3) and run.config.data.preparation() is photograph.to_input
  prepared = (photograph.__doc__ or '').partition('\n\n')[2].strip() if usual else ''
  return {
      'model': settings.kind_name(type(run.config.model)), 'settings': saved['model'],
      'images': f'uint8 [N, {height}, {width}, {channels}], 0 to 255',
      'probabilities': f'float32 [N, {len(run.class_names)}], in the order of the class names',
      'preparation': prepared, 'class_names': list(run.class_names),
      'test_accuracy': results['accuracy'], 'test_examples': results['examples'],
      'dataset': described['name'], 'synthetic': described['synthetic'],
      'data_sha256': described['sha256'], 'parameters': run.parameters, 'step': run.step,
      'seed': run.config.train.seed, 'tta': list(run.config.evaluate.tta),
      'fmnist_jax': machine.versions()['fmnist_jax']}


def check_replaceable(folder: pathlib.Path) -> None:
  """Raises ExportError unless a folder is absent, empty or what an export wrote."""
  from fmnist_jax.export.card import MARK
  try:
    found = sorted(entry.name for entry in folder.iterdir())
  except FileNotFoundError:
    found = []
  except OSError as error:
    raise ExportError(f'{folder} cannot be written as a folder ({files.reason(error)}); choose '
                      'another --output.') from error
  foreign = [name for name in found if name not in NAMES]
  if found and not foreign:
    try:
      foreign = [] if MARK in readback.content(folder / CARD).decode(errors='replace') else [CARD]
    except OSError:
      foreign = found
  if foreign or folder.is_symlink():
    what = f'holds {foreign[0]!r}' if foreign else 'is a symbolic link'
    raise ExportError(f'{folder} {what}, which no export wrote; choose another --output.')
