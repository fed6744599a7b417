"""A search drawn: its history, importances, slices, parallel coordinates, the best trials."""

from __future__ import annotations

import html
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fmnist_jax.report import canvas, document
from fmnist_jax.report.canvas import Theme
from fmnist_jax.storage.files import replace_folder

_COLUMNS = 2  # of slices
_ALTERNATIVES = {
    'history': 'Validation accuracy of every trial in the order in which they were drawn, and the '
               'best so far.',
    'importances': 'Bars: how much each domain matters for being among the best tenth.',
    'slices': 'For each domain, validation accuracy by the value that was drawn.',
    'parallel': 'A line a trial through the values that were drawn, coloured by accuracy.'}


def write(directory: pathlib.Path, found: Mapping[str, Any], cells: Sequence[Sequence[str]],
          said: str) -> None:
  """Writes report/: report.html and the pictures in it as PNG files.

  Args:
    directory: of the search.
    found: the contents of search.json.
    cells: the table of the best trials, a header first.
    said: how trials ended, in words.

  Raises:
    WorkdirError: when the folder cannot be written.
  """
  draw: dict[str, Callable[[Mapping[str, Any], Theme], Figure]] = {
      'history': history, 'importances': importances, 'slices': slices, 'parallel': parallel}
  if not found['importances']:
    del draw['importances']
  with canvas.drawing():
    charts = {name: [canvas.png(one(found, theme)) for theme in (canvas.LIGHT, canvas.DARK)]
              for name, one in draw.items()}
  files = {f'{name}.png': light for name, (light, _) in charts.items()}
  shown = ''.join(_card(name, *pngs) for name, pngs in charts.items())
  header, *rows = [[html.escape(cell) for cell in row] for row in cells]
  lines = ''.join(f'<tr><th scope="row">{row[0]}</th>'
                  + ''.join(f'<td>{cell}</td>' for cell in row[1:]) + '</tr>' for row in rows)
  heads = ''.join(f'<th scope="col">{cell}</th>' for cell in header)
  title = f'{100 * _accuracies(found)[0].max():.2f}%'
  body = (f'<p class="eyebrow">Best validation accuracy of a search</p><h1>{title}</h1>'
          f'<p>{html.escape(said)}. {html.escape(found["note"])}</p><h2>The best</h2>'
          f'<div class="card wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody>'
          f'</table></div><h2>The search</h2><div class="pair">{shown}</div>')
  files['report.html'] = document.whole(f'{title} · search', body, '').encode(
      'utf-8', 'backslashreplace')
  replace_folder(directory / 'report', files)


def _card(name: str, light: bytes, dark: bytes) -> str:
  return ('<div class="card wide"><picture><source media="(prefers-color-scheme: dark)" srcset="'
          f'{document.data_uri(dark)}"><img src="{document.data_uri(light)}" '
          f'alt="{html.escape(_ALTERNATIVES[name])}"></picture></div>')


