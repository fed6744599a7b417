"""Fine-tuning beside training from scratch, on few images and on many; see README.md."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import record

from fmnist_jax import config as config_lib
from fmnist_jax import metrics
from fmnist_jax.config import CNN, MLP, AdamW, Config, Data, DataSource, OneCycle, Train, setting
from fmnist_jax.data import Dataset
from fmnist_jax.errors import ConfigError
from fmnist_jax.population import summary

MODELS = {'mlp': MLP(hidden=(128,)), 'cnn': CNN(channels=(16, 32), pool=(2, 2), dense=(64,))}
SETS = {'digits': ('mnist', ()), 'garments': ('fashion_mnist', (0, 2, 3, 4, 6)),
        'things': ('fashion_mnist', (1, 5, 7, 8, 9))}
TITLES = {'garments': 'upper garments', 'things': 'shoes, bags, trousers'}
# What a target starts from: by that what is shown.
STARTS = {'scratch': 'from scratch', 'digits': 'from digits',
          'classes': 'from the other five classes'}
SOURCES = {'garments': {'digits': 'digits', 'classes': 'things'},
           'things': {'digits': 'digits', 'classes': 'garments'}}
SOURCE_IMAGES, VALIDATION = 25_000, 500
EPOCHS = {100: 60, 1000: 20, 10_000: 8}  # By training images of the target.


@functools.cache
def whole(name: str, data_dir: str) -> tuple[Any, ...]:
  """Images, labels, test images, test labels and class names of a set."""
  dataset = Data(name=name, data_dir=data_dir).load()
  return *dataset.train.arrays(), *dataset.test.arrays(), dataset.class_names


@dataclasses.dataclass
class Part(DataSource):
  """Some classes of a set, its training images in an order drawn by lot."""
  name: str = setting('fashion_mnist', 'of the set', choices=('fashion_mnist', 'mnist'))
  classes: tuple[int, ...] = setting((), 'labels that are kept; empty: all', low=0, high=9)
  draw: int = setting(0, 'of the order: the first of it are trained on', low=0)
  data_dir: str = setting('', 'folder with the four files', location=True)

  def load(self) -> Dataset:
    """See `DataSource`."""
    images, labels, test_images, test_labels, names = whole(self.name, self.data_dir)
    classes = np.array(self.classes or range(len(names)))
    def part(labels: np.ndarray) -> np.ndarray:
      return np.flatnonzero(np.isin(labels, classes))
    kept, test = part(labels), part(test_labels)
    kept = np.random.default_rng(self.draw).permutation(kept)
    # The first of each class, then the second, and so on: as many of each in a hundred images.
    rank = np.empty(len(kept), int)
    for k in classes:
      own = np.flatnonzero(labels[kept] == k)
      rank[own] = range(len(own))
    kept = kept[np.argsort(rank, kind='stable')]
    number = lambda labels: np.searchsorted(classes, labels)
    return Dataset.of_arrays(
        f'{self.name}, {len(classes)} classes', images[kept], number(labels[kept]),
        test_images[test], number(test_labels[test]), [names[k] for k in classes])


def config(model: str, data: Part, images: int, epochs: int, seed: int) -> Config:
  """The same recipe for every run but for what it is trained on and for how long."""
  return Config(
      data=dataclasses.replace(data, draw=seed, train_examples=images + VALIDATION,
                               validation_examples=VALIDATION,
                               batch_size=20 if images in EPOCHS else 100),
      model=MODELS[model], optim=AdamW(learning_rate=1e-3, schedule=OneCycle()),
      train=Train(epochs=epochs, seed=seed))


def part(experiment: record.Experiment, name: str, classes: tuple[int, ...]) -> Part:
  """Some classes of a set that lies where the command line says."""
  args = experiment.args
  folder = {'mnist': args.mnist_dir, 'fashion_mnist': args.data_dir}[name]
  return Part(name=name, classes=classes, data_dir=folder, test_examples=500 if args.quick else 0)


def source(experiment: record.Experiment, model: str, name: str, seed: int) -> Any:
  """A run on one of `SETS`."""
  images, epochs = (2000, 1) if experiment.args.quick else (SOURCE_IMAGES, 8)
  return experiment.run(f'transfer/{model}_on_{name}_{seed}', config(
      model, part(experiment, *SETS[name]), images, epochs, seed))


def target(experiment: record.Experiment, name: str, model: str, start: str, images: int,
           seed: int) -> Any:
  """A run on few images of one of `SETS`, from one of `STARTS`, whose run must be there."""
  own = config(model, part(experiment, *SETS[name]), images,
               2 if experiment.args.quick else EPOCHS[images], seed)
  if start != 'scratch':
    directory = experiment.runs / f'transfer/{model}_on_{SOURCES[name][start]}_{seed}'
    own = config_lib.replace(own, {'train.init_from': str(directory)})
  return experiment.run(f'transfer/{name}_{model}_{start}_{images}_{seed}', own)


def picture(entries: list[dict[str, Any]]) -> bytes:
  """A row a target, a column a model: accuracy by number of images, a line a start."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  with canvas.drawing():
    figure = Figure(figsize=(8.0, 6.2), dpi=150, facecolor=theme.surface, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(TITLES), len(MODELS), sharex=True, sharey='row')
    for row, name in zip(axes, TITLES):
      for panel, model in zip(row, MODELS):
        found = [entry for entry in entries if (entry['target'], entry['model']) == (name, model)]
        images = [entry['images'] for entry in found]
        for shift, start, color, mark in ((0.94, 'scratch', theme.muted, 'o'),
                                          (1.0, 'digits', theme.second, 's'),
                                          (1.06, 'classes', theme.first, 'D')):
          stats = [entry['accuracy'][start] for entry in found]
          panel.errorbar([shift * number for number in images],
                         [100 * entry['mean'] for entry in stats],
                         yerr=[100 * (entry['half_width'] or 0) for entry in stats], color=color,
                         marker=mark, markersize=4, linewidth=1.6, capsize=3, label=STARTS[start])
        panel.set_xscale('log')
        panel.set_xticks(images, [f'{number:,}' for number in images])
        panel.minorticks_off()
        panel.set_title(f'{TITLES[name]}, {model}', fontsize=9, loc='left', color=theme.ink)
        panel.grid(color=theme.grid, linewidth=0.8)
        panel.set_axisbelow(True)
      row[0].set_ylabel('test accuracy (%)', color=theme.ink)
    for panel in axes[-1]:
      panel.set_xlabel('training images of the five classes', color=theme.ink)
    axes[0, 0].legend(frameon=False, fontsize=8, loc='lower right')
    return canvas.png(figure)


