"""Pictures decoded on all cores, with a bar."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fmnist_jax import machine, progress
from fmnist_jax.data.kept import CHUNK

_CHUNK_BYTES = 1 << 26


def chunk(image_shape: tuple[int, ...]) -> int:
  """How many images of this shape are decoded at once."""
  return min(CHUNK, max(_CHUNK_BYTES // math.prod(image_shape), 1))


def decoded(decode: Callable[[Any], Any], lots: Iterable[Sequence[Any]], total: int,
            what: str) -> Iterator[list[Any]]:
  """What `decode` gives for each entry of each lot, lot by lot, in order.

  Args:
    decode: called in threads.
    lots: of what is to be decoded.
    total: entries in all.
    what: is decoded, in words.
  """
  pool = concurrent.futures.ThreadPoolExecutor(machine.cores())
  try:
    with progress.bar(total, f'decoding {what}') as bar:
      for lot in lots:
        found = []
        for one in pool.map(decode, lot):
          bar.update()
          found.append(one)
        yield found
  finally:
    pool.shutdown(cancel_futures=True)
