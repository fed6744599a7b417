"""How many models a minute, trained each way; see README.md."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import config_file, settings
from fmnist_jax.errors import ConfigError
from fmnist_jax.population import comparison, summary
from fmnist_jax.storage import files

WAYS = ('separate processes', 'independent', 'vectorized')


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


def failed(ended: subprocess.Popen | subprocess.CompletedProcess, errors: bytes) -> ConfigError:
  """What a process said last, as an error of ours."""
  said = errors.decode(errors='replace').strip()[-500:]
  return ConfigError(f'{" ".join(ended.args)} ended with {ended.returncode}: {said}')


def measure(experiment: record.Experiment, work: pathlib.Path, model: str, way: str,
            members: int) -> float:
  """Wall seconds from the first process's start to the last one's end, nothing compiled before."""
  cache = work.with_name('cache')
  for leftover in (work, cache):
    shutil.rmtree(leftover, ignore_errors=True)
  work.parent.mkdir(parents=True, exist_ok=True)
  environment = {**os.environ, 'XDG_CACHE_HOME': str(cache.resolve()),
                 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  if way == WAYS[0]:
    commands = [command(model, work / str(seed), 1, seed, 'independent', experiment.args)
                for seed in range(members)]
  else:
    commands = [command(model, work, members, 0, way, experiment.args)]
  running: list[subprocess.Popen] = []
  with tempfile.TemporaryFile() as errors:
    began = time.perf_counter()
    try:
      while commands or running:
        while commands and len(running) < 2:
          running.append(subprocess.Popen(commands.pop(0), env=environment,
                                          stdout=subprocess.DEVNULL, stderr=errors))
        for process in [process for process in running if process.poll() is not None]:
          running.remove(process)
          if process.returncode:
            errors.seek(0)
            raise failed(process, errors.read())
        experiment.interrupt.check()
        time.sleep(0.02)
      return time.perf_counter() - began
    finally:
      for process in running:
        process.terminate()
      for process in running:
        process.wait()
      shutil.rmtree(cache, ignore_errors=True)


def prepare(experiment: record.Experiment, model: str) -> dict[str, Any]:
  """Has the data prepared, which happens once on a machine, before anything is timed.

  Returns:
    The population.json of a short run, which says on what machine this is.
  """
  work = experiment.runs / 'population_speed' / 'prepare'
  shutil.rmtree(work, ignore_errors=True)
  args = argparse.Namespace(**{**vars(experiment.args), 'epochs': 1})
  ended = subprocess.run(command(model, work, 1, 0, 'independent', args), check=False,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  if ended.returncode:
    raise failed(ended, ended.stderr)
  found = files.read_json(work / 'population.json')
  shutil.rmtree(work)
  return found


def place(experiment: record.Experiment, model: str, one: Mapping[str, Any]) -> pathlib.Path:
  """Where a model's measurements lie: another one if machine, versions, data or recipe change."""
  args = experiment.args
  what = [one['device'], one['versions'], one['data_sha256'], args.epochs, args.quick,
          dataclasses.asdict(config_file.load(model))]
  digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
  return experiment.runs / 'population_speed' / f'{model}-{digest}'


def read(directory: pathlib.Path) -> dict[str, list[float]]:
  """'way/members' -> wall seconds, a value a round."""
  path = directory / 'measurements.json'
  return json.loads(path.read_text()) if path.exists() else {}


def body(experiment: record.Experiment) -> None:
  """Measures what has not been measured, writes the table."""
  args = experiment.args
  models = args.models.split(',')
  sizes = settings.parse('--members', args.members, settings.Kind(int, True, False))
  if min(*sizes, args.epochs, args.rounds) < 1:
    raise ConfigError('--members, --epochs and --rounds must be at least 1.')
  for model in models:
    config_file.load(model)  # All are there, before hours are spent on the first.
  if args.quick:
    args.epochs, sizes = 1, sizes[:2]
  one = prepare(experiment, models[0])
  for number, model, members, way in itertools.product(range(args.rounds), models, sizes, WAYS):
    directory = place(experiment, model, one)
    measured = read(directory)
    walls = measured.setdefault(f'{way}/{members}', [])
    if len(walls) > number:
      continue
    wall = measure(experiment, directory / f'{way.replace(" ", "_")}-{members}', model, way,
                   members)
    walls.append(wall)
    files.write_json(directory / 'measurements.json', measured)
    print(f'{model}, {members} members, {way}: {wall:.1f} s, {60 * members / wall:.2f} a minute',
          flush=True)
  # What other calls measured, of other models or on other machines, stays in the table.
  before = experiment.output / 'results.json'
  results = files.read_json(before) if before.exists() else {'devices': {}}
  entry = results['devices'].setdefault(one['device'], {'models': {}})
  entry |= {'versions': one['versions'], 'synthetic': one['synthetic']}
  for model in models:
    directory = place(experiment, model, one)
    entry['models'][model] = {'epochs': args.epochs, 'wall_seconds': read(directory),
                              'agreement': agreement(directory)}
  text = '\n\n'.join(section(device, found) for device, found in results['devices'].items())
  experiment.save(results, f'{text}\n\n![models a minute by the number of members](rates.png)',
                  {'rates.png': picture(results['devices'])})


