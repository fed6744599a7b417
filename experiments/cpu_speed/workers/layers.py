"""Layer shapes for the chart of GFLOP/s, and how each library's rate is taken. Numpy alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import protocol

BATCH = 128
# Name: side of the image, input channels, output channels, kernel, padding, stride, groups.
SHAPES = {
    '28x28, 1 to 32': (28, 1, 32, 3, 1, 1, 1), '28x28, 16 to 16': (28, 16, 16, 3, 1, 1, 1),
    '14x14, 32 to 32': (14, 32, 32, 3, 1, 1, 1), '14x14, 64 to 64': (14, 64, 64, 3, 1, 1, 1),
    '12x12, 32 to 64, no padding': (12, 32, 64, 3, 0, 1, 1),
    '7x7, 128 to 128': (7, 128, 128, 3, 1, 1, 1), '7x7, 512 to 512': (7, 512, 512, 3, 1, 1, 1),
    '28x28, 16 to 32, stride 2': (28, 16, 32, 3, 1, 2, 1),
    '14x14, 64 to 128, 1x1': (14, 64, 128, 1, 0, 1, 1),
    '14x14, 128, depthwise': (14, 128, 128, 3, 1, 1, 128)}
DTYPES = ('float32', 'bfloat16')
# A loop of one shape: called with a number of repetitions, returns when all are done.
Loop = Callable[[int], None]


def run(make: Callable[..., tuple[Loop, Loop]]) -> None:
  """Prints GFLOP/s by shape and type: of the result, and of result and both gradients.

  Args:
    make: (images NHWC, kernel HWIO, padding, stride, groups, dtype's name) -> two loops.
  """
  random, found = np.random.default_rng(0), {}
  for name, (side, inputs, outputs, kernel, padding, stride, groups) in SHAPES.items():
    x = random.standard_normal((BATCH, side, side, inputs), np.float32)
    w = random.standard_normal((kernel, kernel, inputs // groups, outputs), np.float32)
    out = (side + 2 * padding - kernel) // stride + 1
    gflop = 2e-9 * BATCH * out**2 * w.size
    for dtype in DTYPES:
      loops = make(x, w, padding, stride, groups, dtype)
      found[f'{name}/{dtype}'] = [times * gflop / _seconds(loop)
                                  for times, loop in zip((1, 3), loops)]
  print(protocol.MARK + json.dumps({'gflops': found}), flush=True)


def _seconds(loop: Loop, repetitions: int = 20) -> float:
  """Of one repetition: the least of several loops, for half a second."""
  loop(repetitions)
  best, spent = float('inf'), 0.0
  while spent < 0.5:
    start = time.perf_counter()
    loop(repetitions)
    seconds = time.perf_counter() - start
    best, spent = min(best, seconds / repetitions), spent + seconds
  return best
