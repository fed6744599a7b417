"""The same models on MNIST and on Fashion-MNIST; see README.md."""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import record

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, data, metrics
from fmnist_jax.errors import ConfigError
from fmnist_jax.population import summary
from fmnist_jax.storage import files, workdir

MODELS, SETS = ('mlp', 'cnn'), ('mnist', 'fashion_mnist')
TITLES = {'mnist': 'MNIST', 'fashion_mnist': 'Fashion-MNIST'}


def nearest_mean(dataset: data.Dataset) -> dict[str, object]:
  """How separable a data set is without any learning: each image goes to the closest class mean.

  Returns:
    accuracy, recall of each class, and the class means, float64 [K, H, W].
  """
  images, labels = dataset.train.arrays()
  flat = images.reshape(len(images), -1).astype(np.float64) / 255
  means = np.stack([flat[labels == k].mean(0) for k in range(dataset.num_classes)])
  test, truth = dataset.test.arrays()
  test = test.reshape(len(test), -1).astype(np.float64) / 255
  # |x - m|^2 without x^2, which is the same for every class.
  predicted = np.argmin((means**2).sum(1) - 2 * test @ means.T, axis=1)
  confusion = metrics.confusion_matrix(truth, predicted, dataset.num_classes)
  return {'accuracy': metrics.accuracy(confusion),
          'recall': metrics.class_scores(confusion).recall.tolist(),
          'means': means.reshape(-1, *dataset.image_shape[:2])}


def errors(directory: pathlib.Path) -> dict[str, object]:
  """Errors of each class and the most confused pairs, over all members of a population."""
  group, = files.read_json(directory / 'population.json')['groups']
  members = [summary.read(directory / 'members' / name) for name in group['members']]
  names = [entry['name'] for entry in members[0].results['per_class']]
  confusion = np.sum([member.results['confusion_matrix'] for member in members], axis=0)
  pairs = metrics.most_confused(confusion, names, 3)
  wrong = int(confusion.sum() - np.trace(confusion))
  return {'accuracy': group['accuracy'], 'loss': group['loss'],
          'train_validation_gap': group['train_validation_gap'], 'class_names': names,
          'error_of_class': [summary.statistics([1 - member.results['per_class'][k]['recall']
                                                 for member in members])
                             for k in range(len(names))],
          'pairs': [pair._asdict() | {'share_of_errors': pair.examples / max(wrong, 1)}
                    for pair in pairs]}


def _label(model: str, found: dict) -> str:
  return f'{model.upper()}: {100 * (1 - found["accuracy"]["mean"]):.2f} % of all'


def _three(found: dict) -> str:
  return f'{100 * sum(pair["share_of_errors"] for pair in found["pairs"]):.0f}'


