"""The directory of a run: its lock, its config, its history."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import socket
import stat
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fmnist_jax import processes
from fmnist_jax.config import Config, differences, from_json, to_json
from fmnist_jax.errors import (
  CheckpointError,
  ConfigError,
  UnknownPartError,
  WorkdirError,
  is_tame,
)
from fmnist_jax.storage import readback
from fmnist_jax.storage.files import (
  PathLike,
  parse_json,
  read_json,
  reason,
  remove_leftovers,
  write_bytes,
  write_json,
  writing,
)

_LOCK_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def read_config(directory: PathLike) -> Config:
  """The config a run was started with.

  Args:
    directory: the run's directory.

  Raises:
    WorkdirError: when the directory is not that of a run, or its config.json is damaged.
  """
  path = pathlib.Path(directory) / 'config.json'
  if not os.path.isfile(path):
    raise WorkdirError(f'{directory} is not the directory of a run: it has no config.json.')
  try:
    return from_json(read_json(path))
  except UnknownPartError as error:
    raise WorkdirError(f'{path} needs what is not loaded: {error}') from error
  except ConfigError as error:
    raise WorkdirError(f'{path} is not the config of a run of this version of fmnist_jax '
                       f'({str(error).rstrip(".")}); choose another --workdir.') from error


@processes.by_primary
def holds_population(directory: PathLike) -> bool:
  """Whether a directory is that of a population, which holds many runs."""
  return os.path.exists(pathlib.Path(directory, 'plan.json'))


class History:
  """The records of a run's epochs, one JSON object a line: metrics.jsonl.

  A record holds at least `step`, the number of optimiser steps taken. Each line ends with a
  `seal`, the beginning of the SHA-256 of the line up to there and of the seal before, so that no
  byte changes unseen; who reads a history here gets records without it. Of several processes, the
  first alone touches the file; `read`, `append` and `rewind` are for all of them to call.
  """

  def __init__(self, path: PathLike, held: Callable[[], None] = lambda: None,
               on_record: Callable[[dict[str, Any]], None] = lambda record: None):
    """Opens a history.

    Args:
      path: of the file, which need not exist.
      held: called before each write.
      on_record: called with each record that is appended, once it is on the disk.
    """
    self.path = pathlib.Path(path)
    self._held, self._on_record = held, on_record
    self._lines: list[bytes] | None = None  # Of the file, once known.

  @processes.by_primary
  def read(self) -> list[dict[str, Any]]:
    """All records, oldest first. A last line that was cut short is left out.

    Raises:
      WorkdirError: for a line that is not a record, naming it.
    """
    return [record for record, _ in self._parse(self._load())]

  @processes.by_primary
  def append(self, record: Mapping[str, Any]) -> None:
    """Adds a record; it is on the disk when this returns.

    Raises:
      ValueError: when the record holds NaN or infinity.
      WorkdirError: when it cannot be written; the file is then as it was.
    """
    self._held()
    if self._lines is None:
      self._lines = [line for _, line in self._parse(self._load())]
    line = _sealed(self._lines, record)
    end = sum(map(len, self._lines))
    with writing(self.path), open(self.path, 'ab') as file:
      if os.fstat(file.fileno()).st_nlink > 1:  # A hard-linked copy keeps what it has.
        write_bytes(self.path, b''.join([*self._lines, line]))
      else:
        try:
          file.truncate(end)  # What a killed process or a full disk cut short.
          file.write(line)
          file.flush()
          os.fsync(file.fileno())
        except OSError:
          with contextlib.suppress(OSError):
            file.truncate(end)
          raise
    self._lines.append(line)
    self._on_record(dict(record))

  @processes.by_primary
  def rewind(self, epochs: int, step: int) -> None:
    """Drops, atomically, the records after `step`, so that what is repeated is not listed twice.

    Args:
      epochs: how many records there must be up to there.
      step: the last step to keep: that of a checkpoint which training goes on from.

    Raises:
      CheckpointError: when records are missing or are none of a run.
      WorkdirError: when the file cannot be read or written.
    """
    # Nothing is written before all is known to be right.
    kept = [record for record in self.read() if record['step'] <= step]
    if len(kept) != epochs:
      raise CheckpointError(f'{self.path} has {len(kept)} epochs, but the checkpoint was saved '
                            f'after {epochs}; put the file back, or choose another --workdir.')
    found = readback.history_problem(kept)
    if found:
      raise CheckpointError(f'{self.path} is damaged ({found}); put the file back, or choose '
                            'another --workdir.')
    self.truncate(step)

  def truncate(self, step: int) -> list[dict[str, Any]]:
    """Drops, atomically, the records after `step`; returns those kept."""
    content = self._load()
    kept = [(record, line) for record, line in self._parse(content) if record['step'] <= step]
    self._lines = [line for _, line in kept]
    if b''.join(self._lines) != content:
      write_bytes(self.path, b''.join(self._lines))
    return [record for record, _ in kept]

  def replace(self, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes these records, atomically, in place of all that are there; in process 0."""
    self._held()
    lines: list[bytes] = []
    for record in records:
      lines.append(_sealed(lines, record))
    write_bytes(self.path, b''.join(lines))
    self._lines = lines

  def _load(self) -> bytes:
    try:
      return readback.content(self.path)
    except FileNotFoundError:
      return b''
    except OSError as error:
      raise WorkdirError(f'{self.path} could not be read: {reason(error)}.') from error

  def _parse(self, content: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """(record, its line with the newline) of every whole line."""
    records: list[tuple[dict[str, Any], bytes]] = []
    # Not splitlines: a carriage return does not end a line.
    lines = content.split(b'\n')[:-1]
    for number, line in enumerate((line + b'\n' for line in lines), 1):
      try:
        match = _SEALED.fullmatch(line)
        if not match or match[2] != _seal([before for _, before in records[-1:]], match[1]):
          raise ValueError('it is not as it was written')
        record = parse_json(match[1] + b'}')
        if not isinstance(record, dict) or type(record.get('step')) is not int:
          raise ValueError('no record with a whole number as its step')
        if records and record['step'] <= records[-1][0]['step']:
          raise ValueError('its step does not follow that of the line before')
      except (ValueError, RecursionError) as error:
        raise WorkdirError(f'Line {number} of {self.path} is damaged ({error}); put the file back, '
                           'or choose another --workdir.') from error
      records.append((record, line))
    return records


_SEAL = b', "seal": "%s"}\n'
_SEALED = re.compile(rb'(\{.*), "seal": "([0-9a-f]{16})"\}\n', re.DOTALL)


def _seal(before: list[bytes], body: bytes) -> bytes:
  """What a line ends with, of the lines before it and its own beginning."""
  last = _SEALED.fullmatch(before[-1]) if before else None
  return hashlib.sha256((last[2] if last else b'') + body).hexdigest()[:16].encode()


def _sealed(before: list[bytes], record: Mapping[str, Any]) -> bytes:
  """A record's line; raises ValueError for NaN and infinity."""
  body = json.dumps(dict(record), allow_nan=False).encode()[:-1]
  return body + _SEAL % _seal(before, body)


_open_locks: weakref.WeakSet[Workdir] = weakref.WeakSet()


class Workdir:
  """The directory of one run, held by one process until `close` or its death.

  Of several processes that share a run, the first alone touches it; all learn what goes wrong.

  Attributes:
    path: the directory.
    history: the epochs of the run, metrics.jsonl.
  """

  def __init__(self, path: PathLike, config: Config,
               on_record: Callable[[dict[str, Any]], None] = lambda record: None):
    """Opens the directory of a run, new or to be continued.

    Args:
      path: created, with its parents, when it does not exist.
      config: the validated config; saved in config.json, or compared with what is saved there.
      on_record: see `History`.

    Raises:
      WorkdirError: when the directory cannot be created or written, holds something else than a
        run, holds a run of another config, or is in use by another process.
    """
    self.path = pathlib.Path(path)
    self.history = History(self.path / 'metrics.jsonl', self.held, on_record)
    self._lock: int | None = None
    self._open(config)

  def held(self) -> None:
    """Raises WorkdirError when the directory was removed, moved or replaced meanwhile.

    Called, in process 0, before each write, so that a run never writes into another one's.
    """
    if self._lock is None or not _same(self._lock, self.path / '.lock'):
      raise WorkdirError(f'{self.path} is not the directory any more that this run began in: it '
                         'was removed, moved or replaced meanwhile; nothing more is written.')

  @processes.by_primary
  def _open(self, config: Config) -> None:
    try:
      _check_name(self.path)
      self.path.mkdir(parents=True, exist_ok=True)
      self._refuse_foreign()
      self._lock = _lock(self.path)
      _open_locks.add(self)
      try:
        self._settle(config)
      except BaseException:
        self.close()
        raise
    except (FileExistsError, NotADirectoryError) as error:
      file = next(p for p in (self.path, *self.path.parents) if p.exists() and not p.is_dir())
      raise WorkdirError(f'{file} is not a directory; choose another --workdir.') from error
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a character in the path.
      if getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE):
        raise WorkdirError(f'{self.path} cannot be opened, as too many files are open; close some '
                           'or raise the limit (ulimit -n).') from error
      place = getattr(error, 'filename', None) or self.path
      raise WorkdirError(f'{place} cannot be used: {reason(error)}; choose another --workdir or '
                         'give permission.') from error

  @processes.by_primary
  def results(self) -> dict[str, Any] | None:
    """results.json of a finished run; None of one that is not finished.

    Raises:
      WorkdirError: when the directory is a population's, or results.json is damaged.
    """
    if holds_population(self.path):
      raise WorkdirError(f'{self.path} holds a population, not a single run; choose another '
                         '--workdir.')
    if not (self.path / 'results.json').exists():
      return None
    return read_json(self.path / 'results.json', readback.RESULTS, sealed=True)

  def __enter__(self) -> Workdir:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Lets another process use the directory."""
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None

  def _refuse_foreign(self) -> None:
    # Through a link, or a pipe, what is written or removed here would be somebody else's.
    for name, kind in _OWN.items():
      path = self.path / name
      with contextlib.suppress(FileNotFoundError):
        if stat.S_IFMT(path.lstat().st_mode) != kind:
          what = 'a symbolic link' if path.is_symlink() else 'of another kind'
          raise WorkdirError(f'{path} is {what}, which no run makes; remove it or choose another '
                             '--workdir.')
    if (self.path / 'config.json').exists():
      return
    # Hidden files are ours (a lock, leftovers of a start that was killed) or the system's.
    others = sorted(entry.name for entry in self.path.iterdir()
                    if not entry.name.startswith('.') and entry.name != 'lost+found')
    if others:
      raise WorkdirError(f'{self.path} holds files but no run (it has {others[0]!r} and no '
                         'config.json); choose another --workdir or empty it.')

  def _settle(self, config: Config) -> None:
    remove_leftovers(self.path)
    if not (self.path / 'config.json').exists():
      write_json(self.path / 'config.json', to_json(config))
      return
    changed = differences(read_config(self.path), config)
    # Where a section is of another kind, that says it; its fields need not be listed one by one.
    both = [line for line in changed if 'absent' not in line] or changed
    if changed:
      raise WorkdirError(f'{self.path} holds a run of another config ({"; ".join(both)}); choose '
                         'another --workdir, or delete this one to start anew.')


def _lock(directory: pathlib.Path) -> int:
  """Takes the lock of a directory and writes into it who has it; returns its descriptor."""
  path = directory / '.lock'
  for _ in range(100):
    # Neither a link's target is written, nor a pipe's reader waited for.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
      fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
      ours = _same(fd, path)
      if ours and os.fstat(fd).st_nlink == 1:
        os.ftruncate(fd, 0)
        os.write(fd, f'process {os.getpid()} on {socket.gethostname()}'.encode())
        return fd
      # A hard-linked copy of a run has a lock of its own; somebody may have made one just now.
      if ours:
        path.unlink()
    except BlockingIOError as error:
      time.sleep(0.1)  # The holder writes its name just after it has locked.
      holder = os.pread(fd, 200, 0).decode(errors='replace') or 'another process'
      os.close(fd)
      raise WorkdirError(f'{directory} is in use by {holder}; wait for it, stop it, or choose '
                         'another --workdir.') from error
    except OSError as error:
      os.close(fd)
      if error.errno in _LOCK_UNSUPPORTED:
        raise WorkdirError(f'{directory} is on a file system that cannot lock files '
                           f'({reason(error)}); choose a --workdir on a local disk.') from error
      error.filename = str(path)
      raise
    os.close(fd)
  raise WorkdirError(f'{path} is replaced again and again; choose another --workdir.')


def _same(fd: int, path: pathlib.Path) -> bool:
  """Whether an open file is what lies under a name."""
  try:
    return os.path.samestat(os.fstat(fd), os.lstat(path))
  except OSError:
    return False


# What lies in the directory of a run or population, and as what.
_OWN = {
    **dict.fromkeys(('.lock', 'config.json', 'metrics.jsonl', 'results.json', 'predictions.npz',
                     'plan.json', 'groups.json', 'population.json', 'diverged.json'), stat.S_IFREG),
    **dict.fromkeys(('checkpoints', 'report', 'members', 'groups'), stat.S_IFDIR)}


def _check_name(path: pathlib.Path) -> None:
  """Raises WorkdirError for a path that the storage of arrays would take for another."""
  text = os.fspath(path.absolute())
  if '\\' in text or not is_tame(text):
    raise WorkdirError(f'{text} has a backslash in its path, or bytes that are no printable '
                       'characters, with which arrays cannot be stored; choose another --workdir.')


def _close_in_child() -> None:
  """A forked child must not keep its parent's locks alive."""
  for workdir in list(_open_locks):
    workdir.close()


os.register_at_fork(after_in_child=_close_in_child)
