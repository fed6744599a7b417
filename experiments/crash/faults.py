"""System calls that fail, one a run, and a disk that fills up."""

from __future__ import annotations

import collections
import errno
import os
import pathlib
import random
import re
import shutil
import subprocess
from typing import Any

import same
import watch
from campaign import Campaign

ERRORS = {'write': (errno.ENOSPC, errno.EIO, errno.EDQUOT),
          'sync': (errno.EIO, errno.ENOSPC, errno.EDQUOT),
          'rename': (errno.EACCES, errno.ENOSPC, errno.EIO),
          'mkdir': (errno.ENOSPC, errno.EACCES, errno.EDQUOT),
          'open': (errno.EACCES, errno.EDQUOT, errno.ENOSPC),
          'truncate': (errno.EIO, errno.ENOSPC)}
# As strace calls them.
_SYSTEM_CALLS = {'write': ('write', 'pwrite64', 'writev', 'pwritev', 'pwritev2'),
                 'sync': ('fsync', 'fdatasync'), 'rename': ('rename', 'renameat', 'renameat2'),
                 'mkdir': ('mkdir', 'mkdirat'), 'open': ('open', 'openat', 'creat'),
                 'truncate': ('ftruncate', 'truncate')}


def place(path: str) -> str:
  """Which of a run's files a path below its directory is, without numbers and random names."""
  path = re.sub(r'[0-9a-f]{32}', '*', path)
  path = re.sub(r'\.partial-[0-9a-f]+', '', path)
  return re.sub(r'(\.new-|\.trash-|checkpoints/)\d+', r'\1N', path) or '.'


def fault(campaign: Campaign, trials: int) -> None:
  """Lets each kind of call fail in each place, then in random ones; notes what came of it."""
  expected, (life, _) = campaign.uninterrupted('short', watch.SHORT)
  _check_that_all_calls_are_seen(campaign)
  workdir = campaign.watcher.work / 'fault'
  done = {record['case'] for record in campaign.records('fault')}
  cases = _cases(_calls(life, campaign.watcher.work / 'short-0'), trials)
  for case in cases:
    if str(case) not in done:
      record = _fail(campaign, workdir, expected, *case)
      campaign.note('fault', {'case': str(case), **record})
      print(f'fault {case}: {record["outcome"]} at {record["place"]}  '
            f'{"; ".join(record["wrong"])}', flush=True)


def _calls(life: watch.Life, workdir: pathlib.Path) -> list[tuple[str, str]]:
  """(kind, place) of the calls below the work directory, in order."""
  root = str(workdir)
  return [(kind, place(path[len(root) + 1:])) for kind, what, _, path in life.events
          if kind in ERRORS and what == 'e' and (path == root or path.startswith(f'{root}/'))]


def _cases(calls: list[tuple[str, str]], trials: int) -> list[tuple[str, str, int, int]]:
  """(folder, kind, n, error): the n-th call of that kind below the folder fails so."""
  chance = random.Random(0)
  by_place: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
  numbers: collections.Counter[str] = collections.Counter()
  for kind, where in calls:
    numbers[kind] += 1
    by_place[kind, where].append(numbers[kind])
  cases = []
  for i, ((kind, _), those) in enumerate(sorted(by_place.items())):
    cases.append(('fault', kind, chance.choice(those), ERRORS[kind][i % len(ERRORS[kind])]))
  while len(cases) < trials:
    kind = chance.choice(sorted(numbers))
    case = ('fault', kind, 1 + chance.randrange(numbers[kind]), chance.choice(ERRORS[kind]))
    if case not in cases:
      cases.append(case)
  chance.shuffle(cases)
  # Compiled programs and prepared data may fail to be kept.
  apart = [('unkept-cache', kind, 1, ERRORS[kind][0]) for kind in ('mkdir', 'open', 'write',
                                                                  'rename')]
  apart += [('unkept-data', kind, n, ERRORS[kind][0]) for kind in ('mkdir', 'open', 'write')
            for n in (1, 3)]
  return (cases + apart)[:trials + len(apart)] if trials > 20 else cases[:trials] + apart[:1]


def _fail(campaign: Campaign, workdir: pathlib.Path, expected: dict[str, Any], folder: str,
          kind: str, number: int, error: int) -> dict[str, Any]:
  watcher = campaign.watcher
  for name in ('fault', 'unkept-cache', 'unkept-data'):
    shutil.rmtree(watcher.work / name, ignore_errors=True)
  folders = {'data': 'unkept-data' if folder == 'unkept-data' else 'data',
             'cache': 'unkept-cache' if folder == 'unkept-cache' else 'cache'}
  life = watcher.live(watch.SHORT, workdir,
                      fail=f'{kind} {number} {error} {watcher.work / folder}', **folders)
  failed = next((path for _, what, _, path in life.events if what == 'f'), None)
  record = {'kind': kind, 'error': errno.errorcode[error], 'folder': folder, 'says': life.err,
            'place': place(failed[len(str(watcher.work / folder)) + 1:]) if failed else ''}
  wrong = same.unreadable(workdir)
  if 'Traceback' in life.out + life.err:
    wrong.append(f'a traceback: {life.err[-2000:]}')
  if failed is None:
    record['outcome'] = 'not reached'
  elif life.code == 0:
    record['outcome'] = 'went on'
  else:
    record['outcome'] = 'stopped'
    if life.code != 1 or life.err.count('\n') != 1 or not life.err.startswith('error: '):
      wrong.append(f'not one sentence: exit code {life.code}, {life.err[-2000:]!r}')
    elif os.strerror(error) not in life.err:
      wrong.append(f'the reason is missing: {life.err!r}')
    again = watcher.live(watch.SHORT, workdir, **folders)
    if again.code or again.err:
      wrong.append(f'the next start: exit code {again.code}, {again.err[-2000:]!r}')
  if not wrong:
    wrong = same.differences(expected, same.outcome(workdir))
  record['leftovers'] = same.leftovers(workdir)
  return {**record, 'wrong': wrong}


