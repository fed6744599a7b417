"""What Fashion-MNIST can give at each cost; see README.md."""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1] / 'cpu_speed'))

import environments
import numpy as np
import record
from matplotlib.axes import Axes

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, data, graph, trained_model
from fmnist_jax.errors import UserError
from fmnist_jax.population import summary
from fmnist_jax.report import canvas
from fmnist_jax.storage import files

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class Row(NamedTuple):
  """A limit, and what is trained within it.

  Attributes:
    limit: in words.
    recipe: a config of `configs/`; it may have several rows.
    least: and `aim`, of the mean test accuracy, %.
    seconds: the limit, from process start.
    parameters: the limit.
    ensemble: the accuracy is that of all seeds together.
    peer: whether PyTorch trains the same.
  """
  limit: str
  recipe: str
  least: float
  aim: float
  seconds: float = math.inf
  parameters: float = math.inf
  ensemble: bool = False
  peer: bool = False


ROWS = (Row('60 s', 'minute', 93.0, 93.5, seconds=60, peer=True),
        Row('5 minutes', 'five_minutes', 94.0, 94.5, seconds=300, peer=True),
        Row('45 minutes', 'three_hundred_k', 95.0, 95.4, seconds=2700),
        Row('100,000 parameters', 'hundred_k', 93.5, 94.2, parameters=100_000),
        Row('300,000 parameters', 'three_hundred_k', 94.8, 95.6, parameters=300_000),
        Row('five models', 'three_hundred_k', 95.8, 96.3, ensemble=True))


def path_of(recipe: str) -> pathlib.Path:
  """The file of a recipe."""
  return ROOT / 'configs' / f'{recipe}.py'


def check_committed(path: pathlib.Path) -> None:
  """Raises UserError unless a recipe is committed as it stands: test images do not choose it."""
  git = lambda *args: subprocess.run(['git', *args, path], cwd=path.parent, capture_output=True)
  known, same = git('ls-files', '--error-unmatch'), git('diff', '--quiet', 'HEAD', '--')
  if known.returncode or same.returncode:
    raise UserError(f'{path} is not committed as it stands; commit the recipe before its test '
                    'images are read, or try it on validation images.')


def measured(experiment: record.Experiment, row: Row, records: dict[str, Any]) -> None:
  """Trains the seeds of a recipe that are not on record, PyTorch and this library in turn."""
  args, path = experiment.args, path_of(row.recipe)
  config = config_file.load(str(path))
  config = config_lib.replace(config, record.QUICK if args.quick else {})
  written = config_lib.to_json(config)
  kept = records.setdefault(row.recipe, {'config': written, 'runs': {}})
  if kept['config'] != written:
    raise UserError(f'The record of {row.recipe} in results.json is of another recipe; delete it '
                    'there to measure anew.')

  def train(seed: int, who: str) -> None:
    if not args.quick:
      check_committed(path)
    print(f'-- {row.recipe}, seed {seed}, {who}', flush=True)
    kept['runs'][str(seed)][who] = (ours(experiment, path, seed) if who == 'ours' else
                                    pytorch(experiment, path, config, seed))
    # At once: what is on record is not trained again.
    experiment.output.mkdir(parents=True, exist_ok=True)
    with writing:
      files.write_json(experiment.output / 'results.json', {'recipes': records})

  missing = []
  for seed in range(args.seeds):
    entry = kept['runs'].setdefault(str(seed), {})
    peers = ['pytorch'] * bool(row.peer and args.envs and seed < args.peer_seeds)
    missing += [(seed, who) for who in ['ours', *peers] if who not in entry]
  shares = shares_of_cores(1 if row.peer else args.at_once)
  writing = threading.Lock()
  # A process inherits the cores of the thread that starts it.
  with futures.ThreadPoolExecutor(len(shares), initializer=lambda: os.sched_setaffinity(
      0, shares.pop())) as pool:
    for done in [pool.submit(train, *one) for one in missing]:
      done.result()
  found = [experiment.runs / 'frontier' / f'{row.recipe}_{seed}' for seed in range(args.seeds)]
  if 'multiply_adds' not in kept:
    kept |= size_of(found[0])
  members = kept.get('ensemble', {}).get('members', 0)
  if members < args.seeds and all((run / 'predictions.npz').exists() for run in found):
    names = [entry['name'] for entry in files.read_json(found[0] / 'results.json')['per_class']]
    together = summary.summarize(list(map(summary.read, found)), names)['ensemble']
    kept['ensemble'] = {**together, 'members': args.seeds}
  save(experiment, records)


