"""Which of several trained models is better, and how sure that is.

Finished populations, and single runs, become a table, paired differences from the first, in words,
and a forest plot.
"""

from __future__ import annotations

import dataclasses
import html
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmnist_jax import metrics, views
from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.population import summary
from fmnist_jax.storage import files, readback


@dataclasses.dataclass(frozen=True)
class System:
  """Runs that differ in their seed alone.

  Attributes:
    name: to tell it from the others.
    members: the finished runs, in the order of their seeds.
  """
  name: str
  members: list[summary.Finished]

  @property
  def correct(self) -> np.ndarray:
    """How often each image was classified correctly, float64 [N] in [0, 1]: mean over members."""
    return np.mean([member.probabilities.argmax(1) == member.labels for member in self.members],
                   axis=0)

  @property
  def results(self) -> Any:
    """Those of the first member, for what all have in common."""
    return self.members[0].results


def read(directories: Sequence[str | pathlib.Path]) -> list[System]:
  """The systems in some directories: one a run or population, or one a varied setting.

  Raises:
    WorkdirError: when a directory is neither a finished population nor a finished run.
  """
  paths = [pathlib.Path(directory) for directory in directories]
  try:
    shortened = [path.resolve().name for path in paths]
  except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle.
    raise WorkdirError(f'Not all of {", ".join(map(ascii, directories))} can be paths: {error}.'
                       ) from error
  systems = []
  for path, short in zip(paths, shortened):
    name = short if shortened.count(short) == 1 else str(path)
    if os.path.exists(path / 'population.json'):
      for group in files.read_json(path / 'population.json', readback.POPULATION)['groups']:
        settings = ' '.join(f'{key}={value:g}' for key, value in group['settings'].items())
        names = group['members']
        if not names or not all(name.isprintable() and 0 < len(name) < 256 and name != '..'
                                and '/' not in name for name in names):
          raise WorkdirError(f'{path / "population.json"} is damaged: it does not list directories '
                             'below members/; run the command of that population again.')
        members = [summary.read(path / 'members' / member) for member in group['members']]
        systems.append(System(f'{name} {settings}'.strip(), members))
    elif os.path.exists(path / 'plan.json'):
      raise WorkdirError(f'{path} is a population that is not finished; run its command again.')
    else:
      systems.append(System(name, [summary.read(path)]))
  return systems


def row(system: System) -> dict[str, Any]:
  """A system's line of the table: statistics of `summary.summarize`, parameters, seconds a run."""
  class_names = [entry['name'] for entry in system.results['per_class']]
  scores = summary.summarize(system.members, class_names)
  return {'name': system.name, 'dataset': system.results['dataset'],
          'synthetic': system.results['synthetic'], 'split': system.results['split'],
          'examples': system.results['examples'], 'parameters': system.results['parameters'],
          **{name: system.results[name] for name in ['tta'] if name in system.results},
          'seconds_a_run': sum(scores['seconds'].values()) / len(system.members),
          **{name: scores[name] for name in ('seeds', *summary.SCORES, 'ensemble')}}


def difference(first: System, second: System) -> dict[str, Any]:
  """How much more accurate `second` is: paired over seeds, and paired over images.

  The interval over seeds says what training again would change, with these images; that over
  images says what other images would change, with these models. Points are hundredths of accuracy.

  Returns:
    JSON values: names, `over_seeds` and `over_images` (mean, half_width, values; None where they
    cannot be paired), and what that means in words.
  """
  by_seed = [{member.results['seed']: member.results['accuracy'] for member in system.members}
             for system in (first, second)]
  common = sorted(by_seed[0].keys() & by_seed[1].keys())
  same = (first.results['split'] == second.results['split']
          and first.results['data_sha256'] == second.results['data_sha256']
          and np.array_equal(first.members[0].labels, second.members[0].labels))
  over_seeds = over_images = None
  if common and same:
    left, right = ([100 * accuracies[seed] for seed in common] for accuracies in by_seed)
    over_seeds = metrics.paired_difference(left, right)
  if same:
    over_images = metrics.paired_difference(100 * first.correct, 100 * second.correct)
  as_json = lambda interval: None if interval is None else {
      'mean': interval.mean, 'half_width': interval.half_width, 'values': interval.values}
  return {'first': first.name, 'second': second.name, 'seeds': common,
          'over_seeds': as_json(over_seeds), 'over_images': as_json(over_images),
          'words': _words(first.name, second.name, over_seeds, over_images)}


