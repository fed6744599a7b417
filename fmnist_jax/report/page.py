"""The report's page: one HTML file that needs nothing else, no network either.

Charts come as two pictures each, of which the browser shows the one for its light or dark mode;
small images, words and numbers are HTML, which flows on a narrow screen.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fmnist_jax import metrics, views
from fmnist_jax.report import document
from fmnist_jax.report.canvas import percent
from fmnist_jax.report.examples import Example
from fmnist_jax.report.try_it import Card

MOST_PAIRS = 8  # confused pairs put in words

ALTERNATIVES = {  # what each chart shows, for those who cannot see it
    'curves': 'Loss and accuracy by epoch: training as trained, clean training, validation.',
    'confusion_matrix': 'Confusion matrix: true classes in rows, predicted classes in columns.',
    'per_class': 'Bars of precision, recall and F1 of each class; the numbers are in the table.',
    'class_distribution': 'How many examples of each class every split has.',
}


def _chart(name: str, light: bytes, dark: bytes) -> str:
  light_uri, dark_uri = document.data_uri(light), document.data_uri(dark)
  return (f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark_uri}">'
          f'<img src="{light_uri}" alt="{html.escape(ALTERNATIVES[name])}"></picture>')


def duration(seconds: float) -> str:
  """Seconds in words: 8.3 s, 1 min 56 s, 2 h 05 min."""
  if seconds < 59.95:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  return f'{minutes // 60} h {minutes % 60:02d} min'


def _tiles(history: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
  seconds = results['seconds']
  tiles = [
      ('Loss', f'{results["loss"]:.4f}', 'cross-entropy, nats'),
      ('Macro F1', f'{results["macro_f1"]:.4f}', 'every class counts the same'),
      ('Calibration error', percent(results['expected_calibration_error']),
       'mean gap between sureness and truth'),
      ('Parameters', f'{results["parameters"]:,}', 'weights and biases trained'),
      ('Training', duration(seconds['train']),
       f'+ {duration(sum(seconds.values()) - seconds["train"])} around it'),
      ('Epochs', f'{len(history):,}', f'kept: epoch {results["best_epoch"]}'),
  ]
  return ''.join(f'<div class="tile"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'
                 for name, value, note in tiles)


def _sentence(results: Mapping[str, Any]) -> str:
  examples = results['examples']
  right = round(results['accuracy'] * examples)
  low, high = metrics.wilson_interval(right, examples)
  how = f' ({views.told(results["tta"])})' if 'tta' in results else ''
  return (f'{right:,} of {examples:,} {html.escape(results["split"])} images were named correctly'
          f'{how}.'
          f' For images like these the share lies between <b>{100 * low:.2f}%</b> and '
          f'<b>{100 * high:.2f}%</b> <span class="muted">(95% Wilson interval)</span>.')


def _gap(history: Sequence[Mapping[str, Any]], best_epoch: int) -> str:
  kept = [record for record in history if record['epoch'] == best_epoch]
  if not kept or 'validation_accuracy' not in kept[0]:
    return 'There was no validation data: nothing shows how far training overfitted.'
  train, validation = kept[0]['clean_train_accuracy'], kept[0]['validation_accuracy']
  return (f'In epoch {best_epoch}, whose weights were kept, {percent(train)} of training images '
          f'and {percent(validation)} of validation images were right, without dropout or '
          f'augmentation: a gap of {100 * (train - validation):.1f} points.')


def _pairs(results: Mapping[str, Any], class_names: Sequence[str]) -> str:
  pairs = metrics.most_confused(np.array(results['confusion_matrix']), class_names, MOST_PAIRS)
  if not pairs:
    return '<p>Nothing was confused with anything.</p>'
  items = ''.join(
      f'<li><b>{html.escape(pair.true)}</b> was taken for <b>{html.escape(pair.predicted)}</b> '
      f'{pair.examples:,} {"time" if pair.examples == 1 else "times"} <span class="muted">'
      f'({percent(pair.share)} of them)</span></li>' for pair in pairs)
  return f'<ol class="pairs">{items}</ol>'


def _example(example: Example, class_names: Sequence[str]) -> str:
  true, predicted = class_names[example.true], class_names[example.predicted]
  wrong = example.true != example.predicted
  said = (f'<br><span class="guess">{html.escape(predicted)} '
          f'{percent(example.probability)}</span>' if wrong else '')
  image = document.image(example.image_HxWx3, f'{true}, image {example.place}')
  return (f'<figure class="example">{image}<figcaption><b>{html.escape(true)}</b> '
          f'<span class="muted">{percent(example.probability_of_truth)}</span>{said}'
          '</figcaption></figure>')


def _mistakes(wrong: Sequence[Example], right: Sequence[Example],
              class_names: Sequence[str]) -> str:
  parts = []
  for examples, title, nothing in (
      (wrong, 'The most confident mistakes <small>The true class and, in red, what it was taken '
       'for, each with the probability it was given.</small>', 'Not one mistake.'),
      (right, 'Right answers <small>The first of each class.</small>', 'Not one right answer.')):
    cards = ''.join(_example(example, class_names) for example in examples)
    parts.append(f'<div class="card"><h3>{title}</h3>'
                 + (f'<div class="cards">{cards}</div>' if cards else f'<p>{nothing}</p>')
                 + '</div>')
  return '<div style="display: grid; gap: 1rem">' + ''.join(parts) + '</div>'


def _table(results: Mapping[str, Any]) -> str:
  rows = ''.join(
      f'<tr><th scope="row">{html.escape(entry["name"])}</th><td>{entry["precision"]:.4f}</td>'
      f'<td>{entry["recall"]:.4f}</td><td>{entry["f1"]:.4f}</td><td>{entry["support"]:,}</td></tr>'
      for entry in results['per_class'])
  mean = {field: float(np.mean([entry[field] for entry in results['per_class']]))
          for field in ('precision', 'recall', 'f1')}
  total = (f'<tr><th scope="row">Mean</th><td>{mean["precision"]:.4f}</td>'
           f'<td>{mean["recall"]:.4f}</td><td>{mean["f1"]:.4f}</td>'
           f'<td>{results["examples"]:,}</td></tr>')
  heads = ''.join(f'<th scope="col">{head}</th>'
                  for head in ('Class', 'Precision', 'Recall', 'F1', 'Examples'))
  return (f'<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
          f'<tbody class="total">{total}</tbody></table>')


def _samples(samples: Sequence[Sequence[np.ndarray]], class_names: Sequence[str]) -> str:
  strips = []
  for name, images in zip(class_names, samples):
    shown = ''.join(document.image(image, name) for image in images)
    strips.append(f'<div class="strip"><span>{html.escape(name)}</span><div>{shown}</div></div>')
  return ''.join(strips)


def _leaves(values: Any, name: str) -> Iterator[tuple[str, str]]:
  if isinstance(values, Mapping):
    for key, value in values.items():
      yield from _leaves(value, f'{name}.{key}' if name else str(key))
  else:
    yield name, values if values and isinstance(values, str) else json.dumps(values)


def _settings(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
  sections = [(f'Config: {name}', values) for name, values in config.items()]
  sections += [('Seconds', results['seconds']), ('Versions', results['versions']),
               ('Machine and data', {field: results[field] for field in
                                     ('device', 'dataset', 'data_sha256', 'seed')})]
  return ''.join(
      f'<details><summary>{html.escape(title)}</summary><table class="settings"><tbody>'
      + ''.join(f'<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>'
                for name, value in _leaves(values, ''))
      + '</tbody></table></details>' for title, values in sections)


def _banner(results: Mapping[str, Any]) -> str:
  if not results['synthetic']:
    return ''
  return ('<p class="loud" role="alert"><strong>Synthetic data</strong> This model was trained and '
          'measured on garments drawn by a program, not on photographs. Its numbers say nothing '
          'about Fashion-MNIST.</p>')


def render(*, history: Sequence[Mapping[str, Any]], results: Mapping[str, Any],
           config: Mapping[str, Any], class_names: Sequence[str],
           charts: Mapping[str, tuple[bytes, bytes]], samples: Sequence[Sequence[np.ndarray]],
           wrong: Sequence[Example], right: Sequence[Example], card: Card) -> str:
  """The whole page.

  Args:
    history: the records of metrics.jsonl.
    results: results.json.
    config: config.json.
    class_names: K names, escaped here as all text is.
    charts: for each name in `ALTERNATIVES` its PNG for a light and for a dark page.
    samples: for each class some images, uint8 [H, W, 3].
    wrong: mistakes to show, in order.
    right: right answers to show, in order.
    card: the network, to try it.
  """
  accuracy = f'{100 * results["accuracy"]:.2f}%'
  what = f'{results["dataset"]} · {config["model"]["type"]}'
  body = document.filled(
      'report.html',
      **{name: _chart(name, *charts[name]) for name in ALTERNATIVES},
      banner=_banner(results),
      eyebrow=html.escape(f'{what} · seed {results["seed"]} · {results["split"]} split'),
      accuracy=accuracy,
      sentence=_sentence(results),
      tiles=_tiles(history, results),
      card=card.body,
      gap=_gap(history, results['best_epoch']),
      pairs=_pairs(results, class_names),
      mistakes=_mistakes(wrong, right, class_names),
      table=_table(results),
      samples=_samples(samples, class_names),
      settings=_settings(results, config),
  )
  return document.whole(html.escape(f'{accuracy} · {what}'), body, card.script)
