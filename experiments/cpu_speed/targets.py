"""The targets, each with the number that was reached. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plan

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


def _float32(summary: Summary, setting: str) -> float | None:
  """How much faster an epoch is than in the best mode of a peer, all in float32, by medians."""
  modes = summary['speed'].get(setting, {}).get('modes', {})
  seconds = {mode: modes[mode]['epoch_seconds']['median'] for mode in plan.FLOAT32 if mode in modes}
  theirs = [value for mode, value in seconds.items() if plan.MODES[mode].library in plan.PEERS]
  return min(theirs) / seconds['ours_float32'] if theirs and 'ours_float32' in seconds else None


def _memory(summary: Summary, model: str, library: str) -> float | None:
  """Peak memory of the library's leanest mode over ours, training at batch 128."""
  modes = summary['speed'].get(f'{model}/128', {}).get('modes', {})
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
  epoch = lambda model: _times_faster(summary, f'{model}/128', 'best peer')
  deep = ('cnn_deep', 'resnet')
  rows = [(f'`{model}` epoch against the best mode of the best peer', low, aim, epoch(model))
          for model, low, aim in (('cnn', 1.8, 2.5), *((m, 1.2, 1.8) for m in deep),
                                  ('cnn_blocks', 1.6, 2.2), ('cnn_dropout', 1.6, 2.2),
                                  ('mlp', 2.3, 4.0))]
  rows += [(f'`{model}` epoch in float32 against the best float32 mode', 1.2, 1.6,
            _float32(summary, f'{model}/128')) for model in plan.CNNS]
  rows += [('`cnn` epoch against plain Flax', 6.0, 11.0, _times_faster(summary, 'cnn/128', 'flax'))]
  rows += [(f'inference, images a second, `{model}`, best peer', 1.2, 2.0,
            _times_faster(summary, f'{model}/128', 'best peer', 'inference'))
           for model in ('mlp', *plan.CNNS)]
  rows += [(f'process start to {100 * accuracy:g} % validation accuracy, `cnn`, warm cache', 3.0,
            4.0, _to_accuracy(summary, str(accuracy))) for accuracy in plan.TARGET_ACCURACIES]
  rows += [('peak memory, `cnn`: Keras\'s over ours', 1.0, 1.0, _memory(summary, 'cnn', 'keras'))]
  rows += [(f'peak memory, `{model}`: PyTorch\'s over ours', 1.0, 1.1,
            _memory(summary, model, 'torch')) for model in ('mlp', *plan.CNNS)]
  rows += [('accuracy after the same epochs not below the peers\' (1: yes)', 1.0, 1.0,
            _accuracy(summary))]
  return [{'what': what, 'at_least': low, 'aim': aim, 'reached': reached,
           'verdict': _verdict(reached, low, aim)} for what, low, aim, reached in rows]


def _verdict(reached: float | None, low: float | None, aim: float) -> str:
  if reached is None:
    return 'not measured'
  if reached >= aim:
    return 'aim'
  return 'at least' if low is not None and reached >= low else 'missed'
