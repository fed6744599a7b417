"""The arithmetic of a training step, and what it takes at the speed of this CPU's products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Multiplications of one example's forward pass, layer by layer: output pixels * kernel * channels.
LAYERS = {
    'mlp': (784 * 128, 128 * 10),
    'cnn': (26 * 26 * 9 * 1 * 32, 11 * 11 * 9 * 32 * 64, 1600 * 128, 128 * 10),
    'cnn_blocks': (28 * 28 * 9 * 1 * 32, 14 * 14 * 9 * 32 * 64, 7 * 7 * 9 * 64 * 128, 1152 * 128,
                   128 * 10),
    'cnn_deep': (28 * 28 * 9 * 1 * 16, 28 * 28 * 9 * 16 * 16, 14 * 14 * 9 * 16 * 32,
                 14 * 14 * 9 * 32 * 32, 7 * 7 * 9 * 32 * 64, 7 * 7 * 9 * 64 * 64, 576 * 128,
                 128 * 10),
    'resnet': (28 * 28 * 9 * 1 * 16, *[28 * 28 * 9 * 16 * 16] * 4,
               14 * 14 * 16 * 32, 14 * 14 * 9 * 16 * 32, *[14 * 14 * 9 * 32 * 32] * 3,
               7 * 7 * 32 * 64, 7 * 7 * 9 * 32 * 64, *[7 * 7 * 9 * 64 * 64] * 3, 64 * 10),
    'cnn_dropout': (26 * 26 * 9 * 1 * 64, 11 * 11 * 9 * 64 * 128, 3 * 3 * 9 * 128 * 256,
                    2304 * 128, 128 * 10)}


def step_gflop(model: str, batch: int) -> float:
  """GFLOP of a training step's products.

  A layer's backward pass takes two products of the size of its forward pass, one for its weights
  and one for its input; the first layer needs none for its input.
  """
  first, *rest = LAYERS[model]
  return 2e-9 * batch * (2 * first + 3 * sum(rest))


def limits(rates: Mapping[str, Mapping[str, float]],
           medians: Mapping[str, Mapping[str, float]], examples: int) -> dict[str, Any]:
  """For each setting, the seconds an epoch that the products alone would take.

  Args:
    rates: GFLOP/s, by product and operands' type.
    medians: 'model/batch' -> mode -> seconds an epoch, measured.
    examples: of an epoch.

  Returns:
    'model/batch' -> GFLOP a step, the floor in seconds an epoch at the fastest rate of each type,
    and its share of our measured epoch (1: nothing but products at full speed).
  """
  best = {dtype: max(rate[dtype] for rate in rates.values()) for dtype in ('float32', 'bfloat16')}
  found: dict[str, Any] = {'gflops': {name: dict(rate) for name, rate in rates.items()},
                           'settings': {}}
  for setting, modes in medians.items():
    model, batch = setting.split('/')
    gflop = step_gflop(model, int(batch))
    steps = examples // int(batch)
    floor = {dtype: gflop * steps / rate for dtype, rate in best.items()}
    entry = {'gflop_a_step': gflop, 'floor_seconds': floor}
    if 'ours' in modes:
      entry['share_of_ours'] = {dtype: value / modes['ours'] for dtype, value in floor.items()}
    found['settings'][setting] = entry
  return found
