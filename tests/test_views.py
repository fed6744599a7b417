"""Test-time augmentation: the views of an image, and the mean over them, everywhere it shows."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax import evaluate, evaluation, predict, report, train, views
from fmnist_jax.config import MLP, Config, Data, Evaluate, Train
from fmnist_jax.data import Dataset
from fmnist_jax.errors import ConfigError
from fmnist_jax.trained_model import load_run


def slow_views(images, kinds):
  """Every view of images [B, H, W, C], with zeros where nothing moved in."""
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = images.shape[1:3]
  moved = [padded[:, 1 - down:1 - down + height, 1 - right:1 - right + width]
           for down, right in ([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)] if 'shift' in kinds
                               else [(0, 0)])]
  return moved + [one[:, :, ::-1] for one in moved] * ('flip' in kinds)


@pytest.mark.parametrize(('kinds', 'count'), [
    (('flip',), 2), (('shift',), 5), (('shift', 'flip'), 10)])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_the_mean_is_over_every_view_of_each_image(kinds, count, dtype):
  images = np.random.default_rng(0).integers(1, 256, (3, 5, 4, 2)).astype(dtype)
  weights = np.random.default_rng(1).normal(size=(images[0].size, 6)).astype(np.float32)
  say = lambda images: jax.nn.softmax(
      jnp.asarray(images, jnp.float32).reshape(3, -1) / 256 @ weights)
  expected = [say(view) for view in slow_views(images, kinds)]
  assert len(expected) == count == len(views.views(kinds))
  found = jax.jit(lambda images: views.mean_over(kinds, say, images))(images)
  np.testing.assert_allclose(found, np.mean(expected, 0), atol=1e-6)
  assert f'{count} views' in views.told(kinds)


def config(tta, **more):
  return Config(data=Data(name='synthetic', train_examples=300, test_examples=60,
                          validation_examples=100, batch_size=20),
                model=MLP(hidden=(8,)), train=Train(epochs=1, devices=1),
                evaluate=Evaluate(tta=tta, split='validation', batch_size=32), **more)


@pytest.fixture(scope='module', name='workdirs')
def _workdirs(tmp_path_factory):
  """The same run, measured by one look and by ten."""
  found = {}
  for name, tta in (('plain', ()), ('tta', ('flip', 'shift'))):
    found[name] = tmp_path_factory.mktemp('views') / name
    train.train_and_evaluate(config(tta), found[name])
  return found


def test_results_are_the_mean_over_views_and_say_so(workdirs):
  plain, tta = (json.loads((path / 'results.json').read_text()) for path in workdirs.values())
  assert tta['tta'] == ['flip', 'shift'] and 'tta' not in plain
  # Training, and what it measures of itself, do not look twice.
  histories = [[{name: value for name, value in json.loads(line).items() if 'loss' in name}
                for line in (path / 'metrics.jsonl').read_text().splitlines()]
               for path in workdirs.values()]
  assert histories[0] == histories[1]
  run = load_run(workdirs['plain'])
  dataset = evaluation.dataset_of(run, '')
  images, _ = dataset.validation.arrays()
  expected = np.mean([run.predict(view) for view in slow_views(images, ('flip', 'shift'))], 0)
  with np.load(workdirs['tta'] / 'predictions.npz') as saved:
    np.testing.assert_allclose(saved['probabilities'], expected, atol=1e-6)
  np.testing.assert_allclose(load_run(workdirs['tta']).predict(images[:3]), expected[:3], atol=1e-6)
  # Wherever the numbers are shown.
  told = 'mean over 10 views (flip, shift)'
  assert told in report.classification_table(tta)
  assert told not in report.classification_table(plain)
  assert told in (workdirs['tta'] / 'report' / 'report.html').read_text()
  assert told not in (workdirs['plain'] / 'report' / 'report.html').read_text()


def test_a_finished_run_is_measured_with_other_views(workdirs, capsys):
  evaluate.main(None, ['--workdir', str(workdirs['plain']), '--split=validation',
                       '--tta=flip,shift'])
  assert 'mean over 10 views (flip, shift)' in capsys.readouterr().out
  path = workdirs['plain'] / 'results-validation-best-tta-flip-shift.json'
  found = json.loads(path.read_text())
  expected = json.loads((workdirs['tta'] / 'results.json').read_text())
  assert found['tta'] == ['flip', 'shift'] and found['loss'] == expected['loss']
  evaluate.main(None, ['--workdir', str(workdirs['tta']), '--split=validation', '--tta='])
  found = json.loads((workdirs['tta'] / 'results-validation-best-plain.json').read_text())
  expected = json.loads((workdirs['plain'] / 'results.json').read_text())
  assert 'tta' not in found and found['loss'] == expected['loss']
  evaluate.main(None, ['--workdir', str(workdirs['tta']), '--split=validation'])
  found = json.loads((workdirs['tta'] / 'results-validation-best.json').read_text())
  assert found['tta'] == ['flip', 'shift']


def test_predict_says_on_the_side_that_it_looks_more_than_once(workdirs, tmp_path, capsys):
  np.savez(tmp_path / 'some.npz', images=np.zeros((2, 28, 28), np.uint8))
  for name, times in (('tta', 1), ('plain', 0)):
    predict.main(None, ['--workdir', str(workdirs[name]), str(tmp_path / 'some.npz'),
                        '--format=csv'])
    out, err = capsys.readouterr()
    assert err.count('mean over 10 views (flip, shift)') == times and 'views' not in out


def test_what_must_not_be_mirrored_is_not(tmp_path):
  random = np.random.default_rng(0)
  digits = Dataset.of_arrays('digits', random.integers(0, 256, (300, 8, 8), np.uint8),
                             np.arange(300) % 3)
  digits = dataclasses.replace(digits, mirrored_alike=False)
  results = train.train_and_evaluate(config(('flip', 'shift')), tmp_path / 'digits', dataset=digits)
  assert results['tta'] == ['shift']


@pytest.mark.parametrize(('tta', 'says'), [
    (('flop',), r"evaluate.tta\[0\] is 'flop'; it must be one of flip, shift"),
    ('flip', r'must be a tuple')])
def test_other_views_are_refused(tta, says, workdirs):
  with pytest.raises(ConfigError, match=says):
    config_lib.validate(config(tta))
  if isinstance(tta, tuple):
    with pytest.raises(ConfigError, match=says):
      evaluation.evaluate_run(workdirs['plain'], 'validation', tta=tta)