def agreement(directory: pathlib.Path) -> dict[str, Any] | None:
  """The results of the largest population that was trained both ways."""
  sizes = [{int(key.split('/')[1]) for key in read(directory) if key.startswith(way)}
           for way in WAYS[1:]]
  both = sizes[0] & sizes[1]
  if not both:
    return None
  systems = comparison.read([directory / f'{way}-{max(both)}' for way in WAYS[1:]])
  return {**{way: comparison.row(system)['accuracy'] for way, system in zip(WAYS[1:], systems)},
          'difference': comparison.difference(*systems)}


def rate(walls: Mapping[str, list[float]], way: str, members: int) -> float | None:
  """Models a minute, by the median of the rounds; None where it was not measured."""
  several = walls.get(f'{way}/{members}')
  return 60 * members / statistics.median(several) if several else None


def measured_sizes(found: Mapping[str, Any]) -> list[int]:
  """The sizes that were measured on a device, of any model."""
  return sorted({int(key.split('/')[1]) for entry in found['models'].values()
                 for key in entry['wall_seconds']})


def section(device: str, found: Mapping[str, Any]) -> str:
  """The table of a device and what is said below it."""
  models = found['models']
  rows = [['members', *(f'`{model}`, {way}' for model in models for way in WAYS)]]
  for members in measured_sizes(found):
    row = [str(members)]
    for entry in models.values():
      base = rate(entry['wall_seconds'], WAYS[0], members)
      for way in WAYS:
        value = rate(entry['wall_seconds'], way, members)
        row.append('-' if value is None else f'{value:.2f}' + (
            f' ({value / base:.2f} x)' if way != WAYS[0] and base else ''))
    rows.append(row)
  lines = []
  for model, entry in models.items():
    walls = entry['wall_seconds']
    rounds = [len(several) for several in walls.values()]
    total = sum(sum(several) for several in walls.values())
    spreads = [max(several) / min(several) - 1 for several in walls.values() if len(several) > 1]
    spread = (f', at most {100 * max(spreads):.0f} % apart' if spreads else '')
    times = ' to '.join(map(str, sorted({min(rounds), max(rounds)})))
    lines.append(f'- `{model}`: {entry["epochs"]} epochs, each measured {times} x{spread}; '
                 f'{record.duration(total)} in all.')
    if entry['agreement']:
      one, other = (entry['agreement'][way] for way in WAYS[1:])
      lines[-1] += (
          f' Test accuracy of the {len(one["values"])} members of the largest: independent '
          f'{summary.plus_minus(one, 100, 2)} % (standard deviation '
          f'{100 * (one["std"] or 0):.2f}), vectorized {summary.plus_minus(other, 100, 2)} % '
          f'({100 * (other["std"] or 0):.2f}). '
          f'{entry["agreement"]["difference"]["words"]}')
  drawn = ' SYNTHETIC images.' if found['synthetic'] else ''
  machine = record.where({'device': device, 'versions': found['versions']})
  words = '\n'.join(lines)
  return (f'{record.table(rows)}\n\n{machine}.{drawn} Models a minute, of several measurements '
          'the median; in brackets: how many times the rate of separate processes.\n\n'
          f'{words}')


def picture(devices: Mapping[str, Any]) -> bytes:
  """A row a device, a column a model: models a minute by members, a line a way."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  most = max(len(found['models']) for found in devices.values())
  with canvas.drawing():
    figure = Figure(figsize=(3.6 * most + 0.4, 2.9 * len(devices) + 0.3), dpi=150,
                    facecolor=theme.surface, layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(devices), most, squeeze=False)
    for axes in grid.flat:
      axes.set_axis_off()
    for row, (device, found) in zip(grid, devices.items()):
      sizes = measured_sizes(found)
      for axes, (model, entry) in zip(row, found['models'].items()):
        axes.set_axis_on()
        for way, color in zip(WAYS, (theme.third, theme.first, theme.second)):
          points = [(members, value) for members in sizes
                    if (value := rate(entry['wall_seconds'], way, members)) is not None]
          axes.plot(*zip(*points), color=color, marker='o', markersize=4, label=way)
        axes.set_xscale('log', base=2)
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_title(f'{model}, {device}', fontsize=8, loc='left', color=theme.ink)
        axes.set_xlabel('members', color=theme.ink)
        axes.set_ylabel('models a minute', color=theme.ink)
    grid[0, 0].legend(frameon=False, fontsize=8)
    return canvas.png(figure)


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--models', default='mlp,cnn', help='configs, separated by commas')
  parser.add_argument('--members', default='1,2,4,8,16', help='sizes, separated by commas')
  parser.add_argument('--epochs', type=int, default=20, help='of every run')
  parser.add_argument('--rounds', type=int, default=1, help='how often each is measured')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=1, extra=extra)
