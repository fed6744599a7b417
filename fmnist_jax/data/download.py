"""Downloads the files of a published set; resumes where it was cut off."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import http.client
import os
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from absl import logging

from fmnist_jax import locks
from fmnist_jax.data import originals
from fmnist_jax.errors import DataError

CONNECT_SECONDS = 5.0
_PIECE = 1 << 16
# What a connection must bring before it breaks for the rest to be asked for again, in bytes; and
# the slowest that is still waited for, in bytes a second, after a grace period in seconds.
_PROGRESS = 1 << 14
_SLOWEST, _GRACE = 1 << 12, 20.0


def fetch(original: originals.Original, folder: pathlib.Path) -> None:
  """Downloads what is missing of a set into `folder`.

  A file appears under its name when it is whole and its SHA-256 is right; until then it is
  `NAME.part`, which the next attempt continues. Two processes take turns.

  Raises:
    DataUnavailable: saying why, when no mirror serves all of it.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with locks.locked(folder / '.lock'):
      reasons: list[str] = []
      mirrors = list(original.mirrors)
      for i, file in enumerate(original.files):
        path = folder / file
        try:
          originals.check(original, i, str(path))
        except DataError:  # Missing or damaged.
          _fetch_file(original, i, path, mirrors, reasons)
  except OSError as error:
    raise originals.DataUnavailable(f'downloading to {folder} failed ({error.strerror})') from error


def _fetch_file(original: originals.Original, i: int, path: pathlib.Path, mirrors: list[str],
                reasons: list[str]) -> None:
  """Gets one file from the first mirror that serves it; drops those that do not from `mirrors`."""
  while mirrors:
    url = mirrors[0] + original.files[i]
    logging.info('Downloading %s.', url)
    try:
      _fetch_url(url, path, original.packed_bytes[i], original.packed_sha256[i])
      return
    except _MirrorError as error:
      reasons.append(f'{url}: {error}')
      logging.info('%s', reasons[-1])
      mirrors.pop(0)
  raise originals.DataUnavailable(f'no address could be downloaded from ({"; ".join(reasons)})')


class _MirrorError(Exception):
  """Why an address did not serve a file."""


def _fetch_url(url: str, path: pathlib.Path, size: int, sha256: str) -> None:
  part = path.with_name(f'{path.name}.part')
  while True:
    start = part.stat().st_size if part.exists() else 0
    if start < size:
      reached = _append(url, part, start, size)
      if reached < size:
        if reached - start < _PROGRESS:
          raise _MirrorError('the connection breaks off')
        continue
    with open(part, 'rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
    if found == sha256 and part.stat().st_size == size:
      with open(part, 'rb') as file:
        os.fsync(file.fileno())
      os.replace(part, path)
      return
    part.unlink()
    if not start:
      raise _MirrorError('it serves another file')
    # The start was left by another mirror or a damaged disk: once more, from the beginning.


def _append(url: str, part: pathlib.Path, start: int, size: int) -> int:
  """Downloads from byte `start` to the end; returns how far it came."""
  headers = {'User-Agent': 'fmnist_jax', **({'Range': f'bytes={start}-'} if start else {})}
  request = urllib.request.Request(url, headers=headers)
  try:
    response = _within(2 * CONNECT_SECONDS,
                       lambda: urllib.request.urlopen(request, timeout=CONNECT_SECONDS))
  except urllib.error.HTTPError as error:
    error.close()
    raise _MirrorError(f'HTTP {error.code}') from error
  except (OSError, http.client.HTTPException, ValueError) as error:
    reason = getattr(error, 'reason', None) or error
    raise _MirrorError(str(reason) or type(error).__name__) from error
  with response:
    continues = response.status == 206 and (
        response.headers.get('Content-Range', '').startswith(f'bytes {start}-'))
    reached = began_at = start if continues else 0
    began = time.monotonic()
    with open(part, 'r+b' if continues else 'wb') as file:
      file.seek(reached)
      while reached < size:
        try:
          piece = response.read1(min(_PIECE, size - reached))
        except (OSError, http.client.HTTPException):
          break
        if not piece:
          break
        file.write(piece)
        reached += len(piece)
        if reached - began_at < (time.monotonic() - began - _GRACE) * _SLOWEST:
          break
      file.truncate()
  return reached


def _within(seconds: float, call: Callable[[], Any]) -> Any:
  """Calls in a thread and waits so long: looking up a name obeys no other time limit."""
  answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

  def run() -> None:
    try:
      answer.set_result(call())
    except Exception as error:
      answer.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  if not concurrent.futures.wait([answer], seconds).done:
    answer.add_done_callback(_close)
    raise TimeoutError(f'no answer within {seconds:g} seconds')
  return answer.result()


def _close(late: concurrent.futures.Future[Any]) -> None:
  with contextlib.suppress(Exception):
    late.result().close()
