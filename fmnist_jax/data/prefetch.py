"""Batches of data that is not kept on the device, read ahead while the device works."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fmnist_jax.data.dataset import Split

_AHEAD = 2  # Calls' worth of batches that wait, beside the one in use and the one being read.


@contextlib.contextmanager
def stream(split: Split, order: np.ndarray, start: int, size: int,
           place: Callable[[tuple[np.ndarray, np.ndarray]], Any]) -> Iterator[Iterator[Any]]:
  """Reads the batches of an epoch in a background thread.

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
  ready: queue.Queue[tuple[str, Any]] = queue.Queue(_AHEAD)
  left = threading.Event()

  def read() -> None:
    try:
      at = start
      while at < len(order) and not left.is_set():
        end = min((at // size + 1) * size, len(order))
        chosen = order[at:end]
        images = split.fetch(chosen.reshape(-1))
        images = images.reshape(*chosen.shape, *images.shape[1:])
        ready.put(('chunk', place((images, split.labels[chosen]))))
        at = end
      ready.put(('end', None))
    except BaseException as error:  # It belongs to whoever waits for the chunk.
      ready.put(('error', error))

  def chunks() -> Iterator[Any]:
    while True:
      kind, value = ready.get()
      if kind == 'chunk':
        yield value
      elif kind == 'end':
        return
      else:
        raise value

  thread = threading.Thread(target=read, name='prefetch', daemon=True)
  thread.start()
  try:
    yield chunks()
  finally:
    left.set()
    while thread.is_alive():  # It may be waiting for room, more than once.
      with contextlib.suppress(queue.Empty):
        ready.get(timeout=0.01)
    thread.join()
