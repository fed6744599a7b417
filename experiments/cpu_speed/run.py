"""Measures this library, plain Flax, Keras and PyTorch on one CPU, in turn.

  python experiments/cpu_speed/run.py --data_dir=DIR            # about 80 minutes on two cores
  python experiments/cpu_speed/run.py parity --data_dir=DIR     # accuracy over 8 seeds, 40 minutes
  python experiments/cpu_speed/run.py --quick --data_dir=DIR    # a few minutes, to try it

Writes results.json, chart.png, layers.png and the tables in README.md (with --quick: into the work
folder only).
A command that was stopped goes on where it was; --fresh measures everything again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import environments
import plan
import processes

HERE = processes.HERE
PARTS = ('products', 'layers', 'speed', 'time_to', 'parity')


def arguments() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, prog='run.py',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('what', nargs='?', default='table', choices=('table', *PARTS, 'report'),
                      help='table (default): all but parity; or one part; report: '
                      'only writes again what was measured')
  parser.add_argument('--data_dir', default=os.environ.get('FMNIST_DATA_DIR', ''),
                      help='folder with the four .gz files (default: $FMNIST_DATA_DIR)')
  parser.add_argument('--synthetic', action='store_true',
                      help='measure on drawn images when the data set cannot be had')
  parser.add_argument('--work', type=pathlib.Path, default=HERE / 'work',
                      help='folder for measurements and caches (default: %(default)s)')
  parser.add_argument('--envs', type=pathlib.Path, help='folder for the peers\' environments '
                      '(default: below the work folder)')
  parser.add_argument('--torch_pip', default='', metavar='ARGUMENTS',
                      help='more arguments for pip when it installs torch, e.g. the index of CPU '
                      'builds')
  parser.add_argument('--quick', action='store_true', help='10,000 examples, one round')
  parser.add_argument('--rounds', type=int, help='how often each contender is measured')
  parser.add_argument('--train_examples', type=int, help='examples of an epoch, at most 55,000')
  parser.add_argument('--models', help='only these, e.g. mlp,cnn')
  parser.add_argument('--modes', help='only these, e.g. ours,torch_bf16')
  parser.add_argument('--fresh', action='store_true', help='forget what was measured')
  args = parser.parse_args()
  if args.data_dir:
    args.data_dir = str(pathlib.Path(args.data_dir).resolve())
  return args


def sized(args: argparse.Namespace) -> plan.Size:
  """How much the command line asks for."""
  size = plan.QUICK if args.quick else plan.Size()
  return dataclasses.replace(size, **{name: getattr(args, name)
                                      for name in ('rounds', 'train_examples')
                                      if getattr(args, name)})


def prepare(args: argparse.Namespace, work: pathlib.Path) -> tuple[pathlib.Path, str]:
  """The file of examples that all workers read, and the data set's name."""
  names = ['fashion_mnist', 'synthetic'] if args.synthetic else ['fashion_mnist']
  for name in names:
    path = work / f'{name}.npz'
    if path.is_file():
      return path, name
    temporary = work / f'{name}.partial.npz'
    done = subprocess.run([sys.executable, str(HERE / 'workers' / 'prepare.py'), str(temporary),
                           name, args.data_dir], env=processes.environment(work))
    if not done.returncode:
      temporary.rename(path)
      if name == 'synthetic':
        print('!' * 88 + '\nMEASURING ON SYNTHETIC IMAGES: the times mean something, the '
              'accuracies nothing.\n' + '!' * 88)
      return path, name
  sys.exit('error: the data set could not be had; see above (--synthetic measures on drawn '
           'images instead).')


def measurements(args: argparse.Namespace, size: plan.Size,
                 log: processes.Log) -> Iterator[dict[str, Any]]:
  """All that is to be measured, each decided when its turn comes."""
  import summary
  parts = PARTS[:-1] if args.what == 'table' else (args.what,)
  if 'products' in parts:
    yield {'task': 'products', 'mode': 'ours', 'library': 'ours'}
  if 'layers' in parts:
    yield from plan.layers()
  if 'speed' in parts:
    yield from plan.speed(size, lambda model, batch: summary.medians(
        log.records, f'{model}/{batch}'))
  # With --quick nobody gets far enough.
  if 'time_to' in parts and not (args.quick and args.what == 'table'):
    yield from plan.time_to(size, lambda library: summary.quickest(log.records, library))
  if 'parity' in parts:
    yield from plan.parity(size)


