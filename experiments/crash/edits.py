"""Files of a run edited, or replaced by links and pipes, before the run is opened again."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import signal
from collections.abc import Callable
from typing import Any

import watch
from broken import DAMAGES
from campaign import Campaign

from fmnist_jax.errors import UserError
from fmnist_jax.population import summary
from fmnist_jax.storage import workdir as workdir_lib
from fmnist_jax.storage.checkpoint import Checkpoints

_TOO_LONG = 20  # Seconds; a pipe that is waited for would wait for ever.


def _link(path: pathlib.Path, target: pathlib.Path) -> None:
  path.rename(target)
  path.symlink_to(target)


def _pipe(path: pathlib.Path, target: pathlib.Path) -> None:
  path.rename(target)
  os.mkfifo(path)


def _hard_link(path: pathlib.Path, target: pathlib.Path) -> None:
  if path.is_dir():
    shutil.copytree(path, target, copy_function=os.link)
  else:
    os.link(path, target)


REPLACEMENTS: dict[str, Callable[[pathlib.Path, pathlib.Path], None]] = {
    'a symbolic link': _link, 'a pipe': _pipe, 'a hard link': _hard_link}


def edit(campaign: Campaign, repeats: int) -> None:
  """Every file of a finished and of an unfinished run damaged, linked or made a pipe."""
  if campaign.records('edits'):
    return
  campaign.uninterrupted('short', watch.SHORT)
  whole, chance = campaign.watcher.work / 'short-0', random.Random(0)
  (whole / '.lock').touch()
  for finished in (True, False):
    names = sorted(path.relative_to(whole) for path in whole.rglob('*')
                   if finished or path.name not in ('results.json', 'predictions.npz'))
    for kind, ways in (('a file of a run damaged', DAMAGES),
                       ('a file or folder of a run replaced', REPLACEMENTS)):
      for how, change in ways.items():
        tried, refused, wrong = 0, 0, []
        for name in names:
          if ways is DAMAGES and not (whole / name).is_file():
            continue
          if ways is DAMAGES and not (whole / name).stat().st_size:
            continue
          for _ in range(repeats if how in ('truncated', 'one bit flipped') else 1):
            outcome = _trial(campaign.watcher.work / 'edits', whole, name, finished, change,
                             chance if ways is DAMAGES else None)
            tried += 1
            refused += outcome['refused']
            wrong += [f'{name}: {problem}' for problem in outcome['wrong']]
        campaign.note('edits', {'kind': kind, 'how': how, 'finished': finished, 'tried': tried,
                                'refused': refused, 'wrong': wrong})
        print(f'{kind}, {how}, {"finished" if finished else "unfinished"}: {tried} tried, '
              f'{refused} refused  {"; ".join(wrong)}', flush=True)


def _trial(folder: pathlib.Path, whole: pathlib.Path, name: pathlib.Path, finished: bool,
           change: Callable, chance: random.Random | None) -> dict[str, Any]:
  """What became of a run with one thing changed."""
  shutil.rmtree(folder, ignore_errors=True)
  run, target = folder / 'run', folder / 'elsewhere'
  shutil.copytree(whole, run)
  if not finished:
    for gone in ('results.json', 'predictions.npz'):
      (run / gone).unlink()
  if chance:
    change(run / name, chance)
  else:
    change(run / name, target)
  before, outside = _content(run), _content(target)
  wrong, error = [], None
  signal.signal(signal.SIGALRM, _too_long)
  signal.alarm(_TOO_LONG)
  try:
    found = _use(run, whole)
  except UserError as caught:
    error = caught
  except Exception as caught:
    wrong.append(f'{type(caught).__name__}: {caught}')
  finally:
    signal.alarm(0)
  if _content(target) != outside:
    wrong.append('something outside of the run was changed')
  if error is not None:
    if _content(run) != before:
      wrong.append(f'refused, but changed: {error}')
    if '\n' in str(error):
      wrong.append(f'more than a line: {error}')
  elif not wrong and found:
    wrong.append(found)
  return {'refused': error is not None, 'wrong': wrong}


def _use(run: pathlib.Path, whole: pathlib.Path) -> str:
  """Opens a run as its own command would; what was read wrongly, '' for nothing."""
  config = workdir_lib.read_config(whole)
  with workdir_lib.Workdir(run, config) as opened:
    results = opened.results()
    checkpoints = Checkpoints(run / 'checkpoints', held=opened.held)
    newest = checkpoints.latest_good()
    if newest is None:
      return 'no checkpoint was found'
    progress = checkpoints.progress(newest)
    if results is None:
      opened.history.rewind(progress['epoch'], newest)
    records = opened.history.read()
    if results is None:
      opened.history.append({'step': 10**6})
  if records != workdir_lib.History(whole / 'metrics.jsonl').read()[:len(records)]:
    return 'another history was read'
  if results is not None:
    kept = json.loads((whole / 'results.json').read_text())
    if results != {name: value for name, value in kept.items() if name != 'seal'}:
      return 'other results were read'
    if summary.read(run).results != results:
      return 'results are read in two ways'
  return ''


def _content(folder: pathlib.Path) -> dict[str, Any]:
  """Bytes of files, targets of links, kinds of the rest; but for the lock, which starts write."""
  found: dict[str, Any] = {}
  for path in sorted([folder, *folder.rglob('*')]) if folder.is_dir() else [folder]:
    if path.is_symlink():
      found[str(path)] = os.readlink(path)
    elif path.is_file() and (path.name != '.lock' or folder.name == 'elsewhere'):
      found[str(path)] = path.read_bytes()
    elif path.exists() and path.name != '.lock':
      found[str(path)] = path.stat().st_mode
  return found


def _too_long(*_: object) -> None:
  raise RuntimeError(f'it took more than {_TOO_LONG} s')
