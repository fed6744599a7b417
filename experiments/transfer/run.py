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
SHOWN = {'mlp': 'dense network, 784-128-5', 'cnn': 'conv 16, pool, conv 32, pool, dense 64'}
UPPER, OTHERS = (0, 2, 3, 4, 6), (1, 5, 7, 8, 9)
STARTS = {'scratch': 'from scratch', 'mnist': 'from digits',
          'others': 'from the other five classes'}
SOURCES = {'mnist': ('mnist', ()), 'others': ('fashion_mnist', OTHERS)}
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


def source(experiment: record.Experiment, model: str, start: str, seed: int) -> Any:
  """A run on one of `SOURCES`."""
  images, epochs = (2000, 1) if experiment.args.quick else (SOURCE_IMAGES, 8)
  return experiment.run(f'transfer/{model}_on_{start}_{seed}', config(
      model, part(experiment, *SOURCES[start]), images, epochs, seed))


def target(experiment: record.Experiment, model: str, start: str, images: int, seed: int) -> Any:
  """A run on the upper garments, from one of `STARTS`, whose run must be there."""
  own = config(model, part(experiment, 'fashion_mnist', UPPER), images,
               2 if experiment.args.quick else EPOCHS[images], seed)
  if start != 'scratch':
    directory = experiment.runs / f'transfer/{model}_on_{start}_{seed}'
    own = config_lib.replace(own, {'train.init_from': str(directory)})
  return experiment.run(f'transfer/{model}_{start}_{images}_{seed}', own)


def picture(found: dict[str, dict[str, dict[str, Any]]]) -> bytes:
  """For each model: accuracy by number of images, a line a start."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  with canvas.drawing():
    figure = Figure(figsize=(8.0, 3.6), dpi=150, facecolor=theme.surface, layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), sharey=True)
    for panel, (model, sizes) in zip(panels, found.items()):
      for shift, start, color, mark in ((0.94, 'scratch', theme.muted, 'o'),
                                        (1.0, 'mnist', theme.second, 's'),
                                        (1.06, 'others', theme.first, 'D')):
        stats = [entry[start] for entry in sizes.values()]
        panel.errorbar([shift * int(images) for images in sizes],
                       [100 * entry['mean'] for entry in stats],
                       yerr=[100 * (entry['half_width'] or 0) for entry in stats], color=color,
                       marker=mark, markersize=4, linewidth=1.6, capsize=3, label=STARTS[start])
      panel.set_xscale('log')
      panel.set_xticks([int(images) for images in sizes], [f'{int(n):,}' for n in sizes])
      panel.minorticks_off()
      panel.set_title(f'{model}: {SHOWN[model]}', fontsize=9, loc='left', color=theme.ink)
      panel.set_xlabel('training images of the five upper garments', color=theme.ink)
      panel.grid(color=theme.grid, linewidth=0.8)
      panel.set_axisbelow(True)
    panels[0].set_ylabel('test accuracy (%)', color=theme.ink)
    panels[0].legend(frameon=False, fontsize=8, loc='lower right')
    return canvas.png(figure)


def gain(entry: dict[str, Any], start: str) -> metrics.Interval:
  """By how many points a start is better than none, paired over seeds."""
  return metrics.paired_difference(*([100 * value for value in entry[name]['values']]
                                     for name in ('scratch', start)))


def lessons(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
  """For each model and start: where it helps and where not."""
  lines = []
  for model, sizes in found.items():
    for start in SOURCES:
      said = []
      for images, entry in sizes.items():
        change = gain(entry, start)
        sure = change.half_width is not None and abs(change.mean) > change.half_width
        verdict = ('helps' if change.mean > 0 else 'harms') if sure else 'shows no difference'
        said.append(f'with {int(images):,} images {verdict} ({record.points(change)} points)')
      lines.append(f'{model}, fine-tuned {STARTS[start]}: {", ".join(said)}.')
  return lines


def body(experiment: record.Experiment) -> None:
  """Trains sources and targets."""
  args = experiment.args
  if not args.mnist_dir:
    raise ConfigError('MNIST and Fashion-MNIST have files of the same names: give --mnist_dir, the '
                      'folder with the four of MNIST.')
  sizes = (100,) if args.quick else tuple(EPOCHS)
  found: dict[str, dict[str, dict[str, Any]]] = {}
  sources: dict[str, dict[str, Any]] = {}
  for model in MODELS:
    sources[model] = {start: summary.statistics([
        source(experiment, model, start, seed).results['accuracy']
        for seed in range(args.seeds)]) for start in SOURCES}
    found[model] = {}
    for images in sizes:
      runs = {start: [target(experiment, model, start, images, seed)
                      for seed in range(args.seeds)] for start in STARTS}
      found[model][str(images)] = {
          start: summary.statistics([run.results['accuracy'] for run in several])
          for start, several in runs.items()}
  one = runs['others'][0].results
  words = lessons(found)
  results = {'models': found, 'sources': sources, 'lessons': words,
             'epochs': {str(images): EPOCHS[images] for images in sizes},
             'taken': {start: {name: runs[start][0].results['init_from'][name]
                               for name in ('taken', 'fresh')} for start in SOURCES},
             'device': one['device'], 'versions': one['versions'], 'synthetic': one['synthetic']}
  rows = [['model, training images', *(f'{text}, %' for text in STARTS.values()),
           *(f'gain {STARTS[start]}, points' for start in SOURCES)]]
  for model, entries in found.items():
    for images, entry in entries.items():
      rows.append([f'`{model}`, {int(images):,}',
                   *(summary.plus_minus(entry[start], 100, 2) for start in STARTS),
                   *(record.points(gain(entry, start)) for start in SOURCES)])
  known = '; '.join(f'{model}: ' + ', '.join(
      f'{summary.plus_minus(stats, 100, 2)} % {STARTS[start].removeprefix("from ")}'
      for start, stats in starts.items()) for model, starts in sources.items())
  listed = '\n'.join(f'- {line}' for line in words)
  text = (f'{record.table(rows)}\n\n{record.means(experiment, one)} Accuracy of what they start '
          f'from, on its own task: {known}.\n\n{listed}\n\n![test accuracy by number of training '
          'images: from scratch, from digits, from the other five classes](accuracy.png)')
  experiment.save(results, text, {'accuracy.png': picture(found)})


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--mnist_dir', default='', help='folder with the four MNIST files')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5, extra=extra)