def say(record: dict[str, Any], seconds: float) -> None:
  """A line about a measurement."""
  found = record.get('found', {})
  where = ' '.join(str(record[k]) for k in ('task', 'model', 'batch') if k in record)
  number = record.get('seed', 0) if record['task'] == 'parity' else record.get('round', 0)
  what = record.get('error') or ', '.join(filter(None, (
      f'{min(found["epoch_seconds"]):.2f} s an epoch' if 'epoch_seconds' in found else '',
      f'{found["curve"][-1][1]:.2%} after {found["curve"][-1][0]:.1f} s'
      if found.get('curve') else '',
      f'test accuracy {found["test"]:.2%}' if 'test' in found else '')))
  print(f'{where} #{number} {record["mode"]}: {what}  [{seconds:.0f} s]', flush=True)


def write(size: plan.Size, log: processes.Log, synthetic: bool, quick: bool,
          work: pathlib.Path) -> None:
  """results.json, the chart and the tables."""
  import chart
  import limits
  import summary
  import tables
  import targets
  records = [r for r in log.records if r.get('train_examples') in (None, size.train_examples)]
  found = {'speed': summary.speed(records), 'time_to': summary.time_to(records),
           'parity': summary.parity(records)}
  versions: dict[str, str] = {}
  for record in records:
    versions |= record.get('found', {}).get('versions', {})
  for chosen in ('precision', 'operations'):  # Of one mode, whose summary has them.
    versions.pop(chosen, None)
  layers = {r['mode']: r['found']['gflops'] for r in records
            if r['task'] == 'layers' and 'found' in r}
  products = next((r['found']['gflops'] for r in records
                   if r['task'] == 'products' and 'found' in r), None)
  medians = {setting: summary.medians(records, setting) for setting in found['speed']}
  results = {
      'synthetic': synthetic, 'machine': machine(), 'versions': versions,
      'settings': dataclasses.asdict(size), 'targets': targets.targets(found), 'summary': found,
      'layers': layers,
      'limits': limits.limits(products, medians, size.train_examples) if products else {},
      'measurements': records}
  official = not (quick or synthetic)
  folder = HERE if official else work
  (folder / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
  chart.draw(folder / 'chart.png', results)
  if len(layers) == 2:
    chart.draw_layers(folder / 'layers.png', layers)
  readme = folder / 'README.md'
  if not official:
    readme.write_text(f'{tables.BEGIN}\n{tables.END}\n')
  tables.write(readme, results)
  print('\n'.join(tables.targets(results['targets'])))
  print(f'wrote results.json, chart.png and README.md in {folder}')


def machine() -> str:
  """The processor and its cores, in words."""
  name = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.is_file():
    lines = info.read_text().splitlines()
    name = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')),
                name)
  return f'{os.cpu_count()} cores of {name}, {platform.system()}'


def main() -> None:
  """Measures what is missing and writes everything."""
  args = arguments()
  work = args.work.resolve() / ('quick' if args.quick else 'full')
  work.mkdir(parents=True, exist_ok=True)
  envs = (args.envs or args.work / 'envs').resolve()
  size = sized(args)
  file = work / 'measurements.jsonl'
  if args.fresh and file.exists():
    file.rename(file.with_name(f'measurements-{time.time_ns()}.jsonl'))
  log = processes.Log(file)
  data, name = prepare(args, work)
  wanted = set(args.modes.split(',')) if args.modes else set(plan.MODES)
  models = set(args.models.split(',')) if args.models else {m for m, _ in plan.SETTINGS}
  if args.what != 'report':
    for library in plan.PEERS:
      if any(plan.MODES[mode].library == library for mode in wanted):
        environments.make(library, envs, shlex.split(args.torch_pip) if library == 'torch' else [])
    for spec in measurements(args, size, log):
      if spec['mode'] not in wanted or spec.get('model', 'cnn') not in models or log.done(spec):
        continue
      began = time.perf_counter()
      if spec['task'] in ('products', 'layers'):
        script = 'products.py' if spec['task'] == 'products' else f'layers_{spec["library"]}.py'
        record = {**spec, **processes.worker(script, spec['library'], '{}', work, envs)}
      elif spec['task'] == 'time_to' and spec['library'] == 'ours':
        record = processes.command_line(spec, name, args.data_dir, work)
      else:
        record = processes.measure(spec, data, work, envs)
      log.append(record)
      say(record, time.perf_counter() - began)
  failed = collections.Counter(r['mode'] for r in log.records if 'error' in r)
  if failed:
    print(f'failed, to be tried again by the same command: {dict(failed)}')
  write(size, log, name == 'synthetic', args.quick, work)


if __name__ == '__main__':
  main()