def _accuracies(found: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """(last accuracy, or NaN; whether it was trained to its end) of every trial."""
  last = [trial['accuracy'] if trial['accuracy'] is not None else
          (trial['validation_accuracy'] or [[math.nan]])[0][-1] for trial in found['trials']]
  return np.array(last), np.array([trial['accuracy'] is not None for trial in found['trials']])


def _limits(accuracies: np.ndarray) -> tuple[float, float]:
  """Where an axis of accuracy begins, so that a few bad trials do not squeeze the others, and the
  best; %.
  """
  known = 100 * accuracies[np.isfinite(accuracies)]
  low, high = np.quantile(known, 0.25), known.max()
  return max(known.min(), low - (high - low)) - 0.05 * max(high - low, 0.1), high


def _dots(axes: Axes, values: Any, accuracies: np.ndarray, whole: np.ndarray,
          limits: tuple[float, float], theme: Theme) -> None:
  """A dot a trial; what was given up is hollow, what lies below the axis is on its edge."""
  floor, high = limits
  y, x = np.maximum(100 * accuracies, floor), np.asarray(values, float)
  axes.scatter(x[~whole], y[~whole], s=11, facecolors='none', edgecolors=theme.muted,
               linewidths=0.8, label='given up (last accuracy)', clip_on=False)
  axes.scatter(x[whole], y[whole], s=13, color=theme.first, label='trained to its end',
               clip_on=False, zorder=3)
  axes.set_ylim(floor, high + 0.06 * max(high - floor, 0.1))
  axes.grid(color=theme.grid, linewidth=0.8)


def history(found: Mapping[str, Any], theme: Theme) -> Figure:
  """Accuracy by trial, and the best so far."""
  accuracies, whole = _accuracies(found)
  numbers = np.arange(1, len(accuracies) + 1)
  figure = canvas.new_figure(3.2, theme)
  axes = canvas.new_axes(figure, theme, left=0.6, right=0.2, top=0.6, bottom=0.5)
  _dots(axes, numbers, accuracies, whole, _limits(accuracies), theme)
  best = np.maximum.accumulate(np.where(whole, accuracies, -np.inf))
  seen = np.isfinite(best)
  axes.step(numbers[seen], 100 * best[seen], where='post', color=theme.second, linewidth=1.6,
            label='best so far')
  axes.set_xlabel('trial', color=theme.ink)
  axes.set_ylabel('validation accuracy (%)', color=theme.ink)
  canvas.put_title(figure, 'History', theme)
  canvas.put_legend(figure, theme, handles=axes.get_legend_handles_labels()[0], ncols=3,
                    loc='upper left', bbox_to_anchor=(0.05 / canvas.WIDTH, 1 - 0.3 / 3.2),
                    borderaxespad=0, columnspacing=1.0)
  return figure


def importances(found: Mapping[str, Any], theme: Theme) -> Figure:
  """Bars, the longest first."""
  shares = found['importances']
  height = 0.9 + 0.3 * len(shares)
  figure = canvas.new_figure(height, theme)
  axes = canvas.new_axes(figure, theme, left=min(canvas.room_for(list(shares)), 2.4), right=0.3,
                         top=0.4, bottom=0.5)
  axes.barh(range(len(shares)), list(shares.values()), color=theme.first, height=0.6)
  axes.set_yticks(range(len(shares)), [_short(name) for name in shares])
  axes.set_ylim(len(shares) - 0.4, -0.6)
  axes.grid(color=theme.grid, linewidth=0.8, axis='x')
  axes.set_xlabel('share of importance for the best tenth (PED-ANOVA)', color=theme.ink,
                  loc='right')
  canvas.put_title(figure, 'Importances', theme)
  return figure


def slices(found: Mapping[str, Any], theme: Theme) -> Figure:
  """A panel a domain: accuracy by value."""
  names = list(found['space'])
  rows = -(-len(names) // _COLUMNS)
  height = 0.35 + 1.75 * rows
  figure = canvas.new_figure(height, theme)
  accuracies, whole = _accuracies(found)
  width = (canvas.WIDTH - 0.15) / _COLUMNS
  for number, name in enumerate(names):
    row, column = divmod(number, _COLUMNS)
    axes = canvas.new_axes(figure, theme, left=0.55 + width * column,
                           right=canvas.WIDTH - width * (column + 1) + 0.05,
                           top=0.5 + 1.75 * row, bottom=0.45 + 1.75 * (rows - 1 - row))
    drawn = np.array([name in trial['params'] for trial in found['trials']], bool)
    values = [trial['params'][name] for trial in found['trials'] if name in trial['params']]
    x = _placed(axes, found['space'][name], values)
    _dots(axes, x, accuracies[drawn], whole[drawn], _limits(accuracies), theme)
    axes.tick_params(labelsize=7)
    axes.set_title(_short(name), fontsize=8, loc='left', color=theme.ink, pad=3)
  canvas.put_title(figure, 'Accuracy (%) by value', theme)
  return figure


def _placed(axes: Axes, domain: Any, values: Sequence[Any]) -> list[float]:
  """Where values lie on the x-axis, which is made theirs."""
  if isinstance(domain, list):
    texts = _texts(values, domain)
    axes.set_xticks(range(len(texts)), [_short(text) for text in texts])
    if sum(map(len, texts)) > 16:
      for label in axes.get_xticklabels():
        label.set(rotation=20, horizontalalignment='right')
    axes.set_xlim(-0.6, len(texts) - 0.4)
    return [texts.index(str(value)) for value in values]
  if domain['log']:
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.minorticks_off()
  axes.set_xlim(domain['low'], domain['high'])
  return [float(value) for value in values]


def _texts(values: Sequence[Any], domain: Sequence[Any]) -> list[str]:
  """The options that were drawn, in the order of the space as far as that is known."""
  found = sorted(set(map(str, values)))
  order = [','.join(map(str, one)) if isinstance(one, list) else str(one) for one in domain]
  return sorted(found, key=lambda text: order.index(text) if text in order else len(order))


def parallel(found: Mapping[str, Any], theme: Theme) -> Figure:
  """Parallel coordinates: an axis a domain, the last one accuracy; a line a trial."""
  names = list(found['space'])
  accuracies, whole = _accuracies(found)
  height = 3.9
  figure = canvas.new_figure(height, theme)
  axes = canvas.new_axes(figure, theme, left=0.85, right=0.55, top=0.5, bottom=1.1)
  floor, top = _limits(accuracies)
  norm, colors = Normalize(floor, top), colormaps['viridis_r']
  ends = []
  for place, name in enumerate(names):
    domain = found['space'][name]
    values = [trial['params'].get(name) for trial in found['trials']]
    if isinstance(domain, list):
      texts = _texts([value for value in values if value is not None], domain)
      ends.append([None if value is None else (texts.index(str(value)) + 0.5) / len(texts)
                   for value in values])
      for number, text in enumerate(texts):
        axes.text(place, (number + 0.5) / len(texts), _short(text), fontsize=6.5, color=theme.ink,
                  ha='center', va='center', zorder=5,
                  bbox={'facecolor': theme.surface, 'edgecolor': 'none', 'pad': 1.0, 'alpha': 0.8})
      continue
    scale = math.log if domain['log'] else float
    low, high = scale(domain['low']), scale(domain['high'])
    ends.append([None if value is None else (scale(value) - low) / (high - low)
                 for value in values])
    for y, value in ((-0.035, domain['low']), (1.035, domain['high'])):
      axes.text(place, y, f'{value:g}', fontsize=6.5, color=theme.ink, ha='center', va='center')
  order = np.argsort(np.nan_to_num(accuracies, nan=-1.0))  # The best are drawn last.
  for k in order:
    if not np.isfinite(accuracies[k]):
      continue
    percent = max(100 * accuracies[k], floor)
    points = [(place, column[k]) for place, column in enumerate(ends) if column[k] is not None]
    points.append((len(names), (percent - floor) / (top - floor)))
    axes.plot(*zip(*points), color=colors(norm(percent)), linewidth=1.0 if whole[k] else 0.6,
              alpha=0.85 if whole[k] else 0.35)
  for place in range(len(names) + 1):
    axes.axvline(place, color=theme.muted, linewidth=0.8)
  for y in (0.0, 0.5, 1.0):
    axes.text(len(names) + 0.05, y, f'{floor + y * (top - floor):.2f}', fontsize=6.5,
              color=theme.ink, va='center')
  axes.set_xlim(0, len(names))
  axes.set_ylim(-0.005, 1.005)
  axes.set_yticks([])
  axes.set_xticks(range(len(names) + 1), [*map(_short, names), 'accuracy (%)'], rotation=35,
                  ha='right', fontsize=7)
  axes.tick_params(axis='x', pad=9)
  canvas.put_title(figure, 'Parallel coordinates', theme)
  return figure


def _short(name: str) -> str:
  """A dotted name without its section where that is long; any text, cut."""
  name = name if len(name) <= 26 else name.rpartition('.')[2]
  return name if len(name) <= 26 else f'{name[:25]}…'
