"""What two runs must have in common, bit for bit; and what must not lie about."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from fmnist_jax.errors import CheckpointError
from fmnist_jax.storage.checkpoint import Checkpoints
from fmnist_jax.trained_model import load_run


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """Digests of all that a finished run leaves, but for what depends on the clock."""
  run = load_run(workdir, 'latest')
  found: dict[str, Any] = {'progress': {k: v for k, v in run.progress.items() if k != 'seconds'}}
  for path, leaf in jax.tree_util.tree_flatten_with_path(run.state)[0]:
    found[f'state/{jax.tree_util.keystr(path)}'] = _digest(leaf)
  for number, line in enumerate((workdir / 'metrics.jsonl').read_text().splitlines()):
    found[f'metrics.jsonl/{number}'] = {
        k: v for k, v in json.loads(line).items()
        if k not in ('seconds', 'images_per_second', 'seal')}
  results = json.loads((workdir / 'results.json').read_text())
  found['results.json'] = {k: v for k, v in results.items() if k not in ('seconds', 'seal')}
  with np.load(workdir / 'predictions.npz') as predictions:
    for name in predictions.files:
      found[f'predictions.npz/{name}'] = _digest(predictions[name])
  # Members of a population have none.
  found['report'] = sorted(path.name for path in (workdir / 'report').glob('*'))
  return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """Names of what differs between two outcomes."""
  return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def unreadable(workdir: pathlib.Path) -> list[str]:
  """What is wrong with the checkpoints present and with results.json; nothing, it is hoped."""
  wrong = []
  checkpoints = Checkpoints(workdir / 'checkpoints')
  for step in checkpoints.steps():
    try:
      checkpoints.verify(step)
    except CheckpointError as error:
      wrong.append(str(error))
  try:
    json.loads((workdir / 'results.json').read_text())
  except FileNotFoundError:
    pass
  except ValueError as error:
    wrong.append(f'results.json: {error}')
  return wrong


def leftovers(*folders: pathlib.Path) -> list[str]:
  """Temporary files and folders: what is hidden, but for locks, and what TFDS calls incomplete."""
  return sorted(path.name for folder in folders for path in folder.rglob('*')
                if (path.name.startswith('.') and not path.name.endswith('.lock'))
                or path.name.startswith('incomplete.') or path.name.endswith('.__lock'))


def _digest(array: Any) -> str:
  array = np.asarray(array)
  return hashlib.sha256(f'{array.dtype} {array.shape} '.encode() + array.tobytes()).hexdigest()
