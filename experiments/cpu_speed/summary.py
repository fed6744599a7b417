"""From raw measurements to medians, ratios, targets. Pure: records in, plain values out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plan
from scipy import special

Records = Sequence[Mapping[str, Any]]


def spread(values: Iterable[float]) -> dict[str, float]:
  """Median, smallest, largest and number of some values."""
  values = list(values)
  return {'median': statistics.median(values), 'min': min(values), 'max': max(values),
          'count': len(values)}


def _of(records: Records, task: str) -> list[Mapping[str, Any]]:
  return [record for record in records if record['task'] == task and 'found' in record]


def speed(records: Records) -> dict[str, dict[str, Any]]:
  """'model/batch' -> {'modes': mode -> numbers, 'best': ..., 'times_faster': ...}.

  Seconds are those of every epoch that was timed; `images_per_second` takes each mode's best batch
  size; `times_faster` says how much faster ours is than each other mode, by medians, and
  `times_faster_at_least` by our slowest against its fastest epoch. The best peer is the mode of
  Keras or PyTorch with the smallest median.
  """
  settings: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
  for record in _of(records, 'speed'):
    modes = settings.setdefault(f'{record["model"]}/{record["batch"]}', {})
    modes.setdefault(record['mode'], []).append(record['found'])
  found = {}
  for setting, modes in settings.items():
    numbers = {mode: _numbers(several) for mode, several in modes.items()}
    entry: dict[str, Any] = {'modes': numbers}
    for what, column, sign in (('epoch', 'epoch_seconds', 1),
                               ('inference', 'images_per_second', -1)):
      peers = [mode for mode in numbers if plan.MODES[mode].library in plan.PEERS]
      if peers:
        entry[f'best_peer_{what}'] = min(peers, key=lambda m: sign * numbers[m][column]['median'])
    if 'ours' in numbers:
      ours = numbers['ours']
      entry['times_faster'] = {
          mode: n['epoch_seconds']['median'] / ours['epoch_seconds']['median']
          for mode, n in numbers.items()}
      entry['times_faster_at_least'] = {
          mode: n['epoch_seconds']['min'] / ours['epoch_seconds']['max']
          for mode, n in numbers.items()}
      entry['times_faster_inference'] = {
          mode: ours['images_per_second']['median'] / n['images_per_second']['median']
          for mode, n in numbers.items()}
    found[setting] = entry
  return found


def _numbers(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  by_batch = {batch: [one['images_per_second'][batch] for one in several]
              for batch in several[0]['images_per_second']}
  batch = max(by_batch, key=lambda b: statistics.median(by_batch[b]))
  return {'epoch_seconds': spread(s for one in several for s in one['epoch_seconds']),
          # Later rounds may find what the first one compiled, on disk.
          'first_seconds': several[0]['first_seconds'],
          'peak_mb': spread(one['peak_mb'] for one in several),
          'accuracy': spread(one['accuracy'] for one in several),
          'images_per_second': {**spread(by_batch[batch]), 'batch': int(batch)},
          'versions': several[-1]['versions']}


def medians(records: Records, setting: str) -> dict[str, float]:
  """mode -> median seconds an epoch in one setting."""
  modes = speed(records).get(setting, {'modes': {}})['modes']
  return {mode: numbers['epoch_seconds']['median'] for mode, numbers in modes.items()}


def quickest(records: Records, library: str) -> str:
  """The library's mode that would have done six epochs of `cnn` first, start included."""
  modes = speed(records).get('cnn/128', {'modes': {}})['modes']
  costs = {mode: n['first_seconds'] + 6 * n['epoch_seconds']['median']
           for mode, n in modes.items() if plan.MODES[mode].library == library}
  return min(costs, key=costs.__getitem__) if costs else {'keras': 'keras',
                                                          'torch': 'torch_bf16'}[library]


def time_to(records: Records) -> dict[str, dict[str, Any]]:
  """'mode' or 'mode, warm' -> seconds to each accuracy (None: not in every round), peak memory."""
  several: dict[str, list[Mapping[str, Any]]] = {}
  for record in _of(records, 'time_to'):
    name = record['mode'] + ('' if record['start'] == '-' else f', {record["start"]}')
    several.setdefault(name, []).append(record['found'])
  found = {}
  for name, runs in several.items():
    entry: dict[str, Any] = {'peak_mb': spread(run['peak_mb'] for run in runs)}
    for target in plan.TARGET_ACCURACIES:
      times = [next((t for t, accuracy in run['curve'] if accuracy >= target), None)
               for run in runs]
      reached = [t for t in times if t is not None]
      entry[str(target)] = spread(reached) if len(reached) == len(times) else None
    for extra in ('seconds', 'test_accuracy'):
      if all(extra in run for run in runs):
        entry[extra] = spread(run[extra] for run in runs)
    found[name] = entry
  return found


def interval(values: Sequence[float]) -> dict[str, float]:
  """The mean with half the width of its 95 % t interval."""
  half = special.stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / len(values)**0.5
  return {'mean': statistics.fmean(values), 'half_width': float(half), 'count': len(values)}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
  """Our mean less theirs, with half the width of Welch's 95 % interval."""
  a, b = (statistics.variance(v) / len(v) for v in (ours, theirs))
  freedom = (a + b)**2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1)) if a + b else 1.0
  half = float(special.stdtrit(freedom, 0.975)) * (a + b)**0.5
  return {'mean': statistics.fmean(ours) - statistics.fmean(theirs), 'half_width': half}


def parity(records: Records) -> dict[str, dict[str, Any]]:
  """model -> mode -> accuracies over seeds, and by how much ours differ.

  The verdict is `not_below`: ours are not below theirs if the interval of the difference does not
  lie below 0 as a whole.
  """
  models: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
  for record in _of(records, 'parity'):
    models.setdefault(record['model'], {}).setdefault(record['mode'], []).append(record['found'])
  found: dict[str, dict[str, Any]] = {}
  for model, modes in models.items():
    found[model] = {}
    for mode, runs in modes.items():
      if len(runs) < 2:
        continue
      entry: dict[str, Any] = {}
      for split in ('validation', 'test'):
        values = [run[split] for run in runs]
        entry[split] = interval(values)
        if mode != 'ours' and len(modes.get('ours', ())) > 1:
          gap = difference([run[split] for run in modes['ours']], values)
          entry[f'{split}_difference'] = gap
          entry[f'{split}_not_below'] = gap['mean'] + gap['half_width'] >= 0
      found[model][mode] = entry
  return found
