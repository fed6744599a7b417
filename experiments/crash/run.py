"""Kills runs, fails system calls, sends signals, breaks what is read; see README.md.

  python experiments/crash/run.py               # all parts, about two hours on two cores
  python experiments/crash/run.py kill fault    # some of them
  python experiments/crash/run.py --quick       # a trial of minutes; changes nothing here

A command that was stopped goes on where it was; --fresh tries everything again. It needs Linux and
gcc.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import platform
import shutil
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import command, machine
from fmnist_jax.errors import UserError
from fmnist_jax.interrupt import Interrupt

PARTS = ('signal', 'broken', 'edits', 'readers', 'claims', 'fault', 'kill', 'population', 'search',
         'network')


def arguments() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, prog='run.py',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('parts', nargs='*', metavar='PART',
                      help=f'{", ".join(PARTS)} (default: all), or report, which only writes again '
                      'what was found')
  parser.add_argument('--work', default='', help='folder for runs and notes (default: '
                      'runs/experiments/crash, for a trial runs/experiments-quick/crash)')
  parser.add_argument('--quick', action='store_true', help='a few of each: everything goes to the '
                      'work folder, nothing into this one')
  parser.add_argument('--fresh', action='store_true', help='forget what was tried')
  args = parser.parse_args()
  for part in args.parts:
    if part not in (*PARTS, 'report'):
      parser.error(f'there is no part {part}; the parts are {", ".join(PARTS)} and report')
  return args


def main(interrupt: Interrupt) -> None:
  """Tries what is missing and writes everything."""
  args = arguments()
  if not shutil.which('gcc') or platform.system() != 'Linux':
    raise UserError('This needs Linux and gcc, which makes the library that watches.')
  machine.prepare_environment()
  os.environ['JAX_PLATFORMS'] = 'cpu'
  # Told in the notes, where it matters.
  logging.getLogger('absl').propagate = False
  import summary
  from campaign import Campaign
  work = pathlib.Path(args.work or (
      'runs/experiments-quick/crash' if args.quick else 'runs/experiments/crash')).absolute()
  if args.fresh:
    shutil.rmtree(work, ignore_errors=True)
  experiment = record.Experiment(pathlib.Path(__file__).resolve().parent, work.parent, args,
                                 interrupt)
  parts = args.parts or PARTS
  with experiment.clock('crash') as seconds:
    campaign = Campaign(work)
    for part in parts:
      if part != 'report':
        _try(part, campaign, args.quick)
    found = summary.summarize(campaign)
    kept = _kept(found, experiment.output / 'results.json')
    results: dict[str, Any] = {**found, **kept, 'seconds': seconds(),
                               'versions': machine.versions(), 'device': _processor()}
  text = f'{summary.text(results)}\n\n{record.where(results)}, Linux {platform.release()}.'
  if earlier := [part for part in PARTS if part in kept]:
    text += f' Of an earlier campaign are: {", ".join(earlier)}.'
  experiment.save(results, text)


def _kept(found: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """What an earlier campaign found of parts that were not tried in this one."""
  earlier = json.loads(path.read_text()) if path.exists() else {}
  return {name: earlier[name] for name, value in found.items()
          if name in earlier and name != 'wrong' and not value}


def _try(part: str, campaign: Any, quick: bool) -> None:
  import broken
  import claims
  import edits
  import faults
  import kills
  import networks
  import populations
  import readers
  import searches
  import signals
  if part == 'signal':
    signals.send(campaign, 1 if quick else 5)
  elif part == 'broken':
    broken.damage(campaign, 2 if quick else 10)
    broken.command_line(campaign)
  elif part == 'edits':
    edits.edit(campaign, 1 if quick else 5)
  elif part == 'readers':
    readers.read(campaign, 50 if quick else 5_000)
  elif part == 'claims':
    claims.read(campaign)
  elif part == 'fault':
    faults.fault(campaign, 8 if quick else 80)
    faults.tmpfs(campaign, 2 if quick else 8)
  elif part == 'network':
    networks.disturb(campaign, 1 if quick else 3)
  elif part == 'population':
    populations.kill(campaign, 4 if quick else 50)
  elif part == 'search':
    searches.kill(campaign, 3 if quick else 50)
  else:
    kills.kill(campaign, 12 if quick else 200, 1 if quick else 15)


def _processor() -> str:
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
  return f'{os.cpu_count()} cores of {names[0] if names else platform.machine()}'


if __name__ == '__main__':
  command.run(main, leave=False)
