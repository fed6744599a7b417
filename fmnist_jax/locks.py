"""A lock between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
  """Holds the flock of a file, made where it is missing; the lock dies with the process.

  Raises:
    OSError: when the file cannot be made.
  """
  with open(path, 'a') as file:
    began, told = time.monotonic(), False
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if not told and time.monotonic() - began > 10:
          told = True
          logging.warning('Waiting for another process that is at work in %s.',
                          os.path.dirname(path))
        time.sleep(0.05)
    yield