def shares_of_cores(at_once: int) -> list[set[int]]:
  """The cores of this process in so many shares of the same size."""
  cores = sorted(os.sched_getaffinity(0))
  if not 1 <= at_once <= len(cores):
    raise UserError(f'--at_once={at_once}: give 1 to {len(cores)}, the cores there are.')
  each = len(cores) // at_once
  return [set(cores[first * each:(first + 1) * each]) for first in range(at_once)]


def command_of(experiment: record.Experiment, path: pathlib.Path, seed: int) -> list[str]:
  """What a reader types to train a seed."""
  name = path.relative_to(ROOT)
  quick = [f'--config.{key}={value}' for key, value in record.QUICK.items()]
  place = [f'--config.data.data_dir={experiment.args.data_dir}'] * bool(experiment.args.data_dir)
  return ['-m', 'fmnist_jax.main', f'--config={name}', f'--config.train.seed={seed}', *place,
          *quick * experiment.args.quick]


def timed(command: Sequence[str], log: pathlib.Path, experiment: record.Experiment) -> float:
  """Runs a command; seconds from the start of its process to its end."""
  log.parent.mkdir(parents=True, exist_ok=True)
  began = time.perf_counter()
  with log.open('w') as output, subprocess.Popen(
      command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as process:
    try:
      while process.poll() is None:
        experiment.interrupt.check()
        time.sleep(0.05)
    finally:
      process.terminate()
  seconds = time.perf_counter() - began
  if process.returncode:
    said = log.read_text().strip().splitlines() or ['nothing']
    raise UserError(f'{" ".join(command)} failed: {said[-1]}')
  return seconds


def ours(experiment: record.Experiment, path: pathlib.Path, seed: int) -> dict[str, Any]:
  """A run of the command line."""
  workdir = (experiment.runs / 'frontier' / f'{path.stem}_{seed}').resolve()
  shutil.rmtree(workdir, ignore_errors=True)  # One that was stopped has another time.
  seconds = timed([sys.executable, *command_of(experiment, path, seed), f'--workdir={workdir}'],
                  workdir.with_suffix('.log'), experiment)
  found = files.read_json(workdir / 'results.json')
  kept = {name: found[name] for name in (
      'accuracy', 'loss', 'best_validation_accuracy', 'parameters', 'examples', 'synthetic',
      'device', 'versions')}
  return {'seconds': seconds, 'cores': len(os.sched_getaffinity(0)), **kept,
          'phases': found['seconds']}


def pytorch(experiment: record.Experiment, path: pathlib.Path, config: config_lib.Config,
            seed: int) -> dict[str, Any]:
  """The same in PyTorch; the images are handed over as arrays, which costs it less than ours."""
  folder = (experiment.runs / 'frontier').resolve()
  arrays = folder / ('quick.npz' if experiment.args.quick else 'arrays.npz')
  config = config_lib.replace(config, {'train.seed': seed,
                                       'data.data_dir': experiment.args.data_dir})
  if not arrays.exists():
    found: dict[str, Any] = {}
    dataset = data.load(config.data)
    for split in ('train', 'validation', 'test'):
      images, labels = getattr(dataset, split).arrays()
      found |= {f'{split}_images': images, f'{split}_labels': labels.astype(np.int32)}
    arrays.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arrays, **found)
  spec = {'arrays': str(arrays), 'config': config_lib.to_json(config)}
  log = folder / f'{path.stem}_{seed}.pytorch.log'
  python = environments.python('torch', pathlib.Path(experiment.args.envs))
  seconds = timed([python, str(HERE / 'torch_worker.py'), json.dumps(spec)], log, experiment)
  return {'seconds': seconds, **json.loads(log.read_text().splitlines()[-1])}


def size_of(path: pathlib.Path) -> dict[str, int]:
  """Parameters and multiply-adds of the network of a run, for an image."""
  run = trained_model.load_run(path)
  network = graph.trace(run.config.model, run.variables, run.image_shape, run.class_names)
  return {'parameters': files.read_json(path / 'results.json')['parameters'],
          'multiply_adds': sum(layer.products for layer in network.layers)}


