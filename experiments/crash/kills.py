"""kill -9 at any time and at chosen ones, until the run is finished all the same."""

from __future__ import annotations

import random
import shutil
import time
from typing import Any

import same
import watch
from campaign import Campaign

PHASES = ('start-up', 'data', 'compilation', 'epoch', 'evaluation', 'save', 'rename', 'report')
_KILLS_A_RUN = 20  # Then it may finish, if it has not before.


def kill(campaign: Campaign, kills: int, each: int) -> None:
  """Kills runs until there have been `kills`, and `each` in every phase; notes each process."""
  watcher, records = campaign.watcher, campaign.records('kill')
  number = 1 + max((record['run'] for record in records), default=-1)
  while True:
    counts = {phase: sum(r['phase'] == phase for r in records) for phase in PHASES}
    if sum(counts.values()) >= kills and min(counts.values()) >= each:
      return
    killed = _one_run(campaign, watcher.work / f'kill-{number}', number, kills, each)
    records += killed
    number += 1


def _one_run(campaign: Campaign, workdir: Any, number: int, kills: int,
             each: int) -> list[dict[str, Any]]:
  """A run, killed and started again until it is finished."""
  chance = random.Random(number)
  watcher, records, own = campaign.watcher, campaign.records('kill'), []
  folders = {'data': 'data', 'cache': 'cache'}
  shutil.rmtree(workdir, ignore_errors=True)
  cold = f'kill-cache-{number}'
  while True:
    counts = {phase: sum(r['phase'] == phase for r in records + own) for phase in PHASES}
    wanting = [phase for phase in PHASES if counts[phase] < each]
    over = sum(counts.values()) >= kills and not wanting
    target = 'none' if over or len(own) >= _KILLS_A_RUN else (
        'any' if not wanting or chance.random() < 0.3 else chance.choice(wanting))
    if target == 'data':  # Prepared copies are only made once.
      folders['data'] = f'kill-data-{number}'
      shutil.rmtree(watcher.work / folders['data'], ignore_errors=True)
    if target == 'compilation':  # Half the time with what the last kill left there.
      folders['cache'] = cold
      if chance.random() < 0.5:
        shutil.rmtree(watcher.work / cold, ignore_errors=True)
    elif target != 'none' and chance.random() < 0.7:
      folders['cache'] = 'cache'
    usual = campaign.cold if folders['cache'] == cold else campaign.warm
    if target == 'data':
      usual = campaign.cold
    when = watch.aim(target, usual, chance) if target != 'none' else lambda phase, at: None
    life = watcher.live(watch.LONG, workdir, when=when, **folders)
    wrong = same.unreadable(workdir)
    if 'Traceback' in life.out + life.err:
      wrong.append(f'a traceback: {life.err[-2000:]}')
    record = {'run': number, 'target': target, 'phase': life.phase, 'acted': life.acted,
              'lost': life.lost, 'began': life.began, 'seconds': life.seconds}
    if life.acted is None or life.code != -9:
      record['phase'] = ''  # It ended by itself.
      record['code'] = life.code
      if life.code:
        wrong.append(f'exit code {life.code}: {life.err[-2000:]}')
      else:
        wrong += same.differences(campaign.whole, same.outcome(workdir))
      record['leftovers'] = same.leftovers(
          workdir, *(watcher.work / name for name in set(folders.values())))
    elif life.phase == 'end':
      record['phase'] = 'report'  # Everything is written; the process is about to leave.
    record['wrong'] = wrong
    campaign.note('kill', record)
    own.append(record)
    print(f'kill {sum(counts.values()) + bool(record["phase"])} run {number}: '
          f'{record["phase"] or "finished"} ({target})  {"; ".join(wrong)}', flush=True)
    if wrong and workdir.exists():
      workdir.rename(workdir.with_name(f'{workdir.name}-wrong-{int(time.time())}'))
    if wrong or not record['phase']:
      for name in (workdir.name, cold, f'kill-data-{number}'):
        shutil.rmtree(watcher.work / name, ignore_errors=True)
      return own
