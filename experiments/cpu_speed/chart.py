"""The charts: seconds an epoch in every setting, accuracy against time, GFLOP/s by layer shape."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import plan

# Colours that people with any kind of colour vision tell apart (Okabe and Ito).
COLORS = {'ours': '#D55E00', 'flax': '#999999', 'keras': '#0072B2', 'torch': '#009E73'}
NAMES = {'ours': 'fmnist_jax', 'flax': 'plain Flax', 'keras': 'Keras', 'torch': 'PyTorch'}


def _bars(axes: plt.Axes, setting: str, modes: Mapping[str, Any]) -> None:
  model, batch = setting.split('/')
  order = sorted(modes, key=lambda m: -modes[m]['epoch_seconds']['median'])
  seconds = [modes[m]['epoch_seconds'] for m in order]
  medians = [s['median'] for s in seconds]
  # What is far off the others would press them together: its bar is cut, its number tells.
  limit = 1.25 * max(m for m in medians if m <= 6 * min(medians))
  errors = [[s['median'] - s['min'] for s in seconds], [s['max'] - s['median'] for s in seconds]]
  bars = axes.barh([plan.MODES[m].label for m in order], medians, xerr=errors, height=0.72,
                   color=[COLORS[plan.MODES[m].library] for m in order],
                   error_kw={'lw': 1, 'ecolor': '#444444'})
  for bar, s in zip(bars, seconds):
    inside = s['max'] > 0.85 * limit
    middle = bar.get_y() + bar.get_height() / 2
    axes.annotate(f'{s["median"]:.3g}' + (' →' if s['median'] > limit else ''),
                  (min(s['min'], limit) if inside else s['max'], middle),
                  xytext=(-4 if inside else 4, 0), textcoords='offset points', va='center',
                  ha='right' if inside else 'left', fontsize=8,
                  color='white' if inside else 'black')
  axes.set_xlim(0, limit)
  axes.set_title(f'{model}, batch {batch}', fontsize=10, loc='left', fontweight='bold')
  axes.set_xlabel('seconds an epoch (bar: median, line: range)', fontsize=8)
  axes.tick_params(labelsize=8)


def _curves(axes: plt.Axes, records: Sequence[Mapping[str, Any]]) -> None:
  shown = set()
  for record in records:
    if record['task'] != 'time_to' or 'found' not in record or not record['found']['curve']:
      continue
    library = plan.MODES[record['mode']].library
    cold = record['start'] == 'cold'
    label = NAMES[library] + ('' if record['start'] == '-' else f', {record["start"]} start')
    seconds, accuracies = zip(*record['found']['curve'])
    axes.plot(seconds, [100 * a for a in accuracies], color=COLORS[library], marker='o', ms=3,
              lw=1.3, ls=':' if cold else '-', alpha=0.8, label=None if label in shown else label)
    shown.add(label)
  if axes.get_ylim()[1] > 100 * min(plan.TARGET_ACCURACIES):  # What matters is near the top.
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 80))
  for target in plan.TARGET_ACCURACIES:
    axes.axhline(100 * target, color='#bbbbbb', lw=0.8, zorder=0)
  axes.set_title('cnn: from process start', fontsize=10, loc='left', fontweight='bold')
  axes.set_xlabel('seconds since process start', fontsize=8)
  axes.set_ylabel('validation accuracy, %', fontsize=8)
  axes.set_xlim(left=0)
  axes.tick_params(labelsize=8)
  if shown:
    axes.legend(fontsize=8, loc='lower right', frameon=False)


def draw(path: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Writes the chart as PNG.

  Args:
    path: of the file.
    results: the contents of results.json.
  """
  settings = results['summary']['speed']
  panels = len(settings) + 1
  rows = -(-panels // 2)
  figure, grid = plt.subplots(rows, 2, figsize=(11, 3.1 * rows), squeeze=False,
                              layout='constrained')
  axes = list(grid.flat)
  for axis, (setting, entry) in zip(axes, settings.items()):
    _bars(axis, setting, entry['modes'])
  _curves(axes[panels - 1], results['measurements'])
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  for axis in axes[panels:]:
    axis.set_visible(False)
  handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[name]) for name in COLORS]
  figure.legend(handles, NAMES.values(), loc='outside upper center', ncols=4, frameon=False,
                fontsize=9)
  figure.savefig(path, dpi=130)
  plt.close(figure)


def draw_layers(path: pathlib.Path, layers: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
  """Writes the chart of convolutions alone as PNG.

  Args:
    path: of the file.
    layers: library -> 'shape/type' -> GFLOP/s of the result, and of result and both gradients.
  """
  figure, grid = plt.subplots(2, 2, figsize=(11, 8), sharey=True, layout='constrained')
  for row, dtype in zip(grid, ('float32', 'bfloat16')):
    names = [name for name in layers['ours'] if name.endswith(f'/{dtype}')]
    for index, (axes, what) in enumerate(zip(row, ('result', 'result and both gradients'))):
      for offset, library in ((-0.2, 'ours'), (0.2, 'torch')):
        rates = [layers[library][name][index] for name in names]
        bars = axes.barh([place + offset for place in range(len(names))], rates, height=0.38,
                         color=COLORS[library], label=NAMES[library])
        axes.bar_label(bars, fmt='%.0f', padding=2, fontsize=7)
      axes.set_yticks(range(len(names)), [name.rpartition('/')[0] for name in names], fontsize=8)
      axes.set_title(f'{dtype}: {what}', fontsize=10, loc='left', fontweight='bold')
      axes.set_xlabel('GFLOP/s', fontsize=8)
      axes.tick_params(labelsize=8)
      axes.spines[['top', 'right']].set_visible(False)
  grid[0, 0].invert_yaxis()
  grid[0, 0].legend(fontsize=8, frameon=False)
  figure.savefig(path, dpi=130)
  plt.close(figure)