def save(experiment: record.Experiment, records: Mapping[str, Any]) -> None:
  """Writes what there is, as table, pictures and results.json."""
  table = [['limit', 'recipe', 'test accuracy, %', 'at least', 'aim', 'ensemble, %', 'parameters',
            'multiply-adds', 'seconds', 'seconds in PyTorch', 'accuracy in PyTorch, %']]
  for row in ROWS:
    kept = records.get(row.recipe, {'runs': {}})
    table.append(cells(row, kept))
  runs = [entry['ours'] for kept in records.values() for entry in kept['runs'].values()
          if 'ours' in entry]
  took = sum(entry[who]['seconds'] for kept in records.values()
             for entry in kept['runs'].values() for who in entry)
  devices = sorted({record.where(entry) for entry in runs})
  drawn = ' SYNTHETIC' if any(entry['synthetic'] for entry in runs) else ''
  commands = '\n'.join(f'    python {" ".join(command_of(experiment, path_of(recipe), 0))}'
                       for recipe in records)
  text = (f'{record.table(table)}\n\nMeans over seeds (their number in brackets where it is not '
          f'5) with 95 % intervals (t), on{drawn} test images; the '
          'ensemble is the mean of the probabilities of all seeds; seconds are those '
          'of the process, from its start to its end, report included, the median over seeds, of '
          f'which the first on a machine also compiles; parameters and seconds of an ensemble are '
          f'those of one of its members. {"; ".join(devices)}. All these '
          f'runs add up to {record.duration(took)}. Every point again, one seed:\n\n{commands}\n\n'
          '![accuracy by parameters and by time](frontier.png)')
  experiment.save({'recipes': records}, text, {'frontier.png': picture(records)})


def cells(row: Row, kept: Mapping[str, Any]) -> list[str]:
  """A line of the table."""
  of = lambda who: [entry[who] for entry in kept['runs'].values() if who in entry]
  mine, theirs = of('ours'), of('pytorch')
  together = kept.get('ensemble')
  if not mine or (row.ensemble and not together):
    return [row.limit, f'`{row.recipe}`', '-', str(row.least), str(row.aim), *['-'] * 6]
  accuracy = summary.statistics([entry['accuracy'] for entry in mine])
  reached = 100 * (together['accuracy'] if row.ensemble else accuracy['mean'])
  times = [entry['seconds'] for entry in mine]
  seconds = statistics.median(times)
  over = lambda cost, limit: ' OVER' if cost > limit else ''
  word = lambda bound, yes, no: f'{bound} {yes if reached >= bound else no}'
  few = f' ({len(mine)})' if len(mine) != 5 else ''
  each = ', a core each' if {entry['cores'] for entry in mine} == {1} else ''
  parameters = mine[0]['parameters']
  return [row.limit, (f'{together["members"]} x ' if row.ensemble else '') + f'`{row.recipe}`',
          f'{reached:.2f}' if row.ensemble else summary.plus_minus(accuracy, 100, 2) + few,
          word(row.least, 'met', 'MISSED'), word(row.aim, 'met', 'missed'),
          f'{100 * together["accuracy"]:.2f}' if together else '-',
          f'{parameters:,}{over(parameters, row.parameters)}',
          f'{kept["multiply_adds"] / 1e6:.1f} M' if 'multiply_adds' in kept else '-',
          f'{seconds:.0f} ({min(times):.0f} to {max(times):.0f}{each}){over(seconds, row.seconds)}',
          *([f'{statistics.median(e["seconds"] for e in theirs):.0f} ({len(theirs)})',
             summary.plus_minus(summary.statistics([e['accuracy'] for e in theirs]), 100, 2)]
            if theirs else ['-', '-'])]


# Single entries that others published, most of them not verified: parameters, %, whose, and on
# which side of the point its name stands.
PUBLISHED = ((174e3, 93.9, 'DenseNet-BC', 'left'), (0.27e6, 95.55, 'ResNet-20, erasing', 'left'),
             (4.9e6, 94.9, 'fast.ai ResNet', 'right'), (11e6, 96.07, 'PreAct-18, FMix', 'right'),
             (9e6, 96.59, 'WRN-40-4, SE', 'right'))


