"""Batches of data that is not kept on the device, read ahead while the device works."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fmnist_jax.data.dataset import Split

_AHEAD = 3  # Calls' worth of batches that wait or are being read, beside the one in use.


@contextlib.contextmanager
def stream(split: Split, order: np.ndarray, start: int, size: int,
           place: Callable[[tuple[np.ndarray, np.ndarray]], Any]) -> Iterator[Iterator[Any]]:
  """Reads the batches of an epoch in a background thread.

  It needs the interpreter's lock only between calls' worth of batches: what a `MappedSource`
  fetches is copied without it, to where jax leaves it.

  Used as `with stream(...) as chunks:`; leaving the context, however that happens, ends the
  thread. Beginning at a later step costs nothing.

  Args:
    split: what to read from.
    order: the examples of each step, int32 [steps, B], as from `epoch_order`.
    start: the first step wanted.
    size: steps a chunk; chunks end at multiples of it (counted from step 0) and with the epoch.
    place: called in the thread with the images of a chunk, uint8 [k, B, H, W, C], and its labels,
      int32 [k, B], k <= size; returns them where they are to be used, on the device.

  Yields:
    An iterator over what `place` returned, in order. It raises what reading raised.
  """
  order = np.asarray(order)

  def read(start: int, stop: int) -> Any:
    chosen = order[start:stop]
    images = split.fetch(chosen.reshape(-1))
    return place((images.reshape(*chosen.shape, *images.shape[1:]), split.labels[chosen]))

  def chunks() -> Iterator[Any]:
    edges = sorted({start, *range((start // size + 1) * size, len(order), size), len(order)})
    ahead: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    for bounds in itertools.pairwise(edges):
      ahead.append(reader.submit(read, *bounds))
      if len(ahead) > _AHEAD:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()

  reader = concurrent.futures.ThreadPoolExecutor(1, 'prefetch')
  try:
    yield chunks()
  finally:
    reader.shutdown(cancel_futures=True)
