"""What a search finds, beside random search and shipped settings, and how fast; see README.md."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, machine, metrics
from fmnist_jax.errors import ConfigError
from fmnist_jax.population import summary
from fmnist_jax.storage import files

WAYS = {'tpe': ('tpe', 'none'), 'random': ('random', 'none'), 'tpe, median': ('tpe', 'median')}
# Images, epochs: what a trial costs.
BUDGETS = {'mlp': (12_000, 5), 'cnn': (12_000, 3)}
RATES, RATED = 16, (20_000, 6)  # Trials whose rate is measured, and what one costs.


def config(experiment: record.Experiment, model: str, seed: int,
           budget: tuple[int, int] | None = None) -> config_lib.Config:
  """A shipped config, on fewer images and for fewer epochs."""
  images, epochs = (3000, 2) if experiment.args.quick else budget or BUDGETS[model]
  return config_lib.replace(config_file.load(model), {
      'data.data_dir': experiment.args.data_dir, 'data.train_examples': images,
      'data.validation_examples': 500 if experiment.args.quick else 5000, 'train.epochs': epochs,
      'train.seed': seed})


def searched(experiment: record.Experiment, model: str, way: str,
             repetition: int) -> dict[str, Any]:
  """A search, and its best trial measured on the test images with fresh seeds."""
  from fmnist_jax.search import search as search_lib
  from fmnist_jax.search import space as space_lib
  args = experiment.args
  sampler, pruner = WAYS[way]
  own = config(experiment, model, 100 * repetition)
  name = f'search/{model}-{sampler}-{pruner}-{repetition}'
  machine.setup(compile_cache=True)
  kept = experiment.runs / f'{name}.json'
  if kept.exists():
    return json.loads(kept.read_text())
  print(f'-- {name}', flush=True)
  with experiment.clock(name) as clock:
    found = search_lib.search(
        own, space_lib.load(model, [], []), experiment.runs / name,
        how=search_lib.How(trials=args.trials, sampler=sampler, pruner=pruner),
        signals=experiment.interrupt)
    seconds = clock()
  best = config_file.load(str(experiment.runs / name / 'best.py'))
  measured = fresh(experiment, f'{name}-best', best, 100 * repetition + 50)
  # A step a trial, in the order in which they ended: epochs so far, best accuracy so far.
  steps, epochs, accuracy = [], 0, 0.0
  for trial in found['trials']:
    epochs += sum(map(len, trial['validation_accuracy']))
    accuracy = max(accuracy, trial['accuracy'] or 0.0)
    steps.append([epochs, accuracy])
  value = {'validation': accuracy, 'test': measured['accuracy']['mean'], 'steps': steps,
           'seconds': seconds,
           'ended': {end: sum(trial['ended'] == end for trial in found['trials'])
                     for end in ('finished', 'pruned', 'diverged', 'refused')},
           'params': found['trials'][[trial['name'] for trial in found['trials']].index(
               found['best'])]['params'],
           **{key: measured[key] for key in ('device', 'versions', 'synthetic', 'examples')}}
  files.write_json(kept, value)
  shutil.rmtree(experiment.runs / name / 'trials')  # Gigabytes.
  return value


def fresh(experiment: record.Experiment, name: str, own: config_lib.Config,
          seed: int) -> dict[str, Any]:
  """Accuracy on the test images over `--seeds` seeds."""
  from fmnist_jax.population.train import train_population
  found = train_population(config_lib.replace(own, {'train.seed': seed}), experiment.runs / name,
                           seeds=experiment.args.seeds, signals=experiment.interrupt)
  return {**found, 'accuracy': found['groups'][0]['accuracy']}


def rates(experiment: record.Experiment) -> dict[str, float]:
  """Seconds of a search of `RATES` trials of `mlp`, and of as many processes, two at a time."""
  path = experiment.runs / 'search' / 'rates.json'
  if path.exists():
    return json.loads(path.read_text())
  trials = 2 if experiment.args.quick else RATES
  own = config(experiment, 'mlp', 0, RATED)
  own = config_lib.replace(own, {'evaluate.split': 'validation'})
  found: dict[str, float] = {'trials': trials}
  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder)
    files.write_json(base / 'config.json', config_lib.to_json(own))
    environment = {**os.environ, 'XDG_CACHE_HOME': str(base / 'cache')}
    command = [sys.executable, '-m', 'fmnist_jax.main', f'--config={base / "config.json"}']
    search = [sys.executable, '-m', 'fmnist_jax.search', f'--config={base / "config.json"}',
              '--space=mlp', f'--trials={trials}', '--sampler=random', '--pruner=none']
    # oneDNN's operations are compiled once on a machine.
    subprocess.run([*command, f'--workdir={base / "first"}', '--config.train.epochs=1'], check=True,
                   env=environment, stdout=subprocess.DEVNULL)
    shutil.rmtree(base / 'cache' / 'fmnist_jax' / 'xla', ignore_errors=True)
    began = time.perf_counter()
    subprocess.run([*search, f'--workdir={base / "search"}'], check=True, env=environment,
                   stdout=subprocess.DEVNULL)
    found['search'] = time.perf_counter() - began
    shutil.rmtree(base / 'cache' / 'fmnist_jax' / 'xla', ignore_errors=True)
    drawn = json.loads((base / 'search' / 'search.json').read_text())['trials']
    began, running = time.perf_counter(), []
    for number, trial in enumerate(drawn):
      if len(running) == 2:
        running.pop(0).wait()
      running.append(subprocess.Popen(
          [*command, f'--workdir={base / str(number)}',
           *(f'--config.{name}={value}' for name, value in trial['params'].items())],
          env=environment, stdout=subprocess.DEVNULL))
    for process in running:
      process.wait()
    found['processes'] = time.perf_counter() - began
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(path, found)
  return found


def reached(steps: list[list[float]], accuracy: float) -> int | None:
  """Epochs that were trained until a trial of this accuracy had ended."""
  return next((int(epochs) for epochs, best in steps if best >= accuracy), None)


def body(experiment: record.Experiment) -> None:
  """Searches what is missing, repetition by repetition, and writes the tables."""
  args = experiment.args
  if args.trials < 2:
    raise ConfigError('--trials must be at least 2.')
  if args.quick:
    args.trials, args.seeds, args.repetitions = 4, 2, 1
  if args.rates:
    print(rates(experiment))
    return
  plan = [(model, way, repetition) for repetition in range(args.repetitions)
          for model, way in itertools.product(BUDGETS, WAYS)
          if model == 'mlp' or (repetition == 0 and way in ('tpe', 'random'))]
  for one in plan:
    if not args.report:
      searched(experiment, *one)
  shipped = {model: fresh(experiment, f'search/{model}-shipped', config(experiment, model, 50),
                          50)['accuracy'] for model in BUDGETS}
  write(experiment, shipped)


def entries(experiment: record.Experiment) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """What was searched: model -> way -> repetitions."""
  found: dict[str, dict[str, list[dict[str, Any]]]] = {}
  for model, (way, (sampler, pruner)) in itertools.product(BUDGETS, WAYS.items()):
    paths = [experiment.runs / f'search/{model}-{sampler}-{pruner}-{repetition}.json'
             for repetition in range(experiment.args.repetitions)]
    several = [json.loads(path.read_text()) for path in paths if path.exists()]
    if several:
      found.setdefault(model, {})[way] = several
  return found


def write(experiment: record.Experiment, shipped: dict[str, dict[str, Any]]) -> None:
  """results.json and the tables."""
  found = entries(experiment)
  rows = [['', 'repetitions', 'best validation accuracy %', 'its settings, fresh seeds, test %',
           'epochs trained', 'seconds']]
  for model, ways in found.items():
    rows.append([f'`{model}`, shipped settings', '-', '-',
                 summary.plus_minus(shipped[model], 100, 2), '-', '-'])
    for way, several in ways.items():
      columns = [summary.statistics([one[key] for one in several])
                 for key in ('validation', 'test')]
      costs = [summary.statistics([float(one['steps'][-1][0]) for one in several]),
               summary.statistics([one['seconds'] for one in several])]
      rows.append([f'`{model}`, {way}', str(len(several)),
                   *(summary.plus_minus(one, 100, 2) for one in columns),
                   *(summary.plus_minus(one, 1, 0) for one in costs)])
  lessons = [line for model, ways in found.items()
             for line in _lessons(model, ways, shipped[model])]
  path = experiment.runs / 'search' / 'rates.json'
  speed = json.loads(path.read_text()) if path.exists() else None
  if speed:
    rate = {way: 3600 * speed['trials'] / speed[way] for way in ('search', 'processes')}
    lessons.append(
        f'`mlp`, {speed["trials"]} trials of {RATED[1]} epochs of {RATED[0] - 5000:,} images: '
        f'{rate["search"]:,.0f} an hour by one search, '
        f'{rate["processes"]:,.0f} by as many processes of fmnist_jax.main, two at a time: '
        f'{rate["search"] / rate["processes"]:.1f} times.')
  one = found['mlp']['tpe'][0]
  results = {'searches': found, 'shipped': shipped, 'rates': speed, 'lessons': lessons,
             'budgets': {model: dict(zip(('train_examples', 'epochs'), budget))
                         for model, budget in BUDGETS.items()},
             **{key: one[key] for key in ('device', 'versions', 'synthetic')}}
  listed = '\n'.join(f'- {line}' for line in lessons)
  drawn = ' SYNTHETIC' if one['synthetic'] else ''
  text = (f'{record.table(rows)}\n\n{experiment.args.trials} trials a search. Means over '
          'repetitions with 95 % intervals (t), where there are several; of the shipped settings '
          f'over {experiment.args.seeds} seeds. {one["examples"]:,}{drawn} test images. '
          f'{record.where(one)}.\n\n{listed}\n\n![best validation accuracy by epochs trained]'
          '(history.png)')
  experiment.save(results, text, {'history.png': picture(found)})


def _lessons(model: str, ways: dict[str, list[dict[str, Any]]],
             shipped: dict[str, Any]) -> list[str]:
  """What the numbers say of a model."""
  lines = []
  test = lambda way: [100 * one['test'] for one in ways[way]]
  for way in ways:
    if way != 'random' and 'random' in ways:
      several = list(zip(test('random'), test(way)))
      change = metrics.paired_difference(*map(list, zip(*several)))
      lines.append(f'`{model}`, {way} beside random search, test accuracy of what was found: '
                   f'{record.points(change)} points{_shown(change)}')
  gains = [value - 100 * shipped['mean'] for value in test('tpe')]
  gain = metrics.mean_interval(gains)
  lines.append(f'`{model}`, what tpe found beside the shipped settings at this budget: '
               f'{record.points(gain)} points on the test images.')
  if 'tpe, median' in ways:
    change = metrics.paired_difference(test('tpe'), test('tpe, median'))
    epochs, seconds = (
        sum(cost(one) for one in ways['tpe, median']) / sum(cost(one) for one in ways['tpe'])
        for cost in (lambda one: one['steps'][-1][0], lambda one: one['seconds']))
    lines.append(f'`{model}`, pruning: as many trials in {epochs:.0%} of the epochs and '
                 f'{seconds:.0%} of the seconds; test accuracy of what was found: '
                 f'{record.points(change)} points{_shown(change)}')
    target = min(one['validation'] for several in ways.values() for one in several)
    for way, several in ways.items():
      needed = [float(reached(one['steps'], target) or 0) for one in several]
      lines.append(f'`{model}`, {way}: {target:.2%} validation accuracy was reached after '
                   f'{summary.plus_minus(summary.statistics(needed), 1, 0)} epochs of training.')
  return lines


def _shown(change: metrics.Interval) -> str:
  """The end of a sentence with a change."""
  if change.half_width is None:
    return ', of one search each.'
  return '.' if abs(change.mean) > change.half_width else ', which shows no difference.'


def picture(found: dict[str, dict[str, list[dict[str, Any]]]]) -> bytes:
  """A panel a model: the best so far by epochs trained, a line a repetition."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  with canvas.drawing():
    figure = Figure(figsize=(4.2 * len(found), 3.2), dpi=150, facecolor=theme.surface,
                    layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (model, ways) in zip(panels, found.items()):
      floor = 1.0
      for (way, several), color in zip(ways.items(), (theme.first, theme.muted, theme.second)):
        for number, one in enumerate(several):
          axes.step([epochs for epochs, _ in one['steps']],
                    [100 * best for _, best in one['steps']], where='post', color=color,
                    linewidth=1.2, label=way if not number else None)
          floor = min(floor, one['steps'][len(one['steps']) // 10][1])
      axes.set_ylim(bottom=100 * floor)
      axes.grid(color=theme.grid, linewidth=0.8)
      axes.set_title(model, fontsize=9, loc='left', color=theme.ink)
      axes.set_xlabel('epochs trained, all trials together', color=theme.ink)
      axes.legend(frameon=False, fontsize=8, loc='lower right')
    panels[0].set_ylabel('best validation accuracy (%)', color=theme.ink)
    return canvas.png(figure)


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--trials', type=int, default=100, help='of each search')
  parser.add_argument('--repetitions', type=int, default=5, help='of each search over mlp')
  parser.add_argument('--rates', action='store_true', help='only measures trials an hour')
  parser.add_argument('--report', action='store_true', help='only writes again what was found')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=3, extra=extra)
