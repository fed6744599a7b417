"""Smaller networks from a large one: channels removed, 8 bits, distillation; see README.md.

`run.py` trains and measures accuracy; `run.py measure`, on a machine that does nothing else,
measures milliseconds and writes everything again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import record

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, evaluation, graph, metrics, transfer
from fmnist_jax.config import CNN, Augmentation, Config, setting
from fmnist_jax.data import Dataset
from fmnist_jax.population import summary
from fmnist_jax.storage import files
from fmnist_jax.trained_model import TrainedModel, load_run

if TYPE_CHECKING:
  import jax

EPOCHS, TUNED = 5, 3  # Of the large network; more, after channels are removed.
SIZES = {'half': 2, 'quarter': 4}
NAMES = {
    'cnn': '`cnn`', 'half': 'half of the channels removed, fine-tuned',
    'half_scratch': 'as narrow from the start', 'quarter': 'three quarters removed, fine-tuned',
    'quarter_scratch': 'as narrow from the start, a quarter', 'distilled': '`cnn`, distilled'}
IMAGES, ROUNDS = 2000, 7  # Of a measurement of time.
_teachers: dict[str, tuple[TrainedModel, Any]] = {}


@dataclasses.dataclass
class Taught(Augmentation):
  """Targets are what teachers make of an image: the mean of their probabilities.

  Distillation (arXiv:1503.02531) at temperature 1; teachers see the image that the student sees,
  as augmented (arXiv:2106.05237).
  """
  teachers: tuple[str, ...] = setting((), 'work directories of trained models')

  def check_settings(self, _: str) -> None:
    """Loads the teachers, which cannot be done while a program is traced."""
    for directory in self.teachers:
      if directory not in _teachers:
        model = load_run(directory)
        _teachers[directory] = model, model.state.variables()

  def __call__(self, key: jax.Array, images: jax.Array,
               targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `Augmentation`."""
    said = [model.programs.predict(variables, images)
            for model, variables in map(_teachers.__getitem__, self.teachers)]
    return images, sum(said) / len(said)


