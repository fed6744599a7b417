"""What the members of a population say together: population.json, a table, a picture."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fmnist_jax import metrics, views
from fmnist_jax.errors import DivergenceError, WorkdirError
from fmnist_jax.storage import files, readback, workdir

SCORES = ('accuracy', 'loss', 'macro_f1', 'train_validation_gap')


@dataclasses.dataclass(frozen=True)
class Finished:
  """A finished run, as its directory tells it.

  Attributes:
    path: the directory.
    results: the object of results.json.
    history: the records of metrics.jsonl.
    probabilities: float32 [N, K], of the evaluated split.
    labels: int32 [N].
  """
  path: pathlib.Path
  results: Mapping[str, Any]
  history: Sequence[Mapping[str, Any]]
  probabilities: np.ndarray
  labels: np.ndarray

  def score(self, name: str) -> float | None:
    """One of `SCORES`; None where there is no validation data.

    The gap is accuracy on training images, without dropout and augmentation, less accuracy on
    validation images, after the best epoch.
    """
    if name != 'train_validation_gap':
      return self.results[name]
    best = self.history[self.results['best_epoch'] - 1]
    if 'validation_accuracy' not in best:
      return None
    return best['clean_train_accuracy'] - best['validation_accuracy']


def read(path: pathlib.Path) -> Finished:
  """Reads a finished run; raises WorkdirError when it is none."""
  if not os.path.exists(path / 'results.json'):
    raise WorkdirError(f'{path} is not a finished run: it has no results.json; train it to its '
                       'end first.')
  results = files.read_json(path / 'results.json', readback.RESULTS, sealed=True)
  try:
    with readback.open_regular(path / 'predictions.npz') as file:
      arrays = readback.arrays(file, ('probabilities', 'labels'), packed=False)
    _check_predictions(arrays, results)
  except (OSError, ValueError) as error:
    raise WorkdirError(f'{path / "predictions.npz"} could not be read ({str(error).rstrip(".")}); '
                       'delete the results.json beside it and run the same command again.'
                       ) from error
  history = workdir.History(path / 'metrics.jsonl')
  records = history.read()
  problem = readback.history_problem(records)
  if not problem and results['best_epoch'] > len(records):
    problem = f'it ends before epoch {results["best_epoch"]}, the best'
  if problem:
    raise WorkdirError(f'{history.path} is damaged ({problem}); put the file back, or train again '
                       'in another --workdir.')
  return Finished(path, results, records, arrays['probabilities'], arrays['labels'])


def _check_predictions(arrays: Mapping[str, np.ndarray], results: Mapping[str, Any]) -> None:
  """Raises ValueError unless predictions are those that the results were computed from."""
  for name in ('probabilities', 'labels'):
    if name not in arrays:
      raise ValueError(f'it has no array {name!r}')
  probabilities = arrays['probabilities']
  if probabilities.dtype != np.float32:
    raise ValueError(f'probabilities are {probabilities.dtype}')
  names = [entry['name'] for entry in results['per_class']]
  again = metrics.summarize(probabilities, arrays['labels'], names)
  if again['confusion_matrix'] != results['confusion_matrix']:
    raise ValueError('results.json was computed from other predictions')


def statistics(values: Sequence[float]) -> dict[str, Any]:
  """Mean, standard deviation, 95 % t-interval, extremes of [N] values; None where N is 1."""
  interval = metrics.mean_interval(values)
  low, high = ((None, None) if interval.half_width is None else
               (interval.mean - interval.half_width, interval.mean + interval.half_width))
  return {'mean': interval.mean, 'std': interval.std, 'half_width': interval.half_width, 'low': low,
          'high': high, 'min': min(values), 'max': max(values), 'values': list(values)}


def summarize(members: Sequence[Finished], class_names: Sequence[str]) -> dict[str, Any]:
  """Statistics of every score over members that differ in their seed alone, and their ensemble.

  The ensemble's probabilities are the mean of its members'.
  """
  summed: dict[str, Any] = {'members': [member.path.name for member in members],
                            'seeds': [member.results['seed'] for member in members]}
  for name in SCORES:
    values = [member.score(name) for member in members]
    summed[name] = None if None in values else statistics(values)  # type: ignore[arg-type]
  summed['f1_of_class'] = {
      name: statistics([member.results['per_class'][k]['f1'] for member in members])
      for k, name in enumerate(class_names)}
  # Added up one by one: all at once, in float64, many members would not fit in memory.
  mean = np.zeros(members[0].probabilities.shape)
  for member in members:
    mean += member.probabilities / len(members)
  together = metrics.summarize(mean, members[0].labels, class_names)
  summed['ensemble'] = {name: together[name] for name in ('accuracy', 'loss', 'macro_f1',
                                                          'expected_calibration_error')}
  summed['epochs'] = [member.results['epochs'] for member in members]
  summed['best_epochs'] = [member.results['best_epoch'] for member in members]
  summed['seconds'] = {phase: sum(member.results['seconds'][phase] for member in members)
                       for phase in members[0].results['seconds']}
  return summed


def write(directory: pathlib.Path, names: Sequence[tuple[str, Mapping[str, float]]], mode: str,
          say: Callable[[str], None]) -> dict[str, Any]:
  """Writes population.json and curves.png, and says what is in them.

  Args:
    directory: of the population.
    names: directory name and varied settings of every member.
    mode: how they were trained.
    say: prints.

  Returns:
    The contents of population.json.

  Raises:
    DivergenceError: when no member came to its end.
  """
  lots: dict[str, list[str]] = {}
  settings_of: dict[str, dict[str, float]] = {}
  for name, settings in names:
    key = ' '.join(f'{field}={value:g}' for field, value in settings.items())
    lots.setdefault(key, []).append(name)
    settings_of[key] = dict(settings)
  groups, curves, diverged = [], {}, []
  one: Finished | None = None
  for key, lot in lots.items():
    paths = [directory / 'members' / name for name in lot]
    lost = [path.name for path in paths if (path / 'diverged.json').exists()]
    diverged += lost
    members = [read(path) for path in paths if path.name not in lost]
    if not members:
      continue
    one = members[0]
    class_names = [entry['name'] for entry in one.results['per_class']]
    groups.append({'settings': settings_of[key], **summarize(members, class_names)})
    curves[key] = [member.history for member in members]
  if one is None:
    message = files.read_json(directory / 'members' / diverged[0] / 'diverged.json',
                                {'message': str})['message']
    raise DivergenceError(f'Not one of {len(diverged)} members came to its end: {message}')
  population = {
      **{name: one.results[name] for name in ('dataset', 'synthetic', 'split', 'examples',
                                              'parameters', 'tta') if name in one.results},
      'mode': mode, 'groups': groups, 'diverged': diverged,
      'seconds': {phase: sum(group['seconds'][phase] for group in groups)
                  for phase in groups[0]['seconds']},
      **{name: one.results[name] for name in ('data_sha256', 'versions', 'device')}}
  from fmnist_jax.report import populations  # Imports matplotlib, which takes a while.
  files.write_bytes(directory / 'curves.png', populations.curves(curves))
  files.write_json(directory / 'population.json', population)
  say(table(population))
  if diverged:
    say(f'{len(diverged)} diverged and count for nothing: {", ".join(diverged)}')
  say(f'wrote {directory / "population.json"} and {directory / "curves.png"}')
  return population


def plus_minus(statistic: Mapping[str, Any] | None, scale: float, digits: int) -> str:
  """'91.23 +- 0.12': a mean and the half-width of its interval, times `scale`."""
  if statistic is None:
    return '-'
  text = f'{scale * statistic["mean"]:.{digits}f}'
  if statistic['half_width'] is None:
    return text
  return f'{text} +- {scale * statistic["half_width"]:.{digits}f}'


def columns(rows: Sequence[Sequence[str]]) -> str:
  """Rows of cells as text, the first column left, the others right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join('  '.join(f'{cell:<{width}}' if i == 0 else f'{cell:>{width}}'
                             for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
                   for row in rows)


def table(population: Mapping[str, Any]) -> str:
  """population.json as a person reads it: means with the half-width of their 95 % intervals."""
  rows = [['', 'seeds', f'{population["split"]} accuracy %', 'std', 'loss', 'macro F1 %', 'gap %',
           'ensemble %']]
  for group in population['groups']:
    std = group['accuracy']['std']
    rows.append([
        ' '.join(f'{name}={value:g}' for name, value in group['settings'].items()) or 'all',
        str(len(group['members'])), plus_minus(group['accuracy'], 100, 2),
        '-' if std is None else f'{100 * std:.2f}', plus_minus(group['loss'], 1, 4),
        plus_minus(group['macro_f1'], 100, 2), plus_minus(group['train_validation_gap'], 100, 2),
        f'{100 * group["ensemble"]["accuracy"]:.2f}'])
  text = columns(rows)
  if 'tta' in population:
    text += f'\n\n{views.told(population["tta"])}'
  if len(population['groups']) == 1:
    classes = [['class', 'F1 %', 'min', 'max']] + [
        [name, plus_minus(scores, 100, 2), f'{100 * scores["min"]:.2f}',
         f'{100 * scores["max"]:.2f}']
        for name, scores in population['groups'][0]['f1_of_class'].items()]
    text += '\n\n' + columns(classes)
  return text
