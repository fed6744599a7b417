"""Tables and pictures for people: WORKDIR/report/ and the table on the terminal."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_jax import views
from fmnist_jax.errors import ExportError
from fmnist_jax.storage.files import replace_folder

if TYPE_CHECKING:
  from fmnist_jax.graph import Graph

MISTAKES = 20  # shown in a report
SAMPLES = 10  # training images shown of each class
MOST_WEIGHTS = 3_000_000  # of a network in a page: 8 MB of it


def write(workdir: pathlib.Path, *, history: Sequence[Mapping[str, Any]],
          results: Mapping[str, Any], probabilities: np.ndarray, labels: np.ndarray,
          images: np.ndarray, train_images: np.ndarray, train_labels: np.ndarray,
          class_names: Sequence[str], config: Mapping[str, Any], network: Graph | str,
          validation_labels: np.ndarray | None = None) -> None:
  """Writes WORKDIR/report/: report.html and the pictures in it as PNG files.

  An older report is replaced as a whole: whenever `report` exists, it is complete. Equal
  arguments give equal bytes.

  Args:
    workdir: where `report` is put.
    history: the records of metrics.jsonl, one or more; validation fields may be absent.
    results: the object of results.json.
    probabilities: [N, K], of the evaluated split.
    labels: true classes of that split, integers [N].
    images: its images, uint8 [N, H, W, C], in the same order.
    train_images: the first M or more training images, uint8 [M, H, W, C], M >= 1: those shown.
    train_labels: of all images trained on, integers, at least M.
    class_names: K names.
    config: the object of config.json.
    network: for the card "Try it", or a sentence that says why there is none.
    validation_labels: of the images held out of training; None when there are none.

  Raises:
    WorkdirError: when the folder cannot be written.
  """
  # Here, because matplotlib takes longer to import than the rest of this library.
  from fmnist_jax.report import canvas, examples, page, pictures, try_it

  num_classes = len(class_names)
  samples = examples.first_of_each_class(train_images, train_labels[:len(train_images)],
                                         min(num_classes, pictures.MOST_ROWS), SAMPLES)
  wrong = examples.confident_mistakes(probabilities, labels, images, MISTAKES)
  right = examples.right_of_each_class(probabilities, labels, images, SAMPLES)
  splits = {'train': train_labels}
  if validation_labels is not None:
    splits['validation'] = validation_labels
  splits[results['split']] = labels

  with canvas.drawing():
    charts = {}
    for name, draw in (
        ('curves', lambda theme: pictures.curves(history, results['best_epoch'], theme)),
        ('confusion_matrix', lambda theme: pictures.confusion_matrix(
            np.array(results['confusion_matrix']), class_names, theme)),
        ('per_class', lambda theme: pictures.per_class(results['per_class'], theme)),
        ('class_distribution',
         lambda theme: pictures.class_distribution(splits, class_names, theme))):
      charts[name] = (canvas.png(draw(canvas.LIGHT)), canvas.png(draw(canvas.DARK)))
    files = {f'{name}.png': light for name, (light, _) in charts.items()}
    files['samples.png'] = canvas.png(
        pictures.samples(samples, class_names[:len(samples)], canvas.LIGHT))
    files['mistakes.png'] = canvas.png(
        pictures.mistakes(wrong, right, class_names, canvas.LIGHT))
  text = page.render(history=history, results=results, config=config, class_names=class_names,
                     charts=charts, samples=samples, wrong=wrong, right=right,
                     card=try_it.card(network, images, labels, results['split']))
  # A path in the config may hold bytes that are no characters.
  files['report.html'] = text.encode('utf-8', 'backslashreplace')
  replace_folder(workdir / 'report', files)


def check_weights(count: int) -> None:
  """Raises ExportError for a network of more weights than a page can hold."""
  if count > MOST_WEIGHTS:
    raise ExportError(f'The network has {count:,} weights, and a page holds at most '
                      f'{MOST_WEIGHTS:,}.')


def classification_table(results: Mapping[str, Any]) -> str:
  """Precision, recall, F1 and support of each class and their mean, as text of equal columns.

  Args:
    results: the object of results.json, or what `metrics.summarize` returns.
  """
  fields = ('precision', 'recall', 'f1')
  width = max(len('macro mean'), *(len(entry['name']) for entry in results['per_class']))

  def line(name: str, scores: Sequence[str], support: str) -> str:
    return f'{name:<{width}}' + ''.join(f'{score:>11}' for score in scores) + f'{support:>10}'

  how = [views.told(results['tta'])] if 'tta' in results else []
  rows = [line(entry['name'], [f'{entry[field]:.4f}' for field in fields],
               f'{entry["support"]:,}') for entry in results['per_class']]
  mean = [f'{np.mean([entry[field] for entry in results["per_class"]]):.4f}' for field in fields]
  examples = f'{results["examples"]:,}'
  return '\n'.join([
      line('', ['precision', 'recall', 'F1'], 'examples'), *rows, '',
      line('macro mean', mean, examples),
      line('accuracy', ['', '', f'{results["accuracy"]:.4f}'], examples), *how])
