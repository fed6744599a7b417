"""What a search leaves: search.json, a config of the best trial, a table, a report."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from fmnist_jax import config as config_lib
from fmnist_jax import settings
from fmnist_jax.config import Config
from fmnist_jax.errors import DivergenceError
from fmnist_jax.population import summary as population
from fmnist_jax.storage import files

SHOWN = 10  # of the best
CONFIRMING = 5  # fresh seeds of each trial that is confirmed
CURSE = ('These accuracies are of the images by which the best were chosen among {trials} trials, '
         'so they are biased upwards: expect less on other images.')
FRESH = ('Fresh seeds take from them what was luck in training; that these settings were chosen '
         'by these images remains.')


def ranked(outcomes: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Names of the trials that were trained to their end, the best first; of equals the first."""
  finished = [name for name, one in outcomes.items() if one['accuracy'] is not None]
  return sorted(finished, key=lambda name: -outcomes[name]['accuracy'])


def write(directory: pathlib.Path, plan: Mapping[str, Any], best: Config | None,
          outcomes: Mapping[str, Mapping[str, Any]], importances: Mapping[str, float],
          say: Callable[[str], None]) -> dict[str, Any]:
  """Writes search.json, best.py and report/, and says what is in them.

  Args:
    directory: of the search.
    plan: what was searched, as study.json has it.
    best: the config of the best trial; None where none was trained to its end.
    outcomes: of every trial.
    importances: of every domain, shares.
    say: prints.

  Returns:
    The contents of search.json.

  Raises:
    DivergenceError: when no trial came to its end.
  """
  names = ranked(outcomes)
  found = {
      **plan, 'best': names[0] if names else None, 'importances': dict(importances),
      'trials': [{'name': name, **{key: value for key, value in one.items() if key != 'rungs'}}
                 for name, one in outcomes.items()],
      'confirmed': _confirmed(directory, outcomes),
      'note': CURSE.format(trials=len(outcomes))}
  files.write_json(directory / 'search.json', found)
  if best is None:
    message = next((one['message'] for one in outcomes.values() if one['message']), '')
    raise DivergenceError(f'Not one of {len(outcomes)} trials was trained to its end; search '
                          f'elsewhere. {message}'.strip())
  files.write_bytes(directory / 'best.py', python(directory, best, found).encode())
  from fmnist_jax.report import searches  # Imports matplotlib, which takes a while.
  searches.write(directory, found, cells(found), counts(found))
  say(table(found))
  say(f'{found["note"]} {FRESH if found["confirmed"] else ""}'.strip())
  say(f'wrote {directory / "search.json"}, {directory / "best.py"} and '
      f'{directory / "report" / "report.html"}; train the best with\n'
      f'  {command(directory)}')
  return found


def _confirmed(directory: pathlib.Path,
               outcomes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """What fresh seeds gave, of the trials that were trained again; those of old searches too."""
  found = []
  for name in ranked(outcomes):
    path = directory / 'confirm' / name / 'population.json'
    if path.exists():
      group, = files.read_json(path, {'groups': [{'accuracy': {str: (float, None, [float])},
                                                  'seeds': [range(2**31)]}]})['groups']
      found.append({'name': name, 'seeds': group['seeds'], 'accuracy': group['accuracy']})
  return found


def best_first(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The trials of search.json that were trained to their end, the best first."""
  trials = {trial['name']: trial for trial in found['trials']}
  return [trials[name] for name in ranked(trials)]


def cells(found: Mapping[str, Any]) -> list[list[str]]:
  """The best trials as a table: a header, then a line each."""
  again = {one['name']: one['accuracy'] for one in found['confirmed']}
  rows = [['trial', 'validation accuracy %', *['with fresh seeds %'] * bool(again), 'epochs',
           *found['space']]]
  for trial in best_first(found)[:SHOWN]:
    accuracy = population.plus_minus(population.statistics(trial['accuracies']), 100, 2)
    fresh = [population.plus_minus(again[trial['name']], 100, 2) if trial['name'] in again else '-']
    rows.append([trial['name'], accuracy, *fresh * bool(again),
                 str(sum(map(len, trial['validation_accuracy']))),
                 *(shown(trial['params'].get(name, '-')) for name in found['space'])])
  return rows


def shown(value: Any) -> str:
  """A drawn value, short."""
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def counts(found: Mapping[str, Any]) -> str:
  """How trials ended, and what that took."""
  ends = [trial['ended'] for trial in found['trials']]
  words = ', '.join(f'{ends.count(end)} {end}' for end in dict.fromkeys(sorted(ends)))
  epochs = sum(sum(map(len, trial['validation_accuracy'])) for trial in found['trials'])
  return f'{len(ends)} trials ({words}), {epochs:,} epochs'


def table(found: Mapping[str, Any]) -> str:
  """search.json as a person reads it: the best ten, with 95 % intervals where there are seeds."""
  return f'{counts(found)}; the best:\n{population.columns(cells(found))}'


def command(directory: pathlib.Path) -> str:
  """What trains the best trial's config, and measures it on the test split."""
  return f'python -m fmnist_jax.main --config={directory / "best.py"}'


def python(directory: pathlib.Path, best: Config, found: Mapping[str, Any]) -> str:
  """best.py: a config file."""
  trial = best_first(found)[0]
  accuracy = population.plus_minus(population.statistics(trial['accuracies']), 100, 2)
  drawn = ''.join(f'  {name} = {shown(value)}\n' for name, value in trial['params'].items())
  imports: dict[str, set[str]] = {}
  for module, names in settings.imports(best).items():
    # What this library exports to config files is imported from there.
    place = 'fmnist_jax.config' if names <= set(config_lib.__all__) else module
    imports.setdefault(place, set()).update(names)
  imported = '\n'.join(f'from {module} import {", ".join(sorted(names))}'
                       for module, names in sorted(imports.items()))
  return (f'"""The best of {len(found["trials"])} trials, {trial["name"]}:\n\n{drawn}\n'
          f'  {command(directory)}\n\n{accuracy} % on the validation images by which it was '
          f'chosen, which is biased upwards.\n"""\n\n{imported}\n\n\ndef get_config() -> Config:\n'
          f'  return {settings.source(best, 2)}\n')

