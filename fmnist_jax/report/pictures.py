"""The pictures of a report, each a matplotlib figure drawn for a light or a dark page.

All are five inches wide, so that their text can still be read on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb as color_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fmnist_jax.report.canvas import (
    WIDTH,
    Theme,
    new_axes,
    new_figure,
    percent,
    put_legend,
    put_title,
    room_for,
    short,
)
from fmnist_jax.report.examples import Example

MOST_CELLS_WITH_NUMBERS = 20  # classes, beyond which the matrix is colour alone
MOST_BARS_WITH_NUMBERS = 40  # classes, beyond which bars are without
MOST_ROWS = 60  # classes, beyond which only some have one


def curves(history: Sequence[Mapping[str, Any]], best_epoch: int, theme: Theme) -> Figure:
  """Loss above accuracy by epoch: training as it went, clean training, validation, best epoch.

  Args:
    history: the records of metrics.jsonl; without validation fields no such curve is drawn.
    best_epoch: the epoch whose weights were kept.
    theme: colours.
  """
  figure = new_figure(6.05, theme)
  epochs = [record['epoch'] for record in history]
  validated = 'validation_loss' in history[0]
  series = [('train', 'training, as trained', theme.third, (0, (3, 1.5))),
            ('clean_train', 'training, clean', theme.first, '-')]
  if validated:
    series.append(('validation', 'validation', theme.second, '-'))
  legend_room = 0.45
  marker = 'o' if len(epochs) <= 25 else ''
  best = [record for record in history if record['epoch'] == best_epoch]
  for row, (quantity, label, scale) in enumerate((('loss', 'loss (nats)', 1),
                                                  ('accuracy', 'accuracy (%)', 100))):
    axes = new_axes(figure, theme, left=0.6, right=0.2, top=0.4 + legend_room + 2.8 * row,
                 bottom=0.5 + 2.8 * (1 - row))
    for name, text, color, style in series:
      values = [scale * record[f'{name}_{quantity}'] for record in history]
      axes.plot(epochs, values, color=color, linestyle=style, linewidth=1.8, marker=marker,
                markersize=3.2, label=text)
    if best:
      axes.axvline(best_epoch, color=theme.muted, linestyle=(0, (1, 2)), linewidth=1.1)
      curve = 'validation' if validated else 'clean_train'
      axes.plot([best_epoch], [scale * best[0][f'{curve}_{quantity}']], 'o', markersize=8,
                markerfacecolor='none', markeredgewidth=1.6, markeredgecolor=theme.ink,
                linestyle='', label=f'{"best" if validated else "kept"}: epoch {best_epoch}')
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.margins(y=0.08)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_ylabel(label, color=theme.ink)
    axes.set_xlabel('epoch', color=theme.ink)
    put_title(figure, quantity.capitalize(), theme, below=legend_room + 2.8 * row)
  # The panels share their curves' names.
  put_legend(figure, theme, handles=axes.get_legend_handles_labels()[0], loc='upper left', ncols=2,
          bbox_to_anchor=(0.05 / WIDTH, 1 - 0.05 / 6.05), borderaxespad=0, columnspacing=2)
  return figure


def _blend(base: str, color: str, weights: np.ndarray) -> np.ndarray:
  low, high = np.array(color_to_rgb(base)), np.array(color_to_rgb(color))
  return low + (high - low) * weights[..., np.newaxis]


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], theme: Theme) -> Figure:
  """Counts and shares of the row; right answers and mistakes each with a colour and scale.

  Args:
    confusion: [K, K], rows of true classes.
    class_names: K names.
    theme: colours.
  """
  names = [short(name) for name in class_names]
  count, room = len(names), room_for(names)
  side = WIDTH - room - 0.3
  figure = new_figure(side + room + 0.6, theme)
  axes = new_axes(figure, theme, left=room + 0.2, right=0.1, top=0.4, bottom=room + 0.2)
  share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
  diagonal = np.eye(count, dtype=bool)
  worst = max(share[~diagonal].max(initial=0), 0.01)
  right = _blend(theme.surface, theme.first, share)
  wrong = _blend(theme.surface, theme.wrong, 0.8 * np.sqrt(np.minimum(share / worst, 1)))
  colors = np.where(diagonal[..., np.newaxis], right, wrong)
  axes.imshow(colors, interpolation='nearest', aspect='auto')
  if count <= MOST_CELLS_WITH_NUMBERS:
    points = 72 * side / count  # of a cell's side
    narrow = min(1, 5 / len(f'{confusion.max():,}'))
    white = np.array([0.2126, 0.7152, 0.0722]) @ colors.transpose(2, 0, 1).reshape(3, -1) < 0.45
    for cell in np.flatnonzero(confusion):
      row, column = divmod(int(cell), count)
      color = '#ffffff' if white[cell] else '#14181d'
      axes.text(column, row - 0.05, f'{confusion[row, column]:,}', ha='center', va='bottom',
                color=color, fontsize=min(0.29 * points * narrow, 11))
      axes.text(column, row + 0.08, f'{100 * share[row, column]:.1f}%', ha='center', va='top',
                color=color, fontsize=min(0.215 * points, 9))
  size = min(9, 60 * side / count)
  if count > 2 * MOST_ROWS:  # Nobody can read them.
    names = [''] * count
  axes.set_xticks(range(count), names, rotation=90, fontsize=size)
  axes.set_yticks(range(count), names, fontsize=size)
  axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
  axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
  axes.tick_params(which='minor', length=0)
  axes.grid(which='minor', color=theme.surface, linewidth=min(1.5, 15 / count))
  axes.set_xlabel('predicted class', color=theme.ink)
  axes.set_ylabel('true class', color=theme.ink)
  put_title(figure, 'Confusion: count, and % of the true class', theme)
  return figure


def _grouped_bars(groups: Sequence[tuple[str, str, Sequence[float], Sequence[str]]],
                  class_names: Sequence[str], title: str, label: str, theme: Theme) -> Figure:
  """Horizontal bars, a row a class and a bar a group of (legend, colour, lengths, texts)."""
  names = [short(name) for name in class_names]
  pitch = max(0.13 * len(groups) + 0.1, 0.3) if len(names) <= MOST_BARS_WITH_NUMBERS else 0.16
  figure = new_figure(pitch * len(names) + 1.15, theme)
  axes = new_axes(figure, theme, left=room_for(names), right=0.2, top=0.65, bottom=0.5)
  thickness = 0.84 / len(groups)
  rows = np.arange(len(names))
  longest = max(max(lengths) for _, _, lengths, _ in groups) or 1  # All may be nought.
  for i, (legend, color, lengths, texts) in enumerate(groups):
    place = rows + (i - (len(groups) - 1) / 2) * thickness
    axes.barh(place, lengths, height=0.86 * thickness, color=color, label=legend)
    if len(names) <= MOST_BARS_WITH_NUMBERS:
      for y, length, text in zip(place, lengths, texts):
        axes.text(length + 0.012 * longest, y, text, va='center', fontsize=6.5,
                  color=theme.muted)
  axes.set_xlim(0, 1.13 * longest)
  axes.set_ylim(len(names) - 0.45, -0.55)
  axes.set_yticks(rows, names, fontsize=9 if len(names) <= MOST_BARS_WITH_NUMBERS else 6)
  axes.grid(axis='x', color=theme.grid, linewidth=0.8)
  axes.set_xlabel(label, color=theme.ink)
  put_title(figure, title, theme)
  _put_legend_below_title(figure, axes, theme)
  return figure


def _put_legend_below_title(figure: Figure, axes: Axes, theme: Theme) -> None:
  put_legend(figure, theme, handles=axes.get_legend_handles_labels()[0], loc='upper left', ncols=3,
             bbox_to_anchor=(0.05 / WIDTH, 1 - 0.32 / figure.get_figheight()), borderaxespad=0,
             columnspacing=1.4)


def per_class(scores: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
  """Precision, recall and F1 of each class as bars, the easiest class first.

  Args:
    scores: `per_class` of results.json.
    theme: colours.
  """
  ordered = sorted(scores, key=lambda entry: -entry['f1'])[-MOST_ROWS:]
  some = f'The {MOST_ROWS} hardest classes' if len(scores) > MOST_ROWS else 'Class by class'
  groups = [(legend, color, [100 * entry[field] for entry in ordered],
             [f'{100 * entry[field]:.1f}' for entry in ordered])
            for field, legend, color in (('precision', 'precision', theme.third),
                                         ('recall', 'recall', theme.first),
                                         ('f1', 'F1', theme.second))]
  return _grouped_bars(groups, [entry['name'] for entry in ordered],
                       f'{some}, the hardest last', 'score (%)', theme)


def class_distribution(labels: Mapping[str, np.ndarray], class_names: Sequence[str],
                       theme: Theme) -> Figure:
  """The share of each class in each split as bars, with its number of examples.

  Of more classes than can have numbers, the numbers by rank, the largest class first.

  Args:
    labels: name of a split -> its labels [N].
    class_names: K names.
    theme: colours.
  """
  counts = {split: np.bincount(values, minlength=len(class_names))
            for split, values in labels.items()}
  splits = [(f'{split} ({count.sum():,})', color, count) for (split, count), color in zip(
      counts.items(), (theme.first, theme.second, theme.third))]
  if len(class_names) > MOST_BARS_WITH_NUMBERS:
    return _ranked(splits, class_names, theme)
  groups = [(legend, color, list(100 * count / max(count.sum(), 1)), [f'{n:,}' for n in count])
            for legend, color, count in splits]
  return _grouped_bars(groups, class_names, 'Examples of each class', 'share of the split (%)',
                       theme)


def _ranked(splits: Sequence[tuple[str, str, np.ndarray]], class_names: Sequence[str],
            theme: Theme) -> Figure:
  """Counts of (legend, colour, int [K]) by the rank of the first, on a scale of powers of ten."""
  figure = new_figure(3.6, theme)
  axes = new_axes(figure, theme, left=0.9, right=0.2, top=0.65, bottom=0.5)
  order = np.argsort(-splits[0][2], kind='stable')
  ranks = np.arange(1, len(order) + 1)
  for legend, color, count in splits:
    axes.plot(ranks, count[order], '.', color=color, markersize=4, label=legend)
  axes.set_yscale('symlog', linthresh=1, linscale=0.3)
  axes.set_ylim(-0.3, 2 * max(count.max() for _, _, count in splits))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
  axes.grid(axis='y', color=theme.grid, linewidth=0.8)
  axes.set_ylabel('examples', color=theme.ink)
  largest, smallest = (short(class_names[order[i]]) for i in (0, -1))
  axes.set_xlabel(f'classes by size, from {largest} to {smallest}', color=theme.ink)
  put_title(figure, f'Examples of each of the {len(order):,} classes', theme)
  _put_legend_below_title(figure, axes, theme)
  return figure


def _enlarged(image: np.ndarray) -> np.ndarray:
  """The image with each pixel repeated, so that drawing it keeps the edges of pixels sharp."""
  return image.repeat(4, axis=0).repeat(4, axis=1) if image.shape[1] < 1000 else image


def _mosaic(rows: Sequence[Sequence[np.ndarray]], columns: int, gap: int,
            theme: Theme) -> np.ndarray:
  """Images [H, W, 3] in rows of equal cells, a gap to the right of and below each; uint8."""
  height, width = next(image.shape[:2] for row in rows for image in row)
  canvas = np.empty((len(rows) * (height + gap), columns * (width + gap), 3), np.uint8)
  canvas[:] = np.round(255 * np.array(color_to_rgb(theme.surface)))
  for i, row in enumerate(rows):
    for j, image in enumerate(row):
      top, left = i * (height + gap), j * (width + gap)
      canvas[top:top + height, left:left + width] = image
  return canvas


def samples(images: Sequence[Sequence[np.ndarray]], class_names: Sequence[str],
            theme: Theme) -> Figure:
  """A row of images a class.

  Args:
    images: for each class its images, uint8 [H, W, 3]; at least one image in all.
    class_names: K names.
    theme: colours.
  """
  names = [short(name) for name in class_names]
  columns = max(5, *(len(row) for row in images))  # Else a few images would be a tall picture.
  height, width = next(image.shape[:2] for row in images for image in row)
  gap = max(width // 14, 1)
  room = room_for(names)
  cell = (WIDTH - room - 0.1) / columns  # inches
  pitch = cell * (height + gap) / (width + gap)
  figure = new_figure(pitch * len(names) + 0.55, theme)
  axes = new_axes(figure, theme, left=room, right=0.1, top=0.45, bottom=0.1)
  axes.imshow(_enlarged(_mosaic(images, columns, gap, theme)), aspect='auto',
              extent=(0, 1, len(names), 0))
  axes.set_yticks(np.arange(len(names)) + 0.5 * height / (height + gap), names,
                  fontsize=min(9, 60 * pitch))
  axes.set_xticks([])
  put_title(figure, 'Training images of each class', theme)
  return figure


def mistakes(wrong: Sequence[Example], right: Sequence[Example], class_names: Sequence[str],
             theme: Theme, columns: int = 5) -> Figure:
  """The most confident mistakes, then some right answers, each with what was said and how surely.

  Args:
    wrong: mistakes, none when there were none.
    right: right answers, none when there were none.
    class_names: K names.
    theme: colours.
    columns: images a row.
  """
  sheets = [('The most confident mistakes', 'true class; what it was taken for, how surely', wrong,
             theme.wrong),
            ('Right answers', 'the first of each class; how surely', right, theme.first)]
  pitch = (WIDTH - 0.1) / columns  # inches of a column
  side, text_room, heading = pitch - 0.1, 0.5, 0.62
  tallest = max(e.image_HxWx3.shape[0] / e.image_HxWx3.shape[1] for e in (*wrong, *right))
  row = side * tallest + text_room
  rows = [-(-len(examples) // columns) for _, _, examples, _ in sheets]
  figure = new_figure(sum(rows) * row + 2 * heading + 0.1, theme)
  height = figure.get_figheight()
  axes = new_axes(figure, theme, left=0, right=0, top=0, bottom=0)
  top = 0.0
  for (title, subtitle, examples, color), count in zip(sheets, rows):
    put_title(figure, title, theme, below=top)
    axes.text(0.1, top + 0.44, subtitle if examples else 'none', color=theme.muted, fontsize=8)
    top += heading
    for i, example in enumerate(examples):
      x, y = 0.1 + pitch * (i % columns), top + row * (i // columns)
      end = y + side * tallest
      axes.imshow(_enlarged(example.image_HxWx3), extent=(x, x + side, end, y), aspect='auto')
      lines = [(short(class_names[example.true]), theme.ink)]
      if example.predicted != example.true:
        lines.append((short(class_names[example.predicted]), color))
      lines.append((percent(example.probability), theme.muted))
      for line, (text, ink) in enumerate(lines):
        axes.text(x, end + 0.12 + 0.125 * line, text, color=ink, fontsize=7)
    top += row * count
  axes.set(xlim=(0, WIDTH), ylim=(height, 0), xticks=[], yticks=[])  # inches
  return figure