def _check_that_all_calls_are_seen(campaign: Campaign) -> None:
  """Counts the calls of a run twice, by the observer and by strace where there is one."""
  if campaign.records('calls'):
    return
  watcher, trace = campaign.watcher, campaign.watcher.work / 'strace.txt'
  workdir = watcher.work / 'traced'
  shutil.rmtree(workdir, ignore_errors=True)
  names = [name for names in _SYSTEM_CALLS.values() for name in names]
  wrapper = ['strace', '-f', '-y', '-qq', '-e', f'trace={",".join(names)}', '-o', str(trace)]
  if not shutil.which('strace'):
    wrapper = []
  life = watcher.live(watch.SHORT, workdir, wrapper=wrapper)
  observed = collections.Counter(kind for kind, _ in _calls(life, workdir))
  traced: collections.Counter[str] = collections.Counter()
  if wrapper:
    for line in trace.read_text(errors='replace').splitlines():
      call = re.match(r'\d+ +(\w+)\((.*)', line)
      if call and f'{workdir}' in call[2].split(' = ')[0].split(', "error')[0]:
        kind = next(k for k, names in _SYSTEM_CALLS.items() if call[1] in names)
        # Reports go to the observer's pipe, and files are also opened to be read.
        if not (kind == 'write' and 'pipe:' in call[2].split(',')[0]) and (
            kind != 'open' or 'O_CREAT' in call[2]):
          traced[kind] += 1
    trace.unlink()
  campaign.note('calls', {'observer': dict(observed), 'strace': dict(traced) if wrapper else None})
  print(f'calls of a run: {dict(observed)}; by strace: {dict(traced) if wrapper else "none"}',
        flush=True)


def tmpfs(campaign: Campaign, trials: int) -> None:
  """A small disk of memory fills up at different moments; there is room again afterwards."""
  expected, _ = campaign.uninterrupted('short', watch.SHORT)
  watcher, mount = campaign.watcher, campaign.watcher.work / 'tmpfs'
  mount.mkdir(exist_ok=True)
  whole, report = (_size(watcher.work / name) for name in ('short-0', 'short-0/report'))
  need = 4 * whole
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={need}', 'tmpfs', str(mount)],
                    capture_output=True).returncode:
    campaign.note('tmpfs', {'skipped': 'this user may not mount'})
    return
  try:
    for trial in range(len(campaign.records('tmpfs')), trials):
      shutil.rmtree(mount / 'run', ignore_errors=True)
      # Three times of four while checkpoints are written, once while the report is.
      share = (trial // 4 + 1) / (trials // 4 + 1)
      size = int(whole - report * (1 - share) if trial % 4 == 3 else
                 (whole - report) * (trial + 1) / trials)
      resize = lambda to: subprocess.run(
          ['mount', '-o', f'remount,size={to}', str(mount)], check=True)
      resize(size)
      life = watcher.live(watch.SHORT, mount / 'run')
      wrong = same.unreadable(mount / 'run')
      if life.code == 0:
        outcome = 'had room'
      else:
        outcome = 'stopped'
        if life.code != 1 or life.err.count('\n') != 1 or not life.err.startswith('error: '):
          wrong.append(f'not one sentence: exit code {life.code}, {life.err[-2000:]!r}')
      resize(need)
      again = watcher.live(watch.SHORT, mount / 'run')
      if again.code or again.err:
        wrong.append(f'the next start: exit code {again.code}, {again.err[-2000:]!r}')
      else:
        wrong += same.differences(expected, same.outcome(mount / 'run'))
      campaign.note('tmpfs', {'bytes': size, 'outcome': outcome, 'says': life.err, 'wrong': wrong,
                              'leftovers': same.leftovers(mount / 'run')})
      print(f'tmpfs of {size} bytes: {outcome}  {life.err}{"; ".join(wrong)}', flush=True)
  finally:
    subprocess.run(['umount', str(mount)], check=True)


def _size(folder: pathlib.Path) -> int:
  """Bytes on a file system that gives out pages."""
  return sum(-(-path.lstat().st_size // 4096) * 4096 + 4096 for path in folder.rglob('*'))
