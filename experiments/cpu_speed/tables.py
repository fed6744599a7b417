"""The numbers as Markdown, put between the markers of README.md."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import plan

BEGIN, END = '<!-- numbers: begin -->', '<!-- numbers: end -->'


def _row(*cells: str) -> str:
  return '| ' + ' | '.join(cells) + ' |'


def _head(*cells: str) -> list[str]:
  return [_row(*cells), '|---' + '|---:' * (len(cells) - 1) + '|']


def _range(values: Mapping[str, float], digits: int) -> str:
  text = f'{values["median"]:,.{digits}f}'
  if values['count'] > 1:
    text += f' ({values["min"]:,.{digits}f}–{values["max"]:,.{digits}f})'
  return text


def _ratio(entry: Mapping[str, Any], column: str, mode: str) -> str:
  return f'{entry[column][mode]:.2f}x' if column in entry else '–'


def _seconds(values: Mapping[str, float] | None) -> str:
  return _range(values, 1) if values else '–'


def targets(rows: list[Mapping[str, Any]]) -> list[str]:
  """The targets and what was reached."""
  lines = _head('times better', 'at least', 'aim', 'reached', '')
  for row in rows:
    number = lambda value: '–' if value is None else f'{value:.2f}'
    lines.append(_row(row['what'], number(row['at_least']), number(row['aim']),
                      number(row['reached']), row['verdict']))
  return lines


def speed(summary: Mapping[str, Any]) -> list[str]:
  """A table for each model and batch size, the fastest mode first."""
  lines = []
  for setting, entry in summary.items():
    model, batch = setting.split('/')
    lines += ['', f'#### `{model}`, batch {batch}', '']
    lines += _head('mode', 's an epoch', 'ours is faster', 'start', 'peak MB', 'accuracy',
                   'inference, 1000 images/s', 'ours is faster')
    modes = entry['modes']
    for mode in sorted(modes, key=lambda m: modes[m]['epoch_seconds']['median']):
      numbers = modes[mode]
      label = plan.MODES[mode].label
      if mode == 'ours':
        label += f' (auto: {numbers["versions"].get("precision")})'
      if mode == entry.get('best_peer_epoch'):
        label = f'**{label}**'
      rates = {k: v / 1000 if k in ('median', 'min', 'max') else v
               for k, v in numbers['images_per_second'].items()}
      lines.append(_row(
          label, _range(numbers['epoch_seconds'], 2), _ratio(entry, 'times_faster', mode),
          f'{numbers["first_seconds"]:.1f}', f'{numbers["peak_mb"]["median"]:,.0f}',
          f'{numbers["accuracy"]["median"]:.1%}', _range(rates, 1),
          _ratio(entry, 'times_faster_inference', mode)))
  return lines


def time_to(summary: Mapping[str, Any]) -> list[str]:
  """Seconds from process start to accuracies."""
  if not summary:
    return []
  lines = ['', '#### Process start to validation accuracy, `cnn`, seconds', '']
  lines += _head('', *(f'{target:.1%}' for target in plan.TARGET_ACCURACIES),
                 'to the end of the run', 'test accuracy', 'peak MB')
  for name, entry in summary.items():
    mode, _, start = name.partition(', ')
    accuracy = f'{entry["test_accuracy"]["median"]:.2%}' if 'test_accuracy' in entry else '–'
    lines.append(_row(plan.MODES[mode].label + (f', {start} start' if start else ''),
                      *(_seconds(entry[str(target)]) for target in plan.TARGET_ACCURACIES),
                      _seconds(entry.get('seconds')), accuracy,
                      f'{entry["peak_mb"]["median"]:,.0f}'))
  return lines


def parity(summary: Mapping[str, Any], epochs: Mapping[str, int]) -> list[str]:
  """Mean accuracies with 95 % intervals, and ours less theirs."""
  lines = []
  for model, modes in summary.items():
    count = max((entry['test']['count'] for entry in modes.values()), default=0)
    lines += ['', f'#### Accuracy of `{model}` after {epochs[model]} epochs, {count} seeds, %', '']
    lines += _head('mode', 'validation', 'ours less theirs', 'test', 'ours less theirs')
    for mode, entry in modes.items():
      cells = []
      for column in ('validation', 'validation_difference', 'test', 'test_difference'):
        sign = '+' if column.endswith('difference') else ''
        cells.append(f'{100 * entry[column]["mean"]:{sign}.2f} ± '
                     f'{100 * entry[column]["half_width"]:.2f}' if column in entry else '–')
      lines.append(_row(plan.MODES[mode].label, *cells))
  return lines


def limits(found: Mapping[str, Any]) -> list[str]:
  """Measured rates of products, and the seconds an epoch's products would take."""
  if not found:
    return []
  lines = ['', '#### Limits: the arithmetic at the measured rate of matrix products', '']
  lines += _head('product', 'float32 GFLOP/s', 'bf16 GFLOP/s')
  lines += [_row(name, f'{rate["float32"]:.0f}', f'{rate["bfloat16"]:.0f}')
            for name, rate in found['gflops'].items()]
  lines += ['', *_head('setting', 'GFLOP a step', 'floor, float32, s an epoch', 'floor, bf16',
                       'bf16 floor / ours')]
  for setting, entry in found['settings'].items():
    model, batch = setting.split('/')
    share = entry.get('share_of_ours', {}).get('bfloat16')
    floor = entry['floor_seconds']
    lines.append(_row(f'`{model}`, batch {batch}', f'{entry["gflop_a_step"]:.3f}',
                      f'{floor["float32"]:.2f}', f'{floor["bfloat16"]:.2f}',
                      f'{share:.0%}' if share else '–'))
  return lines


def write(readme: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Replaces what is between the markers of the README."""
  machine = ', '.join(f'{name} {value}' for name, value in results['versions'].items())
  lines = [f'Measured on {results["machine"]}; {machine}.', '', *targets(results['targets']),
           *speed(results['summary']['speed']), *time_to(results['summary']['time_to']),
           *parity(results['summary']['parity'], results['settings']['epochs']),
           *limits(results['limits'])]
  text = readme.read_text()
  before, rest = text.split(BEGIN)
  readme.write_text(before + BEGIN + '\n' + '\n'.join(lines) + '\n' + END + rest.split(END)[1])
