"""What every measurement does, whichever library it measures: one process, one JSON line.

A worker wraps its library in an object (see `Subject`) and calls `run`. It gets everything it has
to know as JSON in its first argument. Imports nothing but numpy, so that it works in any of the
environments.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

MARK = 'RESULT '
# Adam's settings, for every library: Keras's defaults.
LEARNING_RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-7
ACCURACY_BATCH = 500

Spec = dict[str, Any]
Predictor = Callable[[np.ndarray], Callable[[], np.ndarray]]


class Subject(Protocol):
  """A library with a model, an optimiser and the training set in memory."""

  versions: dict[str, str]

  def train(self, examples: int) -> None:
    """One pass over the first `examples` training examples, shuffled anew, to its very end."""

  def predictor(self, batch: int, *, timed: bool) -> Predictor:
    """What places uint8 images [N, 28, 28, 1] and returns a function that gives their scores.

    Args:
      batch: examples a call; N is a multiple of it.
      timed: whether speed matters, or only the answers, which are float32 [N, 10].
    """


def peak_mb() -> float:
  """The largest resident memory of this process so far, MB.

  Linux's VmHWM, because getrusage's maximum is inherited from the parent across fork and exec.
  """
  status = pathlib.Path('/proc/self/status')
  if status.is_file():
    line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) / 1024
  import resource
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Bytes on macOS.


def _accuracy(subject: Subject, images: np.ndarray, labels: np.ndarray) -> float:
  batch = ACCURACY_BATCH if len(images) % ACCURACY_BATCH == 0 else len(images)
  scores = subject.predictor(batch, timed=False)(images)()
  return float((scores.argmax(-1) == labels).mean())


def _speed(spec: Spec, data: Any, subject: Subject, began: float) -> dict[str, Any]:
  """Seconds of epochs after a warm-up that compiles; then images a second of inference."""
  subject.train(spec['warmup_steps'] * spec['batch'])
  found: dict[str, Any] = {'first_seconds': time.perf_counter() - began}
  epochs: list[float] = []
  while not epochs or (sum(epochs) < spec['seconds'] and len(epochs) < 5):
    start = time.perf_counter()
    subject.train(spec['examples'])
    epochs.append(time.perf_counter() - start)
    if len(epochs) == 1:  # The same for all: after the warm-up and one epoch.
      found['peak_mb'] = peak_mb()
      found['accuracy'] = _accuracy(subject, data['validation_images'], data['validation_labels'])
  found['epoch_seconds'] = epochs
  found['images_per_second'] = {}
  for batch in spec['inference_batches']:
    images = data['test_images'][:len(data['test_images']) // batch * batch]
    predict = subject.predictor(batch, timed=True)(images)
    predict()
    passes: list[float] = []
    while len(passes) < 3 or (sum(passes) < 1 and len(passes) < 20):
      start = time.perf_counter()
      predict()
      passes.append(time.perf_counter() - start)
    found['images_per_second'][str(batch)] = len(images) / statistics.median(passes)
  return found


def _time_to(spec: Spec, data: Any, subject: Subject, began: float) -> dict[str, Any]:
  """Seconds from the start of the process, by the parent's clock, to each validation accuracy."""
  del began
  curve: list[tuple[float, float]] = []
  while len(curve) < spec['max_epochs'] and (not curve or curve[-1][1] < spec['until']):
    subject.train(spec['examples'])
    accuracy = _accuracy(subject, data['validation_images'], data['validation_labels'])
    curve.append((time.time() - spec['started'], accuracy))
  return {'curve': curve, 'peak_mb': peak_mb()}


def _parity(spec: Spec, data: Any, subject: Subject, began: float) -> dict[str, Any]:
  """Accuracies after a number of epochs."""
  for _ in range(spec['epochs']):
    subject.train(spec['examples'])
  return {'seconds': time.perf_counter() - began, **{
      split: _accuracy(subject, data[f'{split}_images'], data[f'{split}_labels'])
      for split in ('validation', 'test')}}


def run(make: Callable[[Spec, np.ndarray, np.ndarray], Subject]) -> None:
  """Measures what the command line asks for and prints it.

  Args:
    make: the specification, training images uint8 [N, 28, 28, 1] and labels int32 [N] -> subject.
  """
  spec = json.loads(sys.argv[1])
  with np.load(spec['data']) as file:
    data = dict(file)
  began = time.perf_counter()
  subject = make(spec, data['train_images'], data['train_labels'])
  task = {'speed': _speed, 'time_to': _time_to, 'parity': _parity}[spec['task']]
  found = task(spec, data, subject, began)
  print(MARK + json.dumps({**found, 'versions': subject.versions}), flush=True)


def unit(images: np.ndarray) -> np.ndarray:
  """uint8 images as float32 in [0, 1]; the peers get them so, once, outside all timings."""
  return images.astype(np.float32) / np.float32(255)