def picture(found: dict[str, dict[str, dict]], plain: dict[str, dict]) -> bytes:
  """For both sets: each class's mean image, and below it the errors of each model."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  with canvas.drawing():
    figure = Figure(figsize=(8.0, 6.8), dpi=150, facecolor=theme.surface, layout='constrained')
    FigureCanvasAgg(figure)
    halves = figure.subfigures(len(SETS), 1)
    highest = max(100 * stats['mean'] for models in found.values() for entry in models.values()
                  for stats in entry['error_of_class'])
    for half, name in zip(halves, SETS):
      half.suptitle(f'{TITLES[name]}: mean image of each class, and errors', fontsize=10,
                    color=theme.ink, x=0.01, ha='left')
      names = found[name]['mlp']['class_names']
      grid = half.add_gridspec(2, len(names), height_ratios=(1, 2.2))
      for k in range(len(names)):
        image = half.add_subplot(grid[0, k])
        image.imshow(plain[name]['means'][k], cmap='gray')
        image.set_axis_off()
      bars = half.add_subplot(grid[1, :])
      for offset, model, color in ((-0.2, 'mlp', theme.third), (0.2, 'cnn', theme.first)):
        stats = found[name][model]['error_of_class']
        drawn = bars.bar(
            np.arange(len(names)) + offset, [100 * entry['mean'] for entry in stats], width=0.38,
            color=color, label=_label(model, found[name][model]),
            yerr=[100 * (entry['half_width'] or 0) for entry in stats], ecolor=theme.ink,
            error_kw={'linewidth': 1, 'capsize': 2})
        bars.bar_label(drawn, fmt='%.1f', fontsize=7, color=theme.ink, padding=1)
      bars.set_xticks(range(len(names)), [canvas.short(text) for text in names], fontsize=8)
      bars.set_ylim(0, 1.12 * highest + 0.1)
      bars.set_xlim(-0.6, len(names) - 0.4)
      bars.set_ylabel('errors (%)', color=theme.ink)
      bars.grid(color=theme.grid, linewidth=0.8, axis='y')
      bars.set_axisbelow(True)
      bars.legend(frameon=False, fontsize=8, loc='upper left')
    return canvas.png(figure)


def body(experiment: record.Experiment) -> None:
  """Trains both models on both sets."""
  args = experiment.args
  if not args.mnist_dir:
    raise ConfigError('MNIST and Fashion-MNIST have files of the same names: give --mnist_dir, the '
                      'folder with the four of MNIST.')
  folders = {'mnist': args.mnist_dir, 'fashion_mnist': args.data_dir}
  found, plain = {}, {}
  for name in SETS:
    found[name] = {}
    for model in MODELS:
      config = config_lib.replace(config_file.load(model), {'data.name': name})
      label = model if name == 'fashion_mnist' else f'{model}_{name}'
      directory = experiment.population(label, config, folders[name])
      found[name][model] = errors(directory)
    plain[name] = nearest_mean(data.load(workdir.read_config(directory).data))
  one = files.read_json(directory / 'population.json')
  lessons = [_lesson(found)]
  results = {'models': found, 'nearest_mean': {
      name: {key: entry[key] for key in ('accuracy', 'recall')} for name, entry in plain.items()},
      'lessons': lessons, 'seconds': experiment.seconds, 'device': one['device'],
      'versions': one['versions']}
  rows = [['', *(TITLES[name] for name in SETS)]]
  rows.append(['nearest class mean, no learning: accuracy %',
               *(f'{100 * plain[name]["accuracy"]:.2f}' for name in SETS)])
  for model in MODELS:
    rows.append([f'`{model}`: accuracy %', *(summary.plus_minus(
        found[name][model]['accuracy'], 100, 2) for name in SETS)])
    rows.append([f'`{model}`: errors the three commonest confusions make %',
                 *(_three(found[name][model]) for name in SETS)])
  pairs = '\n'.join(
      f'- {TITLES[name]}, `cnn`: ' + '; '.join(
          f'{pair["true"]} taken for {pair["predicted"]}: {100 * pair["share"]:.1f} % of its images'
          for pair in found[name]['cnn']['pairs']) + '.' for name in SETS)
  words = '\n'.join(f'- {line}' for line in lessons)
  text = (f'{record.table(rows)}\n\n{record.means(experiment, one)} {record.took(experiment)}\n\n'
          f'{pairs}\n{words}\n\n![mean image and errors of each class](classes.png)')
  experiment.save(results, text, {'classes.png': picture(found, plain)})


def _lesson(found: dict[str, dict[str, dict]]) -> str:
  said = []
  for model in MODELS:
    easy, hard = (100 * (1 - found[name][model]['accuracy']['mean']) for name in SETS)
    said.append(f'`{model}` leaves {easy:.2f} % and {hard:.2f} %, {hard / easy:.1f} times as many')
  return ('"MNIST is nearly solved by the network that leaves 7 to 9 % errors on Fashion-MNIST": '
          f'{"; ".join(said)}.')


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--mnist_dir', default='', help='folder with the four MNIST files')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5, extra=extra)
