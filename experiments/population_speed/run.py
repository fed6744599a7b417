"""How many models a minute, trained each way; see README.md."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import compare, summary, workdir
from fmnist_jax.errors import ConfigError

WAYS = ('separate processes', 'sequential', 'vectorized')


def command(model: str, directory: pathlib.Path, seeds: int, first: int, mode: str,
            args: argparse.Namespace) -> list[str]:
  """The command line of a population."""
  changes = {'train.epochs': args.epochs, 'train.seed': first}
  if args.quick:
    changes |= {name: value for name, value in record.QUICK.items() if name != 'train.epochs'}
  if args.data_dir:
    changes['data.data_dir'] = args.data_dir
  return [sys.executable, '-m', 'fmnist_jax.population', f'--config={model}', f'--seeds={seeds}',
          f'--workdir={directory}', f'--mode={mode}',
          *(f'--config.{name}={value}' for name, value in changes.items())]


def measure(experiment: record.Experiment, model: str, way: str, members: int) -> float:
  """Wall seconds from the first process's start to the last one's end, nothing compiled before."""
  work = experiment.runs / 'population_speed' / f'{model}-{way.replace(" ", "_")}-{members}'
  cache = work.with_name('cache')
  for leftover in (work, cache):
    shutil.rmtree(leftover, ignore_errors=True)
  work.parent.mkdir(parents=True, exist_ok=True)
  environment = {**os.environ, 'XDG_CACHE_HOME': str(cache.resolve()),
                 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  if way == 'separate processes':
    commands = [command(model, work / str(seed), 1, seed, 'sequential', experiment.args)
                for seed in range(members)]
  else:
    commands = [command(model, work, members, 0, way, experiment.args)]
  running: list[subprocess.Popen] = []
  began = time.perf_counter()
  try:
    while commands or running:
      while commands and len(running) < 2:
        running.append(subprocess.Popen(commands.pop(0), env=environment,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
      for process in [process for process in running if process.poll() is not None]:
        running.remove(process)
        if process.returncode:
          raise ConfigError(f'{" ".join(process.args)} ended with {process.returncode}: '
                            f'{process.stderr.read().decode().strip()[-500:]}')
      experiment.interrupt.check()
      time.sleep(0.02)
    return time.perf_counter() - began
  finally:
    for process in running:
      process.terminate()
    for process in running:
      process.wait()
    shutil.rmtree(cache, ignore_errors=True)


def prepare(experiment: record.Experiment, model: str) -> None:
  """Has the data prepared, which happens once on a machine, before anything is timed."""
  work = experiment.runs / 'population_speed' / 'prepare'
  shutil.rmtree(work, ignore_errors=True)
  args = argparse.Namespace(**{**vars(experiment.args), 'epochs': 1})
  subprocess.run(command(model, work, 1, 0, 'sequential', args), check=True,
                 stdout=subprocess.DEVNULL)
  shutil.rmtree(work)


def body(experiment: record.Experiment) -> None:
  """Measures what has not been measured, writes the table."""
  args = experiment.args
  models, sizes = args.models.split(','), [int(size) for size in args.members.split(',')]
  if args.quick:
    args.epochs, sizes = 1, sizes[:2]
  kept = experiment.runs / 'population_speed' / 'measurements.json'
  measured = json.loads(kept.read_text()) if kept.exists() else {}
  with experiment.clock() as seconds:
    todo = [key for key in itertools.product(models, sizes, WAYS)
            if '/'.join(map(str, (*key, args.epochs))) not in measured]
    if todo:
      prepare(experiment, models[0])
    for model, members, way in todo:
      wall = measure(experiment, model, way, members)
      measured['/'.join(map(str, (model, members, way, args.epochs)))] = wall
      kept.parent.mkdir(parents=True, exist_ok=True)
      workdir.write_json(kept, measured)
      print(f'{model}, {members} members, {way}: {wall:.1f} s, {60 * members / wall:.2f} a minute',
            flush=True)
    rates = {model: {way: {str(members): 60 * members / measured[f'{model}/{members}/{way}/'
                                                                 f'{args.epochs}']
                           for members in sizes} for way in WAYS} for model in models}
    agreement = {}
    for model in models:
      places = [experiment.runs / 'population_speed' / f'{model}-{way}-{sizes[-1]}'
                for way in WAYS[1:]]
      apart, together = compare.read(places)
      agreement[model] = {'sequential': compare.row(apart)['accuracy'],
                          'vectorized': compare.row(together)['accuracy'],
                          'difference': compare.difference(apart, together)}
    one = workdir.read_json(places[0] / 'population.json')
    results = {'models_a_minute': rates, 'epochs': args.epochs, 'agreement': agreement,
               'seconds': seconds(), 'device': one['device'], 'versions': one['versions'],
               'synthetic': one['synthetic']}
  rows = [['members', *(f'`{model}`, {way}' for model in models for way in WAYS)]]
  for members in sizes:
    row = [str(members)]
    for model in models:
      base = rates[model][WAYS[0]][str(members)]
      for way in WAYS:
        rate = rates[model][way][str(members)]
        row.append(f'{rate:.2f}' + ('' if way == WAYS[0] else f' ({rate / base:.2f} x)'))
    rows.append(row)
  same = '\n'.join(
      f'- `{model}`, {sizes[-1]} seeds, test accuracy: sequential '
      f'{summary.plus_minus(entry["sequential"], 100, 2)} % (std '
      f'{100 * (entry["sequential"]["std"] or 0):.2f}), vectorized '
      f'{summary.plus_minus(entry["vectorized"], 100, 2)} % (std '
      f'{100 * (entry["vectorized"]["std"] or 0):.2f}). {entry["difference"]["words"]}'
      for model, entry in agreement.items())
  text = (f'Models a minute, {args.epochs} epochs each; in brackets against separate processes.\n\n'
          f'{record.table(rows)}\n\n{record.machine(one)}. {record.took(results["seconds"])}\n\n'
          f'Members trained together are as good as members trained apart:\n\n{same}')
  experiment.save(results, text)


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--models', default='mlp,cnn', help='configs, separated by commas')
  parser.add_argument('--members', default='1,2,4,8,16', help='sizes, separated by commas')
  parser.add_argument('--epochs', type=int, default=20, help='of every run')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=1, extra=extra)
