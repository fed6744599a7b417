"""Small runs that several test files share, and what two runs must have in common."""

import contextlib
import json
import pathlib

import jax
import numpy as np

from fmnist_jax.config import (
    CNN,
    SGD,
    Affine,
    AlternatingFlip,
    Config,
    CrossEntropy,
    Data,
    Flip,
    OneCycle,
    RandomErasing,
    Train,
)
from fmnist_jax.interrupt import Interrupted
from fmnist_jax.trained_model import load_run

TIMES = ('seconds', 'images_per_second', 'seal')


def full_config(**train):
  """A run with everything that has state: augmentation, dropout, BatchNorm, EMA, stopping."""
  return Config(
      data=Data(name='synthetic', train_examples=500, test_examples=90, validation_examples=100,
                batch_size=20,
                augment=(Flip(0.3), AlternatingFlip(), Affine(rotation=10, shift=2),
                         RandomErasing(0.2))),
      model=CNN(channels=(4, 8), pool=(2, 2), batch_norm=True, dropout=(0.1, 0.2), dense=(16,),
                dense_dropout=0.3),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=SGD(learning_rate=0.05, weight_decay=1e-3, clip_norm=1.0, schedule=OneCycle()),
      train=Train(**{'epochs': 4, 'steps_per_dispatch': 6, 'ema_decay': 0.9, 'devices': 1,
                     'early_stopping_patience': 2, **train}))


class InterruptAt:
  """Stands in for `Interrupt`: a signal arrives just before a certain poll."""

  def __init__(self, poll):
    self.left = poll

  @property
  def requested(self):
    return 15 if self.left <= 0 else None

  def check(self):
    self.left -= 1
    if self.left <= 0:
      raise Interrupted(15)

  @contextlib.contextmanager
  def deferred(self):
    yield


def without_times(record):
  return {name: value for name, value in record.items() if name not in TIMES}


def history(directory):
  lines = (pathlib.Path(directory) / 'metrics.jsonl').read_text().splitlines()
  return [without_times(json.loads(line)) for line in lines]


def results(directory):
  found = json.loads((pathlib.Path(directory) / 'results.json').read_text())
  return without_times(found)


def newest_checkpoint(directory):
  """Every array of the newest checkpoint, and where it stands."""
  run = load_run(directory, 'latest')
  progress = dict(run.progress)
  progress.pop('seconds')
  return run.state, progress


def assert_same_run(a, b):
  """Same bits: state, history, results, predictions."""
  (state_a, progress_a), (state_b, progress_b) = newest_checkpoint(a), newest_checkpoint(b)
  assert progress_a == progress_b
  jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
  assert history(a) == history(b)
  assert results(a) == results(b)
  with np.load(pathlib.Path(a) / 'predictions.npz') as x, \
      np.load(pathlib.Path(b) / 'predictions.npz') as y:
    for name in ('probabilities', 'labels'):
      np.testing.assert_array_equal(x[name], y[name])
