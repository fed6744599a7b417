"""Comparing populations: numbers by hand, and what they mean in words."""

import json

import numpy as np
import pytest
import scipy.stats

from fmnist_jax import compare, metrics
from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.population import comparison
from fmnist_jax.storage import files, workdir

CLASSES = [f'class {k}' for k in range(10)]


def write_run(path, labels, right, seed, gap=0.02, sha='a', split='test'):
  """A finished run that classifies the images correctly for which `right` holds."""
  path.mkdir(parents=True)
  predicted = np.where(right, labels, (labels + 1) % 10)
  probabilities = np.full((len(labels), 10), 0.02, np.float32)
  probabilities[np.arange(len(labels)), predicted] = 0.82
  np.savez(path / 'predictions.npz', probabilities=probabilities, labels=labels)
  found = {'dataset': 'synthetic', 'synthetic': True, 'split': split,
           **metrics.summarize(probabilities, labels, CLASSES), 'parameters': 1000 + len(path.name),
           'best_epoch': 2, 'best_validation_accuracy': 0.9, 'epochs': 3, 'seed': seed,
           'seconds': {'data': 1.0, 'compile': 2.0, 'train': 6.0, 'evaluate': 1.0},
           'data_sha256': {'file': sha}, 'versions': {}, 'device': '1 x cpu'}
  files.write_json(path / 'results.json', found, sealed=True)
  records = [{'step': 10 * k, 'epoch': k, 'clean_train_loss': 0.3, 'validation_loss': 0.3,
              'clean_train_accuracy': 0.9 + gap * (k == 2), 'validation_accuracy': 0.9}
             for k in (1, 2, 3)]
  (path / 'metrics.jsonl').unlink(missing_ok=True)
  for record in records:
    workdir.History(path / 'metrics.jsonl').append(record)
  return found


def write_population(path, labels, rights, first_seed=0, **how):
  names = [f'seed-{first_seed + k}' for k in range(len(rights))]
  for k, (name, right) in enumerate(zip(names, rights)):
    write_run(path / 'members' / name, labels, right, first_seed + k, **how)
  group = {'settings': {}, 'members': names}
  (path / 'population.json').write_text(json.dumps({'groups': [group]}))
  return path


@pytest.fixture(name='labels')
def _labels():
  return np.random.default_rng(0).integers(0, 10, 400).astype(np.int32)


def rights(accuracies, size=400, seed=1):
  rng = np.random.default_rng(seed)
  return [rng.permutation(size) < accuracy * size for accuracy in accuracies]


def test_the_table_holds_means_with_intervals(tmp_path, labels):
  a = write_population(tmp_path / 'a', labels, rights([0.8, 0.82, 0.84]), gap=0.03)
  b = write_population(tmp_path / 'b', labels, rights([0.9, 0.92, 0.91]))
  found = comparison.compare([a, b], tmp_path / 'out')
  first = found['systems'][0]
  low, high = scipy.stats.t.interval(0.95, 2, loc=0.82, scale=scipy.stats.sem([0.8, 0.82, 0.84]))
  assert first['accuracy']['mean'] == pytest.approx(0.82)
  assert first['accuracy']['low'] == pytest.approx(low)
  assert first['accuracy']['high'] == pytest.approx(high)
  assert first['train_validation_gap']['mean'] == pytest.approx(0.03)
  assert first['seconds_a_run'] == pytest.approx(10) and first['seeds'] == [0, 1, 2]
  assert json.loads((tmp_path / 'out' / 'compare.json').read_text()) == found
  text = (tmp_path / 'out' / 'compare.md').read_text()
  assert f'82.00 +- {100 * (high - 0.82):.2f}' in text and 'SYNTHETIC' in text
  assert (tmp_path / 'out' / 'forest.png').read_bytes()[:4] == b'\x89PNG'


def test_differences_are_paired_over_seeds_and_over_images(tmp_path, labels):
  # The two always differ by exactly two images a seed: paired, there is no spread at all.
  weak = rights([0.8, 0.85, 0.9])
  strong = [right.copy() for right in weak]
  for right in strong:
    right[np.flatnonzero(~right)[:2]] = True
  a, b = (write_population(tmp_path / name, labels, lot)
          for name, lot in (('a', weak), ('b', strong)))
  entry, = comparison.compare([a, b], tmp_path / 'out')['differences']
  assert entry['over_seeds']['mean'] == pytest.approx(0.5)
  assert entry['over_seeds']['half_width'] == pytest.approx(0, abs=1e-9)
  per_image = 100 * (np.mean(strong, axis=0) - np.mean(weak, axis=0))
  expected = scipy.stats.sem(per_image) * scipy.stats.t.ppf(0.975, 399)
  assert entry['over_images']['mean'] == pytest.approx(0.5)
  assert entry['over_images']['half_width'] == pytest.approx(expected)
  assert entry['words'].startswith('b is better than a by 0.50 +- 0.00 points (3 seeds; over 400')


