"""Every published architecture with many seeds; see README.md."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import config as config_lib
from fmnist_jax import config_file
from fmnist_jax.population import comparison
from fmnist_jax.storage import files

# Config; whose it is; what was reported (%); our floor and aim for the mean over seeds (%).
BASELINES = (
    ('mlp', 'B1 dense', '85', 89.0, 90.0),
    ('mlp_regularized', 'B1 dense with dropout and L2', '87', 89.5, 90.5),
    ('ann', 'B2 ANN', '-', 89.3, 90.5),
    ('cnn', 'B1 CNN', '90-92', 92.3, 93.0),
    ('cnn_basic', 'B2 basic CNN', '"best"', 92.0, 92.5),
    ('cnn_deep', 'B2 deeper CNN', '"no better"', 93.0, 94.0),
    ('cnn_without_dropout', 'B3 CNN without dropout', '-', None, None),
    ('cnn_dropout', 'B3 CNN with dropout', '93, loss 0.23', 93.2, 94.0),
    ('cnn_blocks', 'B4 CNN blocks', '91-93', 93.7, 94.5),
    ('cnn_augmented', 'B5 CNN augmented', '89.5', 93.5, 94.5),
)
LOSS_LIMIT = {'cnn_dropout': 0.20}


def load(name: str) -> config_lib.Config:
  """A config by name; B3's CNN without dropout is `cnn_dropout`, soon learned by heart."""
  if name != 'cnn_without_dropout':
    return config_file.load(name)
  return config_lib.replace(config_file.load('cnn_dropout'), {
      'model.dropout': (), 'model.dense_dropout': 0.0, 'train.epochs': 15})


def body(experiment: record.Experiment) -> None:
  """Trains all, compares them, writes the table."""
  directories = {name: experiment.population(name, load(name)) for name, *_ in BASELINES}
  found = comparison.compare(list(directories.values()),
                          experiment.runs / 'published_baselines-compare')
  rows = [['model', 'parameters', 'reported %', 'test accuracy %', 'lowest to highest', 'loss',
           'ensemble %', 'floor', 'aim']]
  results = {'systems': [], 'differences': found['differences']}
  for (name, whose, reported, floor, aim), system in zip(BASELINES, found['systems']):
    accuracy, loss = system['accuracy'], system['loss']
    mean, limit = 100 * accuracy['mean'], LOSS_LIMIT.get(name, float('inf'))
    met = None if floor is None else bool(mean >= floor and loss['mean'] < limit)
    reached = None if aim is None else bool(met and mean >= aim)
    results['systems'].append({**system, 'config': name, 'baseline': whose, 'reported': reported,
                               'floor': floor, 'aim': aim, 'floor_met': met, 'aim_met': reached})
    below = f', loss < {limit:.2f}' if name in LOSS_LIMIT else ''
    rows.append([f'{whose} (`{name}`)', f'{system["parameters"]:,}', reported,
                 comparison.summary.plus_minus(accuracy, 100, 2),
                 f'{100 * accuracy["min"]:.2f} to {100 * accuracy["max"]:.2f}',
                 comparison.summary.plus_minus(loss, 1, 4),
                 f'{100 * system["ensemble"]["accuracy"]:.2f}',
                 '-' if floor is None else f'{floor}{below} {"met" if met else "MISSED"}',
                 '-' if aim is None else f'{aim} {"met" if reached else "missed"}'])
  one = files.read_json(directories['mlp'] / 'population.json')
  results |= {'seconds': experiment.seconds, 'device': one['device'], 'versions': one['versions'],
              'synthetic': one['synthetic']}
  words = '\n'.join(f'- {entry["words"]}' for entry in found['differences'])
  text = (f'{record.table(rows)}\n\n{record.means(experiment, one)} Floors and aims '
          'are for the mean; ensemble is the mean of the probabilities of all seeds. '
          f'{record.took(experiment)}\n\nDifferences are paired over seeds and none is '
          f'corrected for their number:\n\n{words}\n\n'
          '![accuracy and differences with their intervals](forest.png)')
  picture = (experiment.runs / 'published_baselines-compare' / 'forest.png').read_bytes()
  experiment.save(results, text, {'forest.png': picture})


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5)