def gain(entry: dict[str, Any], start: str) -> metrics.Interval:
  """By how many points a start is better than none, paired over seeds."""
  return metrics.paired_difference(*([100 * value for value in entry['accuracy'][name]['values']]
                                     for name in ('scratch', start)))


def lessons(entries: list[dict[str, Any]]) -> list[str]:
  """For each target and start: where it helps, where it harms."""
  lines = []
  for name, title in TITLES.items():
    for start in SOURCES[name]:
      found: dict[str, list[str]] = {'helps': [], 'harms': [], 'shows no difference': []}
      for entry in (entry for entry in entries if entry['target'] == name):
        change = gain(entry, start)
        sure = change.half_width is not None and abs(change.mean) > change.half_width
        verdict = ('helps' if change.mean > 0 else 'harms') if sure else 'shows no difference'
        found[verdict].append(f'`{entry["model"]}` with {entry["images"]:,} images '
                              f'({record.points(change)} points)')
      said = '; '.join(f'{verdict} {", ".join(where)}' for verdict, where in found.items() if where)
      lines.append(f'{title[0].upper()}{title[1:]}, {STARTS[start]}: {said}.')
  return lines


def body(experiment: record.Experiment) -> None:
  """Trains sources and targets."""
  args = experiment.args
  if not args.mnist_dir:
    raise ConfigError('MNIST and Fashion-MNIST have files of the same names: give --mnist_dir, the '
                      'folder with the four of MNIST.')
  sources = {model: {name: summary.statistics([
      source(experiment, model, name, seed).results['accuracy'] for seed in range(args.seeds)])
      for name in SETS} for model in MODELS}
  entries = []
  for name in TITLES:
    for model in MODELS:
      for images in (100,) if args.quick else EPOCHS:
        runs = {start: [target(experiment, name, model, start, images, seed)
                        for seed in range(args.seeds)] for start in STARTS}
        entries.append({'target': name, 'model': model, 'images': images, 'accuracy': {
            start: summary.statistics([run.results['accuracy'] for run in several])
            for start, several in runs.items()}})
  one = runs['classes'][0].results
  words = lessons(entries)
  results = {'targets': entries, 'sources': sources, 'lessons': words,
             'taken': one['init_from']['taken'], 'fresh': one['init_from']['fresh'],
             'device': one['device'], 'versions': one['versions'], 'synthetic': one['synthetic']}
  rows = [['target, model, training images', *(f'{text}, %' for text in STARTS.values()),
           'gain from digits, points', 'gain from the other five, points']]
  for entry in entries:
    rows.append([f'{TITLES[entry["target"]]}, `{entry["model"]}`, {entry["images"]:,}',
                 *(summary.plus_minus(entry['accuracy'][start], 100, 2) for start in STARTS),
                 *(record.points(gain(entry, start)) for start in ('digits', 'classes'))])
  known = '; '.join(f'{model}: ' + ', '.join(
      f'{name} {summary.plus_minus(stats, 100, 2)} %' for name, stats in found.items())
                    for model, found in sources.items())
  listed = '\n'.join(f'- {line}' for line in words)
  text = (f'{record.table(rows)}\n\n{record.means(experiment, one)} Accuracy of what they start '
          f'from, on its own task: {known}.\n\n{listed}\n\n![test accuracy by number of training '
          'images: from scratch, from digits, from the other five classes](accuracy.png)')
  experiment.save(results, text, {'accuracy.png': picture(entries)})


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--mnist_dir', default='', help='folder with the four MNIST files')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5, extra=extra)