def interval(mean, half_width, values):
  return metrics.Interval(mean, None, half_width, values)


@pytest.mark.parametrize(('over_seeds', 'over_images', 'says'), [
    ((0.41, 0.12, 8), (0.41, 0.3, 10000),
     'b is better than a by 0.41 +- 0.12 points (8 seeds; over 10,000 images +- 0.30).'),
    ((-0.41, 0.12, 8), (-0.41, 0.3, 10000),
     'a is better than b by 0.41 +- 0.12 points (8 seeds; over 10,000 images +- 0.30).'),
    ((0.03, 0.12, 8), (0.03, 0.3, 10000),
     'No difference between a and b shown with 8 seeds (+0.03 +- 0.12 points).'),
    ((0.2, 0.12, 8), (0.2, 0.3, 10000),
     'b is better than a by 0.20 +- 0.12 points (8 seeds; over 10,000 images +- 0.30): so for '
     'these images, but others might not show it.'),
    ((0.9, None, 1), (0.9, 0.3, 10000),
     'b is better than a by 0.90 +- 0.30 points on other images; with one seed, what training '
     'again would change is not known.'),
    (None, (0.1, 0.3, 10000),
     'No difference between a and b shown with no seed in common on 10,000 images (+0.10 +- 0.30 '
     'points).'),
    (None, None, 'a and b were measured on different images: their difference has no paired '
     'interval.'),
])
def test_words(over_seeds, over_images, says):
  make = lambda values: None if values is None else interval(*values)
  assert comparison._words('a', 'b', make(over_seeds), make(over_images)) == says


def test_seeds_are_paired_by_number(tmp_path, labels):
  a = write_population(tmp_path / 'a', labels, rights([0.5, 0.8, 0.9]), first_seed=0)
  b = write_population(tmp_path / 'b', labels, rights([0.8, 0.9, 0.5]), first_seed=1)
  entry, = comparison.compare([a, b], tmp_path / 'out')['differences']
  assert entry['seeds'] == [1, 2]
  assert entry['over_seeds']['mean'] == pytest.approx(0)


@pytest.mark.parametrize('other', [{'sha': 'b'}, {'split': 'validation'}])
def test_other_images_are_not_paired(tmp_path, labels, other):
  a = write_population(tmp_path / 'a', labels, rights([0.8, 0.82]))
  b = write_population(tmp_path / 'b', labels, rights([0.9, 0.91]), **other)
  entry, = comparison.compare([a, b], tmp_path / 'out')['differences']
  assert entry['over_images'] is None and entry['over_seeds'] is None
  assert 'different images' in entry['words']


def test_single_runs_and_settings_are_systems_too(tmp_path, labels, capsys):
  write_run(tmp_path / 'one', labels, rights([0.8])[0], 0)
  population = write_population(tmp_path / 'two', labels, rights([0.9, 0.8]))
  groups = [{'settings': {'optim.learning_rate': rate}, 'members': [f'seed-{k}']}
            for k, rate in enumerate((0.1, 0.2))]
  (population / 'population.json').write_text(json.dumps({'groups': groups}))
  compare.main(None, [str(tmp_path / 'one'), str(population), f'--output={tmp_path / "out"}'])
  printed = capsys.readouterr().out
  for part in ('two optim.learning_rate=0.1', 'two optim.learning_rate=0.2', '80.00', 'one seed'):
    assert part in printed


def test_what_cannot_be_compared_says_why(tmp_path, labels):
  a = write_population(tmp_path / 'a', labels, rights([0.8]))
  with pytest.raises(ConfigError, match=r'two or more'):
    comparison.compare([a], tmp_path / 'out')
  with pytest.raises(WorkdirError, match=r'nothing is not a finished run'):
    comparison.compare([a, tmp_path / 'nothing'], tmp_path / 'out')
  (tmp_path / 'begun').mkdir()
  (tmp_path / 'begun' / 'plan.json').write_text('{}')
  with pytest.raises(WorkdirError, match=r'begun is a population that is not finished'):
    comparison.compare([a, tmp_path / 'begun'], tmp_path / 'out')
  (tmp_path / 'file').write_text('')
  with pytest.raises(WorkdirError, match=r'choose another --output'):
    comparison.compare([a, a], tmp_path / 'file')
