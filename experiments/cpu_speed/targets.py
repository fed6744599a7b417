"""The targets, each with the number that was reached. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Summary = Mapping[str, Any]


def _times_faster(summary: Summary, setting: str, against: str,
                  what: str = 'epoch') -> float | None:
  entry = summary['speed'].get(setting, {})
  column = 'times_faster' if what == 'epoch' else 'times_faster_inference'
  mode = entry.get(f'best_peer_{what}') if against == 'best peer' else against
  return entry.get(column, {}).get(mode)


def _to_accuracy(summary: Summary, accuracy: str) -> float | None:
  """How much earlier than the best peer; None when somebody did not get there."""
  runs = summary['time_to']
  ours = (runs.get('ours, warm') or {}).get(accuracy)
  theirs = [run[accuracy]['median'] for name, run in runs.items()
            if not name.startswith('ours') and run.get(accuracy)]
  return min(theirs) / ours['median'] if ours and theirs else None


def _memory(summary: Summary, library: str) -> float | None:
  """Peak memory of the library's leanest mode over ours, training `cnn` at batch 128."""
  modes = summary['speed'].get('cnn/128', {}).get('modes', {})
  theirs = [n['peak_mb']['median'] for mode, n in modes.items()
            if mode.split('_')[0] == library]
  return min(theirs) / modes['ours']['peak_mb']['median'] if theirs and 'ours' in modes else None


def _accuracy(summary: Summary) -> float | None:
  """1 when no mean is below a peer's beyond chance, on validation and test images; else 0."""
  verdicts = [entry[f'{split}_not_below'] for modes in summary['parity'].values()
              for entry in modes.values() for split in ('validation', 'test')
              if f'{split}_not_below' in entry]
  return float(all(verdicts)) if verdicts else None


def targets(summary: Summary) -> list[dict[str, Any]]:
  """What, how many times better at least and ideally, what was reached, and the verdict.

  Args:
    summary: of `summary.py`: 'speed', 'time_to', 'parity'.

  Returns:
    Dicts of `what`, `at_least`, `aim`, `reached` (None: not measured), `verdict` ('aim',
    'at least', 'missed', 'not measured').
  """
  rows = (
      ('`cnn` epoch against the best mode of the best peer', 1.2, 2.0,
       _times_faster(summary, 'cnn/128', 'best peer')),
      ('`cnn` epoch against plain Flax', 6.0, 11.0, _times_faster(summary, 'cnn/128', 'flax')),
      ('`mlp` epoch against the best peer', 2.0, 4.0,
       _times_faster(summary, 'mlp/128', 'best peer')),
      ('`cnn_blocks` epoch against the best peer', 1.2, 2.0,
       _times_faster(summary, 'cnn_blocks/128', 'best peer')),
      ('inference, images a second, `cnn`, best peer', 1.2, 2.0,
       _times_faster(summary, 'cnn/128', 'best peer', 'inference')),
      ('process start to 90 % validation accuracy, `cnn`, warm cache', 1.5, 3.0,
       _to_accuracy(summary, '0.9')),
      ('process start to 91.5 % validation accuracy, `cnn`, warm cache', 1.5, 3.0,
       _to_accuracy(summary, '0.915')),
      ('peak memory, `cnn`: Keras\'s over ours', 1.0, 1.0, _memory(summary, 'keras')),
      ('peak memory, `cnn`: PyTorch\'s over ours', None, 1.0, _memory(summary, 'torch')),
      ('accuracy after the same epochs not below the peers\' (1: yes)', 1.0, 1.0,
       _accuracy(summary)))
  return [{'what': what, 'at_least': low, 'aim': aim, 'reached': reached,
           'verdict': _verdict(reached, low, aim)} for what, low, aim, reached in rows]


def _verdict(reached: float | None, low: float | None, aim: float) -> str:
  if reached is None:
    return 'not measured'
  if reached >= aim:
    return 'aim'
  return 'at least' if low is not None and reached >= low else 'missed'
