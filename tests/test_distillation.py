"""Training by what an ensemble says: targets, what is recorded, what is refused."""

import dataclasses
import shutil

import numpy as np
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax import evaluation, sharding, train
from fmnist_jax.config import (
    MLP,
    SGD,
    AlternatingFlip,
    Config,
    Constant,
    CrossEntropy,
    Data,
    Distillation,
    Evaluate,
    Train,
)
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import CheckpointError, ConfigError, DataError
from fmnist_jax.trained_model import load_run


def test_targets_are_the_mean_of_what_teachers_say_and_a_share_of_the_label():
  said = {'a': np.float32([[0.2, 0.8], [0.5, 0.5]]), 'b': np.float32([[0.4, 0.6], [1.0, 0.0]])}
  labels = np.array([0, 0], np.int32)
  loss = Distillation(teachers=('a', 'b'))
  np.testing.assert_allclose(loss.targets(labels, said.get), [[0.3, 0.7], [0.75, 0.25]], rtol=1e-6)
  found = dataclasses.replace(loss, label_share=0.5).targets(labels, said.get)
  np.testing.assert_allclose(found, [[0.65, 0.35], [0.875, 0.125]], rtol=1e-6)
  assert found.dtype == np.float32
  assert CrossEntropy().targets(labels, said.get) is None


def config(loss=None, epochs=1, **data):
  return Config(
      data=Data(**{'name': 'synthetic', 'train_examples': 240, 'test_examples': 50,
                   'validation_examples': 100, 'batch_size': 140, **data}),
      model=MLP(hidden=()), loss=loss or CrossEntropy(),
      optim=SGD(learning_rate=0.3, momentum=0.0, schedule=Constant()),
      train=Train(epochs=epochs, devices=1, precision='float32', operations='native'),
      evaluate=Evaluate(split='validation'))


@pytest.fixture(scope='module', name='teachers')
def _teachers(tmp_path_factory):
  """Two models, trained on the same 140 images."""
  found = [tmp_path_factory.mktemp('teachers') / name for name in 'ab']
  for seed, path in enumerate(found):
    train.train_and_evaluate(config_lib.replace(config(epochs=3), {'train.seed': seed}), path)
  return tuple(map(str, found))


def test_a_step_goes_towards_what_the_teachers_say(teachers, tmp_path):
  """The whole training set is one batch: the step can be computed from the outside."""
  results = train.train_and_evaluate(config(Distillation(teachers=teachers)), tmp_path / 'student')
  runs = [load_run(path) for path in teachers]
  dataset = evaluation.dataset_of(runs[0], '')
  images, labels = dataset.train.arrays()
  assert len(labels) == 140
  taught = np.mean([run.predict(images) for run in runs], axis=0, dtype=np.float64)
  module = load_run(tmp_path / 'student').programs
  before = module.init(np.int32(0), {}).params['Dense_0']
  x = images.reshape(140, -1) / 255.0
  kernel, bias = (np.asarray(before[name], np.float64) for name in ('kernel', 'bias'))
  p = np.exp(x @ kernel + bias)
  p /= p.sum(1, keepdims=True)
  after = load_run(tmp_path / 'student').variables['params']['Dense_0']
  np.testing.assert_allclose(after['kernel'], kernel - 0.3 * x.T @ (p - taught) / 140, atol=1e-5)
  # Who taught it is recorded, and validation still goes by labels.
  assert list(results['teachers']) == list(teachers)
  assert {len(digest) for digest in results['teachers'].values()} == {64}
  assert results['accuracy'] == np.mean(
      load_run(tmp_path / 'student').predict(dataset.validation.arrays()[0]).argmax(1)
      == dataset.validation.labels)


def test_streamed_examples_are_told_the_same(teachers):
  own = config_lib.replace(config(Distillation(teachers=teachers), batch_size=35), {
      'data.augment': (AlternatingFlip(),)})
  dataset = evaluation.dataset_of(load_run(teachers[0]), '')
  kernels = []
  for residency in ('resident', 'streamed'):
    equipment = Equipment(config_lib.replace(own, {'data.residency': residency}), dataset,
                          sharding.make_mesh(35, 1))
    first = equipment.programs.init(np.int32(0), {})
    *_, (_, state, _) = equipment.train(first, equipment.programs.zero(), {}, 0)
    kernels.append(np.asarray(state.params['Dense_0']['kernel']))
  np.testing.assert_array_equal(*kernels)


def test_another_teacher_meanwhile_is_told(teachers, tmp_path):
  path = tmp_path / 'teacher'
  shutil.copytree(teachers[0], path)
  own = config(Distillation(teachers=(str(path),)), epochs=2)
  train.train_and_evaluate(own, tmp_path / 'student')
  (tmp_path / 'student' / 'results.json').unlink()
  train.train_and_evaluate(own, tmp_path / 'student')
  shutil.rmtree(path)
  shutil.copytree(teachers[1], path)
  (tmp_path / 'student' / 'results.json').unlink()
  with pytest.raises(CheckpointError, match=r'taught by other models than are now in .*teacher'):
    train.train_and_evaluate(own, tmp_path / 'student')


@pytest.mark.parametrize('change', [{'validation_examples': 90}, {'train_examples': 230}])
def test_a_teacher_that_saw_other_images_is_refused(teachers, tmp_path, change):
  with pytest.raises(DataError, match='was trained on other images'):
    train.train_and_evaluate(config(Distillation(teachers=teachers), **change, batch_size=20),
                             tmp_path / 'student')


def test_there_must_be_a_teacher():
  with pytest.raises(ConfigError, match=r'loss\.teachers is empty'):
    config_lib.validate(config(Distillation()))