def picture(records: Mapping[str, Any]) -> bytes:
  """Accuracy by parameters, with what others published, and by seconds, with PyTorch."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D
  from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter
  theme = canvas.LIGHT
  kinds = {'ours': ('this library', theme.first), 'pytorch': ('PyTorch, the same', theme.second)}
  with canvas.drawing():
    figure = Figure(figsize=(10.0, 4.6), dpi=150, facecolor=theme.surface, layout='constrained')
    FigureCanvasAgg(figure)
    size, clock = figure.subplots(1, 2, sharey=True)
    for parameters, accuracy, whose, side in PUBLISHED:
      size.plot(parameters, accuracy, 'o', color=theme.muted, markersize=4, fillstyle='none')
      size.annotate(whose, (parameters, accuracy), xytext=(6 if side == 'right' else -6, -3),
                    textcoords='offset points', color=theme.muted, fontsize=7,
                    ha='left' if side == 'right' else 'right')
    for recipe, kept in records.items():
      for who, (_, color) in kinds.items():
        found = [entry[who] for entry in kept['runs'].values() if who in entry]
        if found:
          core = ', a core' if found[0].get('cores') == 1 else ''
          _point(clock, [entry['seconds'] for entry in found], found, color, recipe + core,
                 above=who == 'ours')
        if found and who == 'ours':
          _point(size, [found[0]['parameters']], found, color, recipe)
    seconds = FuncFormatter(lambda value, _: f'{value:,.0f}')
    for axes, label, form, low, high in (
        (size, 'parameters', EngFormatter(sep=' '), 2e4, 6e7),
        (clock, 'seconds from process start, two cores', seconds, 30, 20000)):
      axes.set_xscale('log')
      axes.set_xlim(low, high)
      axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
      axes.xaxis.set_major_formatter(form)
      axes.xaxis.set_minor_formatter(NullFormatter())
      axes.set_xlabel(label, color=theme.ink)
      axes.grid(color=theme.grid, linewidth=0.5)
      axes.set_axisbelow(True)
    size.set_ylabel('test accuracy (%)', color=theme.ink)
    handles = [Line2D([], [], color=color, marker='o', linestyle='', label=name)
               for name, color in kinds.values()]
    handles.append(Line2D([], [], color=theme.muted, marker='o', fillstyle='none', linestyle='',
                          label='published, single entries'))
    figure.legend(handles=handles, loc='outside upper center', ncols=3, frameon=False, fontsize=8)
    return canvas.png(figure)


def _point(axes: Axes, costs: Sequence[float], found: Sequence[Mapping[str, Any]], color: str,
           name: str, above: bool = True) -> None:
  accuracy = summary.statistics([100 * entry['accuracy'] for entry in found])
  cost = statistics.median(costs)
  axes.errorbar(cost, accuracy['mean'], yerr=accuracy['half_width'] or 0, fmt='o', color=color,
                markersize=5, capsize=2, linewidth=1)
  axes.annotate(name, (cost, accuracy['mean']), xytext=(5, 5 if above else -11),
                textcoords='offset points', color=color, fontsize=8)


def body(experiment: record.Experiment) -> None:
  """Measures what is asked for and not on record."""
  args, path = experiment.args, experiment.output / 'results.json'
  records = files.read_json(path)['recipes'] if path.exists() else {}
  asked = record.chosen(args.recipes, list(dict.fromkeys(row.recipe for row in ROWS)), 'recipe')
  if args.envs:
    environments.make('torch', pathlib.Path(args.envs), args.pip.split())
  for row in ROWS:
    if row.recipe in asked:
      measured(experiment, row, records)


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--recipes', default='', help='which, separated by commas (default: all)')
  parser.add_argument('--envs', default='', help='folder for an environment of PyTorch, made if '
                      'missing; PyTorch then trains the rows that have it, in turn')
  parser.add_argument('--peer_seeds', type=int, default=5, help='seeds of PyTorch')
  parser.add_argument('--at_once', type=int, default=1, help='seeds that are trained at a time, '
                      'each on its share of the cores, of rows that PyTorch has no part in')
  parser.add_argument('--pip', default='', help='arguments of pip for that environment')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5, extra=extra)
