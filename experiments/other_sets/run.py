"""The same three models on every public set that can be had; see README.md."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, data
from fmnist_jax.data import originals
from fmnist_jax.population import summary
from fmnist_jax.storage import files

MODELS = ('mlp', 'cnn', 'cnn_blocks')


def folder_of(original: originals.Original, folder: str) -> str:
  """Where in a folder of data sets one lies; '' where it does not: the usual places are tried."""
  place = os.path.join(folder, original.folder)
  return place if folder and original.find(place, 0) else ''


def had(config: config_lib.Config) -> bool:
  """Whether a set is to be had."""
  try:
    data.load(config.data)
  except data.DataUnavailable as error:
    print(f'-- {error}', flush=True)
    return False
  return True


def body(experiment: record.Experiment) -> None:
  """Trains what can be trained."""
  args = experiment.args
  found: dict[str, Any] = {}
  for name, original in originals.ORIGINALS.items():
    place = folder_of(original, args.sets_dir)
    for model in MODELS:
      config = config_lib.replace(config_file.load(model),
                                  {'data.name': name, 'data.data_dir': place})
      if model == MODELS[0] and not had(config):
        break
      label = model if name == 'fashion_mnist' else f'{model}_{name}'
      directory = experiment.population(label, config, place)
      one = files.read_json(directory / 'population.json')
      found.setdefault(name, {})[model] = one['groups'][0]
  rows = [['', *(f'`{model}`, test accuracy %' for model in MODELS),
           *(f'`{model}`, macro F1 %' for model in MODELS)]]
  for name, original in originals.ORIGINALS.items():
    cells = [summary.plus_minus(found[name][model][score], 100, 2)
             for score in ('accuracy', 'macro_f1') for model in MODELS
             ] if name in found else ['not had', *[''] * (2 * len(MODELS) - 1)]
    rows.append([original.title, *cells])
  missing = [name for name in originals.ORIGINALS if name not in found]
  results = {'sets': found, 'not_had': missing, 'seconds': experiment.seconds}
  text = record.table(rows)
  if found:
    results |= {'device': one['device'], 'versions': one['versions']}
    text += (f'\n\nMeans over {args.seeds} seeds with 95 % intervals (t), on the test images of '
             f'each set. {record.where(one)}. {record.took(experiment)}')
  experiment.save(results, text)


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--sets_dir', default='', help='folder with a folder of files for each set, '
                      'where those are not where the library looks')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5, extra=extra)
