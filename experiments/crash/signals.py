"""SIGTERM and SIGINT in every phase of a run."""

from __future__ import annotations

import random
import shutil
import signal

import same
import watch
from campaign import Campaign

PHASES = ('start-up', 'data', 'compilation', 'epoch', 'evaluation', 'save', 'report')
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def send(campaign: Campaign, each: int) -> None:
  """Sends each signal `each` times in every phase, to runs that are started again after it."""
  watcher = campaign.watcher
  attempt = len(campaign.records('signal'))
  workdir = watcher.work / 'signal'
  while True:
    records = [record for record in campaign.records('signal') if record['phase']]
    wanting = [(phase, number) for phase in PHASES for number in SIGNALS
               if sum((r['phase'], r['signal']) == (phase, number) for r in records) < each]
    attempt += 1
    chance = random.Random(attempt)
    if not wanting:
      when, number = (lambda phase, at: None), signal.SIGTERM
      folders = {}
    else:
      # Where most are missing, so that the phase at the end does not come last every time.
      target, number = chance.choice(wanting)
      folders = {}
      if target in ('data', 'compilation'):
        shutil.rmtree(watcher.work / 'signal-fresh', ignore_errors=True)
        folders = {'data' if target == 'data' else 'cache': 'signal-fresh'}
      usual = campaign.cold if folders else campaign.warm
      when = watch.aim(target, usual, chance)
    life = watcher.live(watch.LONG, workdir, signum=number, when=when, **folders)
    wrong = same.unreadable(workdir)
    if life.acted is None or life.code == 0:
      # Not reached, or everything was written when it came.
      if life.code:
        wrong.append(f'exit code {life.code}: {life.err[-2000:]}')
      else:
        wrong += same.differences(campaign.whole, same.outcome(workdir))
        wrong += [f'left over: {name}' for name in same.leftovers(workdir)]
      phase = 'too late' if life.acted is not None else ''
      if phase and life.phase not in ('report', 'rename', 'end'):
        wrong.append(f'a signal during {life.phase} was lost')
    else:
      phase = life.phase
      # Before this library runs and after all is done, the signal is Python's.
      ours = phase not in ('interpreter', 'end')
      if life.code not in ((128 + number,) if ours else (128 + number, -number)):
        wrong.append(f'exit code {life.code}')
      if 'Traceback' in life.out + life.err and phase != 'interpreter':
        wrong.append('a traceback')
      if wrong:
        wrong.append(life.err[-2000:])
    campaign.note('signal', {
        'signal': int(number), 'phase': phase, 'code': life.code, 'acted': life.acted,
        'leaving': life.leaving, 'leaving_cpu': life.leaving_cpu, 'says': life.err,
        'finished': life.code == 0, 'wrong': wrong})
    print(f'{signal.Signals(number).name} {phase or "not sent"}: left after {life.leaving:.2f} s '
          f'({life.leaving_cpu:.2f} s computing)  {"; ".join(wrong)}', flush=True)
    if wrong or life.code == 0:
      shutil.rmtree(workdir, ignore_errors=True)
      if not wanting:
        return