def _words(first: str, second: str, over_seeds: metrics.Interval | None,
           over_images: metrics.Interval | None) -> str:
  if over_images is None:
    return (f'{first} and {second} were measured on different images: their difference has no '
            'paired interval.')
  images = f'{over_images.values:,} images'
  enough = over_seeds is not None and over_seeds.half_width is not None
  sure_of_images = abs(over_images.mean) > (over_images.half_width or 0.0)
  if not enough:
    left, right = (second, first) if over_images.mean > 0 else (first, second)
    reason = 'one seed' if over_seeds else 'no seed in common'
    if not sure_of_images:
      return (f'No difference between {first} and {second} shown with {reason} on {images} '
              f'({over_images.mean:+.2f} +- {over_images.half_width:.2f} points).')
    return (f'{left} is better than {right} by {abs(over_images.mean):.2f} +- '
            f'{over_images.half_width:.2f} points on other images; with {reason}, what training '
            'again would change is not known.')
  assert over_seeds is not None and over_seeds.half_width is not None
  seeds = f'{over_seeds.values} seeds'
  if abs(over_seeds.mean) <= over_seeds.half_width:
    return (f'No difference between {first} and {second} shown with {seeds} '
            f'({over_seeds.mean:+.2f} +- {over_seeds.half_width:.2f} points).')
  left, right = (second, first) if over_seeds.mean > 0 else (first, second)
  text = (f'{left} is better than {right} by {abs(over_seeds.mean):.2f} +- '
          f'{over_seeds.half_width:.2f} points ({seeds}; over {images} +- '
          f'{over_images.half_width:.2f})')
  if not sure_of_images:
    return f'{text}: so for these images, but others might not show it.'
  return f'{text}.'


def compare(directories: Sequence[str | pathlib.Path],
            output: str | pathlib.Path) -> dict[str, Any]:
  """Compares systems and writes compare.json, compare.md and forest.png.

  Args:
    directories: of finished populations or runs; the first holds what the others are compared
      with.
    output: directory to write to.

  Returns:
    What compare.json holds: `systems`, a row each, and `differences` from the first.

  Raises:
    UserError: when there is nothing to compare, or a directory cannot be read or written.
  """
  systems = read(directories)
  if len(systems) < 2:
    raise ConfigError('There is one system to look at; give two or more directories to compare.')
  rows = [row(system) for system in systems]
  compared = {'systems': rows,
              'differences': [difference(systems[0], other) for other in systems[1:]]}
  output = pathlib.Path(output)
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise WorkdirError(f'{output} cannot be made: {error.strerror}; choose another --output.'
                       ) from error
  from fmnist_jax.report import populations  # Imports matplotlib, which takes a while.
  files.write_bytes(output / 'forest.png', populations.forest(rows, compared['differences']))
  files.write_bytes(output / 'compare.md', markdown(compared).encode())
  files.write_json(output / 'compare.json', compared)
  return compared


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
  """The table: a header, then a line a system."""
  lines = [['', 'parameters', 'seconds', 'seeds', 'accuracy %', 'macro F1 %', 'loss', 'gap %',
            'ensemble %']]
  for entry in rows:
    lines.append([
        entry['name'], f'{entry["parameters"]:,}', f'{entry["seconds_a_run"]:.0f}',
        str(len(entry['seeds'])), summary.plus_minus(entry['accuracy'], 100, 2),
        summary.plus_minus(entry['macro_f1'], 100, 2), summary.plus_minus(entry['loss'], 1, 4),
        summary.plus_minus(entry['train_validation_gap'], 100, 2),
        f'{100 * entry["ensemble"]["accuracy"]:.2f}'])
  return lines


def notes(rows: Sequence[dict[str, Any]]) -> str:
  """What the table's numbers are."""
  measured = sorted({f'{entry["examples"]:,} {entry["split"]} images of {entry["dataset"]}'
                     + (f', {views.told(entry["tta"])}' if 'tta' in entry else '')
                     for entry in rows})
  synthetic = ' Some images are SYNTHETIC.' if any(entry['synthetic'] for entry in rows) else ''
  return (f'Measured on {", ".join(measured)}.{synthetic} Means over seeds with 95 % intervals of '
          'the mean (t); seconds are wall time booked to one run, which in a population shared the '
          'machine with others; gap is training less validation accuracy. Differences are paired; '
          'each interval stands for itself, none is corrected for their number.')


def plain(text: str) -> str:
  """Text that Markdown shows as it is: names are somebody's, and could be HTML."""
  return html.escape(text, quote=False).replace('|', '&#124;').replace('`', '&#96;')


def markdown(compared: dict[str, Any]) -> str:
  """compare.md."""
  header, *lines = cells(compared['systems'])
  lines = [[plain(cell) for cell in line] for line in lines]
  table = [header, ['---', *['---:'] * (len(header) - 1)], *lines]
  text = '\n'.join(f'| {" | ".join(line)} |' for line in table)
  words = '\n'.join(f'- {plain(entry["words"])}' for entry in compared['differences'])
  return (f'{text}\n\n{plain(notes(compared["systems"]))}\n\n{words}\n\n'
          '![accuracy and differences with their intervals](forest.png)\n')
