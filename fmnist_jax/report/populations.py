"""Pictures of several runs: their curves in one, their scores side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from fmnist_jax.report import canvas


def spread(histories: Sequence[Sequence[Mapping[str, Any]]], name: str) -> tuple[
    np.ndarray, np.ndarray]:
  """Mean and standard deviation of a curve at each epoch, over the members still training."""
  longest = max(map(len, histories))
  at = [[history[epoch][name] for history in histories if epoch < len(history)]
        for epoch in range(longest)]
  return (np.array([np.mean(values) for values in at]),
          np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in at]))


def curves(members: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> bytes:
  """Every member's curves, their mean and a band of one standard deviation about it, as a PNG.

  Args:
    members: their histories, by setting.
  """
  theme = canvas.LIGHT
  validated = all('validation_loss' in history[0] for lot in members.values() for history in lot)
  measured = 'validation' if validated else 'clean_train'
  if len(members) == 1:
    key, = members
    series = [(key, 'clean_train', 'training, clean', theme.first)]
    series += [(key, 'validation', 'validation', theme.second)] if validated else []
  else:
    shades = colormaps['viridis'](np.linspace(0, 0.85, len(members)))
    series = [(key, measured, key, shade) for key, shade in zip(members, shades)]
  lines = -(-len(series) // (2 if len(members) == 1 else 1))
  room = 0.25 + 0.2 * lines
  height = 5.7 + room
  with canvas.drawing():
    figure = canvas.new_figure(height, theme)
    for row, (quantity, label, scale) in enumerate((('loss', 'loss (nats)', 1),
                                                    ('accuracy', 'accuracy (%)', 100))):
      axes = canvas.new_axes(figure, theme, left=0.6, right=0.2, top=0.4 + room + 2.8 * row,
                             bottom=0.5 + 2.8 * (1 - row))
      for key, kind, text, color in series:
        name = f'{kind}_{quantity}'
        for history in members[key]:
          axes.plot([record['epoch'] for record in history],
                    [scale * record[name] for record in history], color=color, linewidth=0.5,
                    alpha=0.35)
        mean, std = (scale * values for values in spread(members[key], name))
        epochs = np.arange(1, len(mean) + 1)
        axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
        axes.plot(epochs, mean, color=color, linewidth=1.8, label=text,
                  marker='o' if len(mean) == 1 else '', markersize=3.2)
      axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
      axes.margins(y=0.08)
      axes.grid(color=theme.grid, linewidth=0.8)
      axes.set_ylabel(label, color=theme.ink)
      axes.set_xlabel('epoch', color=theme.ink)
      title = quantity.capitalize() if len(members) == 1 else (
          f'{"Validation" if validated else "Training"} {quantity}')
      canvas.put_title(figure, title, theme, below=room + 2.8 * row)
    canvas.put_legend(figure, theme, handles=axes.get_legend_handles_labels()[0],
                      loc='upper left', ncols=2 if len(members) == 1 else 1,
                      bbox_to_anchor=(0.05 / canvas.WIDTH, 1 - 0.05 / height), borderaxespad=0,
                      title='mean of the members, and one standard deviation about it',
                      title_fontsize=8, alignment='left')
    return canvas.png(figure)


def forest(rows: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]]) -> bytes:
  """Accuracies above, differences from the first below, each with its interval; a PNG."""
  theme = canvas.LIGHT
  names = [entry['name'] for entry in rows]
  left = min(canvas.room_for(names), 2.4)
  panel = [0.9 + 0.28 * len(rows), 0.9 + 0.28 * len(differences)]
  height = sum(panel) + 0.2
  with canvas.drawing():
    figure = canvas.new_figure(height, theme)
    axes = canvas.new_axes(figure, theme, left=left, right=0.2, top=0.4, bottom=panel[1] + 0.65)
    for place, entry in enumerate(rows):
      stats = entry['accuracy']
      axes.plot([100 * value for value in stats['values']], [place] * len(stats['values']), '|',
                color=theme.third, markersize=7)
      _interval(axes, place, 100 * stats['mean'], 100 * (stats['half_width'] or 0.0), theme.first)
    _dress(axes, names, 'accuracy (%): members, mean, 95 % interval', theme)
    canvas.put_title(figure, 'Accuracy', theme)
    axes = canvas.new_axes(figure, theme, left=left, right=0.2, top=panel[0] + 0.5, bottom=0.55)
    for place, entry in enumerate(differences):
      for offset, name, color in ((-0.13, 'over_seeds', theme.first),
                                  (0.13, 'over_images', theme.second)):
        if entry[name]:
          _interval(axes, place + offset, entry[name]['mean'], entry[name]['half_width'] or 0.0,
                    color, label=name.replace('_', ' ') if not place else '')
    axes.axvline(0, color=theme.muted, linewidth=1)
    _dress(axes, names[1:], 'points more than the first', theme)
    canvas.put_title(figure, f'Difference from {canvas.short(names[0])}', theme, below=panel[0])
    handles, labels = axes.get_legend_handles_labels()
    if handles:
      canvas.put_legend(figure, theme, handles=handles, labels=labels, ncols=2, loc='upper right',
                        bbox_to_anchor=(1 - 0.1 / canvas.WIDTH, 1 - (panel[0] + 0.03) / height),
                        borderaxespad=0)
    return canvas.png(figure)


def _interval(axes: Any, place: float, mean: float, half_width: float, color: str,
              label: str = '') -> None:
  axes.errorbar([mean], [place], xerr=[[half_width], [half_width]], fmt='o', color=color,
                markersize=4.5, linewidth=1.8, capsize=3, label=label or None)


def _dress(axes: Any, names: Sequence[str], label: str, theme: Any) -> None:
  axes.set_yticks(range(len(names)), names)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.grid(color=theme.grid, linewidth=0.8, axis='x')
  axes.margins(x=0.08)
  axes.set_xlabel(label, color=theme.ink)