def pruned(params: Any, share: int) -> dict[str, np.ndarray]:
  """Weights of a network of a CNN's kind with one in `share` of its channels and hidden units.

  Those stay whose weights have the largest sum of absolute values (arXiv:1608.08710).

  Args:
    params: of a `CNN` of blocks of one convolution, and one dense layer before the head.
    share: what widths are divided by.

  Returns:
    Arrays by name, as `transfer.Source` has them.
  """
  found: dict[str, np.ndarray] = {}
  kept = np.arange(params['Conv_0']['kernel'].shape[-2])
  layers = sorted(params)  # Conv_0, Conv_1, ..., Dense_0, Dense_1
  for number, name in enumerate(layers):
    kernel, bias = params[name]['kernel'], params[name]['bias']
    if name == 'Dense_0':  # Its inputs are [H, W, C], flat.
      before = params[layers[number - 1]]['bias'].size
      kernel = kernel.reshape(-1, before, kernel.shape[-1])[:, kept].reshape(-1, kernel.shape[-1])
    else:
      kernel = kernel[..., kept, :]
    own = kernel.shape[-1]
    if number < len(layers) - 1:
      importance = np.abs(params[name]['kernel']).sum(tuple(range(kernel.ndim - 1)))
      kept = np.sort(np.argsort(-importance, kind='stable')[:own // share])
      kernel, bias = kernel[..., kept], bias[kept]
    found |= {f'params/{name}/kernel': kernel, f'params/{name}/bias': bias}
  return found


def source(directory: pathlib.Path, share: int) -> transfer.Source:
  """A trained network with channels removed, to start from."""
  model = load_run(directory)
  arrays = pruned(model.state.variables()['params'], share)
  digest = hashlib.sha256(b''.join(array.tobytes() for array in arrays.values())).hexdigest()
  return transfer.Source(
      {'workdir': f'{directory}, one in {share} channels', 'step': model.step, 'sha256': digest,
       'taken': list(model.variables['params']), 'fresh': [], 'left': []}, arrays)


def recipe(experiment: record.Experiment, seed: int, epochs: int, share: int = 1) -> Config:
  """`configs/cnn.py`, shorter, and narrower by `share`."""
  changes: dict[str, Any] = {'train.epochs': epochs}
  changes |= record.QUICK if experiment.args.quick else {}
  return config_lib.replace(config_file.load('cnn'), {
      **changes, 'train.seed': seed, 'data.data_dir': experiment.args.data_dir,
      'model': CNN(channels=(32 // share, 64 // share), dense=(128 // share,))})


def train(experiment: record.Experiment) -> dict[str, list[Any]]:
  """Every network with every seed: `summary.Finished` by kind."""
  seeds = range(experiment.args.seeds)
  run = lambda kind, seed, *args: experiment.run(f'compress/{kind}_{seed}', *args)
  found = {'cnn': [run('cnn', seed, recipe(experiment, seed, EPOCHS)) for seed in seeds]}
  teachers = tuple(str(teacher.path) for teacher in found['cnn'])
  for kind, share in SIZES.items():
    # A lower peak for what has been trained; what starts from nothing gets all the epochs.
    tuned = lambda seed, share=share: config_lib.replace(
        recipe(experiment, seed, TUNED, share), {'optim.learning_rate': 1e-3})
    found[kind] = [run(kind, seed, tuned(seed), source(teacher.path, share))
                   for seed, teacher in zip(seeds, found['cnn'])]
    found[f'{kind}_scratch'] = [run(f'{kind}_scratch', seed, recipe(
        experiment, seed, EPOCHS + TUNED, share)) for seed in seeds]
  def taught(seed: int) -> Config:
    config = recipe(experiment, seed + len(seeds), EPOCHS)  # With no teacher's start.
    augment = (*config.data.augment, Taught(teachers))
    return config_lib.replace(config, {'data': dataclasses.replace(config.data, augment=augment)})
  found['distilled'] = [run('distilled', seed, taught(seed)) for seed in seeds]
  return found


def exported(run: Any, dataset: Dataset) -> dict[str, Any]:
  """Files in both number formats, written once beside the run, with their accuracy.

  Returns:
    For each format, `bytes` and `accuracy` on the test images, by ONNX Runtime.
  """
  from fmnist_jax.export import folder, int8, onnx, runtime
  record_of = run.path / 'exported.json'
  if not record_of.exists():
    model, found = load_run(run.path), {}
    network = graph.trace(model.config.model, model.variables, model.image_shape,
                          model.class_names)
    whole = onnx.build(network, {})
    calibration = dataset.clean_train.first(folder.CALIBRATION_IMAGES).arrays()[0]  # type: ignore
    images, labels = dataset.test.arrays()
    for form, content in (('float32', whole), ('int8', int8.quantized(whole, calibration))):
      files.write_bytes(run.path / f'{form}.onnx', content)
      predicted = runtime.Session(content).probabilities(images).argmax(-1)
      found[form] = {'bytes': len(content), 'accuracy': float((predicted == labels).mean())}
    files.write_json(record_of, found)
  return files.read_json(record_of)


def milliseconds(call: Any, images: np.ndarray) -> float:
  """Of an image: the median of rounds over all of them."""
  call(images)
  seconds = []
  for _ in range(ROUNDS):
    began = time.perf_counter()
    call(images)
    seconds.append(time.perf_counter() - began)
  return 1000 * statistics.median(seconds) / len(images)


def measure(runs: dict[str, list[Any]], dataset: Dataset) -> dict[str, dict[str, float]]:
  """Milliseconds an image of one run of each kind, in batches, by format and here."""
  from fmnist_jax.export import runtime
  images = dataset.test.arrays()[0][:IMAGES]
  found = {}
  for kind, several in runs.items():
    path = several[0].path
    sessions = {form: runtime.Session((path / f'{form}.onnx').read_bytes())
                for form in ('float32', 'int8')}
    found[kind] = {form: milliseconds(session.probabilities, images)
                   for form, session in sessions.items()}
    found[kind]['here'] = milliseconds(load_run(path).predict, images)
  return found


def picture(entries: list[dict[str, Any]]) -> bytes:
  """Accuracy by size of the file and, where it was measured, by time; the best are joined."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D
  from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  panels = {'bytes': ('size of the ONNX file (kB)', 1e-3),
            'milliseconds': ('milliseconds an image, ONNX Runtime', 1.0)}
  shown = [name for name in panels if all(entry[name] for entry in entries)]
  marks = dict(zip(NAMES, 'osDv^*'))
  colors = {'float32': theme.first, 'int8': theme.second}
  with canvas.drawing():
    figure = Figure(figsize=(4.2 * len(shown) + 2.8, 4.0), dpi=150, facecolor=theme.surface,
                    layout='constrained')
    FigureCanvasAgg(figure)
    for panel, name in zip(np.ravel(figure.subplots(1, len(shown), sharey=True)), shown):
      label, scale = panels[name]
      for entry in entries:
        accuracy = entry['accuracy']
        panel.errorbar(scale * entry[name], 100 * accuracy['mean'],
                       yerr=100 * (accuracy['half_width'] or 0), color=colors[entry['form']],
                       marker=marks[entry['kind']], markersize=6, capsize=2, linewidth=1)
      best = frontier([(entry[name], entry['accuracy']['mean']) for entry in entries])
      panel.plot([scale * x for x, _ in best], [100 * y for _, y in best], color=theme.grid,
                 linewidth=2, zorder=0)
      panel.set_xscale('log')
      panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
      panel.xaxis.set_minor_formatter(NullFormatter())
      panel.set_xlabel(label, color=theme.ink)
      panel.grid(color=theme.grid, linewidth=0.5)
      panel.set_axisbelow(True)
    figure.axes[0].set_ylabel('test accuracy (%)', color=theme.ink)
    handles = [Line2D([], [], color=theme.muted, marker=mark, linestyle='', label=kind.replace(
        '_scratch', ', from scratch')) for kind, mark in marks.items()]
    handles += [Line2D([], [], color=color, label=form) for form, color in colors.items()]
    figure.legend(handles=handles, loc='outside right upper', frameon=False, fontsize=8)
    return canvas.png(figure)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """Those (cost, worth) that no other beats in both, cheapest first."""
  found: list[tuple[float, float]] = []
  for point in sorted(points, key=lambda point: (point[0], -point[1])):
    if not found or point[1] > found[-1][1]:
      found.append(point)
  return found


def body(experiment: record.Experiment) -> None:
  """Trains, exports and, when asked to, measures."""
  runs = train(experiment)
  dataset = evaluation.dataset_of(load_run(runs['cnn'][0].path), experiment.args.data_dir)
  files_of = {kind: [exported(run, dataset) for run in several] for kind, several in runs.items()}
  path = experiment.runs / 'compress' / 'milliseconds.json'
  if experiment.args.part == 'measure':
    files.write_json(path, measure(runs, dataset))
  times = files.read_json(path) if path.exists() else None
  entries = []
  for kind, several in runs.items():
    for form in ('float32', 'int8'):
      accuracies = ([run.results['accuracy'] for run in several] if form == 'float32'
                    else [entry['int8']['accuracy'] for entry in files_of[kind]])
      entries.append({
          'kind': kind, 'form': form,
          'name': NAMES[kind] + (', 8 bits' if form == 'int8' else ''),
          'parameters': several[0].results['parameters'],
          'accuracy': summary.statistics(accuracies),
          'bytes': statistics.median(entry[form]['bytes'] for entry in files_of[kind]),
          'milliseconds': times and times[kind][form],
          'here': times[kind]['here'] if times and form == 'float32' else None})
  ensemble = np.mean([run.probabilities for run in runs['cnn']], axis=0)
  together = float((ensemble.argmax(-1) == runs['cnn'][0].labels).mean())
  report(experiment, entries, together, runs['cnn'][0].results)


def report(experiment: record.Experiment, entries: list[dict[str, Any]], together: float,
           one: dict[str, Any]) -> None:
  """Writes tables, lessons and the picture."""
  number = lambda value: f'{value:.4f}' if value else '-'
  rows = [['network', 'test accuracy, %', 'parameters', 'file, kB', 'ms an image, ONNX Runtime',
           'ms an image, here']]
  rows += [[entry['name'], summary.plus_minus(entry['accuracy'], 100, 2),
            f'{entry["parameters"]:,}', f'{entry["bytes"] / 1000:,.0f}',
            number(entry['milliseconds']), number(entry['here'])] for entry in entries]
  words = lessons({(entry['kind'], entry['form']): entry for entry in entries}, together)
  listed = '\n'.join(f'- {line}' for line in words)
  timed = ('Milliseconds are medians of several rounds over 2,000 images, in batches.'
           if entries[0]['milliseconds'] else 'Milliseconds are not measured yet.')
  text = (f'{record.table(rows)}\n\n{record.means(experiment, one)} {timed}\n\n{listed}\n\n'
          '![test accuracy by size of the file, and by time where it is measured](pareto.png)')
  experiment.save({'networks': entries, 'ensemble_accuracy': together, 'lessons': words,
                   'device': one['device'], 'versions': one['versions'],
                   'synthetic': one['synthetic']},
                  text, {'pareto.png': picture(entries)})


def lessons(entries: dict[tuple[str, str], dict[str, Any]], together: float) -> list[str]:
  """What each way of making a network smaller, or better, costs or brings; paired over seeds."""
  def change(old: tuple[str, str], new: tuple[str, str]) -> str:
    first, second = ([100 * value for value in entries[key]['accuracy']['values']]
                     for key in (old, new))
    return f'{record.points(metrics.paired_difference(first, second))} points'

  whole = 'cnn', 'float32'
  lines = []
  for kind, share in SIZES.items():
    lines.append(f'One in {share} channels kept: {change(whole, (kind, "float32"))} against the '
                 f'whole network, {change((f"{kind}_scratch", "float32"), (kind, "float32"))} '
                 'against a network as narrow from the start.')
  lines.append(f'8 bits: {change(whole, ("cnn", "int8"))}, in a file of '
               f'{entries["cnn", "int8"]["bytes"] / entries[whole]["bytes"]:.2f} of the size.')
  lines.append(f'Distilled from the ensemble, which reaches {100 * together:.2f} %: '
               f'{change(whole, ("distilled", "float32"))} against the same network taught by '
               'labels.')
  return lines


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('part', nargs='?', choices=('train', 'measure'), default='train',
                      help='measure: also milliseconds; on a machine that does nothing else')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5, extra=extra)
