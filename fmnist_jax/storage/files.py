"""Files that are whole or absent, whatever interrupts their writing: bytes and JSON."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from fmnist_jax.errors import WorkdirError
from fmnist_jax.storage.readback import Form, content, open_regular, problem

PathLike = str | os.PathLike[str]

_TEMPORARY = '.partial-'


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[None]:
  """Raises WorkdirError, with the system's reason, when `path` cannot be written inside."""
  try:
    yield
  except OSError as error:
    raise WorkdirError(f'{path} could not be written: {reason(error)}; free some space or give '
                       'permission, then run the same command again.') from error


@contextlib.contextmanager
def atomic_writer(path: PathLike) -> Iterator[BinaryIO]:
  """Opens a file that appears under its name only when it is complete and on the disk.

  The bytes go to a temporary file in the same directory, are forced to the disk, and the file is
  renamed. When the body raises, the temporary file is removed and `path` is as it was.

  Args:
    path: where the file shall be; replaced when it exists.

  Yields:
    A binary file to write to.

  Raises:
    WorkdirError: with the system's reason when the file cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}{_TEMPORARY}{secrets.token_hex(4)}')
  try:
    with writing(path):
      with open(temporary, 'xb') as file:
        # Held while the writer lives: what `remove_leftovers` can lock belongs to nobody.
        with contextlib.suppress(OSError):
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.rename(temporary, path)
      fsync_directory(path.parent)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def write_bytes(path: PathLike, whole: bytes) -> None:
  """Writes a whole file atomically; raises WorkdirError."""
  with atomic_writer(path) as file:
    file.write(whole)


def write_json(path: PathLike, value: Any, *, sealed: bool = False) -> None:
  """Writes plain JSON values atomically, indented, for programs and people.

  Args:
    path: where.
    value: an object, if it is to be sealed.
    sealed: whether to add `seal`, the SHA-256 of the rest, which `read_json` verifies.

  Raises:
    ValueError: for NaN and infinity, which JSON does not have.
    WorkdirError: when the file cannot be written.
  """
  if sealed:
    value = {**value, 'seal': digest(value)}
  write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + '\n').encode())


def read_json(path: PathLike, form: Form = object, *, sealed: bool = False) -> Any:
  """Reads a JSON file.

  Args:
    path: of the file.
    form: what it must hold, see `readback`; anything by default.
    sealed: whether `write_json` sealed it; it must then be as it was written.

  Raises:
    WorkdirError: when it is missing, unreadable, too large, not JSON, of another form or changed.
  """
  try:
    value = parse_json(content(path))
    found = None if form is object else problem(value, form)
    if sealed and not found and value.pop('seal', None) != digest(value):
      found = 'it is not as it was written'
  except OSError as error:
    raise WorkdirError(f'{path} could not be read: {reason(error)}.') from error
  except (ValueError, RecursionError) as error:
    raise WorkdirError(f'{path} is damaged, it is not JSON ({error}); delete it or choose another '
                       '--workdir.') from error
  if found:
    raise WorkdirError(f'{path} is damaged, or not of this version of fmnist_jax ({found}); '
                       'delete it or choose another --workdir.')
  return value


def canonical(value: Any) -> bytes:
  """The one form in which JSON values are sealed; raises ValueError for NaN and infinity."""
  return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b'\n'


def digest(value: Any) -> str:
  """SHA-256 of a JSON value, in hex."""
  return hashlib.sha256(canonical(value)).hexdigest()


def replace_folder(folder: PathLike, files: Mapping[str, bytes]) -> None:
  """Makes a folder hold exactly these files, or leaves it as it was; see `fresh_folder`.

  Args:
    folder: created, with its parents, when it does not exist.
    files: what each holds, by name.

  Raises:
    WorkdirError: with the system's reason when it cannot be written.
  """
  with writing(folder), fresh_folder(folder) as fresh:
    for name, content in files.items():
      (fresh / name).write_bytes(content)


@contextlib.contextmanager
def fresh_folder(folder: PathLike) -> Iterator[pathlib.Path]:
  """A new folder, which takes the name of `folder` when it is complete; raises OSError.

  Whenever a folder of that name exists, it is complete; the one before is there until it does. Who
  reads that one keeps the files that are open.
  """
  folder = pathlib.Path(folder)
  fresh, old = (folder.with_name(f'.{folder.name}.{state}') for state in ('new', 'old'))

  def clear() -> None:
    if old.exists() and not folder.exists():  # Killed, or failed, between two renames.
      old.rename(folder)
    for left_over in (fresh, old):
      shutil.rmtree(left_over, ignore_errors=True)

  clear()
  try:
    fresh.mkdir(parents=True)
    yield fresh
    if folder.exists():
      folder.rename(old)
    fresh.rename(folder)
  finally:
    clear()


def fsync_directory(path: PathLike) -> None:
  """Forces a directory's entries (creations, renames, removals) to the disk."""
  fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def remove_leftovers(directory: PathLike) -> None:
  """Removes temporary files of `atomic_writer` whose writers are dead, here and one level below."""
  directory = pathlib.Path(directory)
  for path in [*directory.glob(f'.*{_TEMPORARY}*'), *directory.glob(f'*/.*{_TEMPORARY}*')]:
    with contextlib.suppress(OSError), open_regular(path) as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      path.unlink()


def reason(error: OSError | ValueError) -> str:
  """What the system says of an error, without the path."""
  return getattr(error, 'strerror', None) or str(error)


def parse_json(text: str | bytes) -> Any:
  """A value from JSON, of which NaN and infinity are no part; raises ValueError, RecursionError."""
  return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
  raise ValueError(f'{name} is not JSON')
