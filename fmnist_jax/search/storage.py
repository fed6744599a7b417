"""Where Optuna keeps a study that several workers share: a journal in a file, or PostgreSQL."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import random
import secrets
import time
from collections.abc import Iterator
from typing import Any

import optuna
from absl import logging
from optuna.storages.journal import BaseJournalBackend

from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.storage import files

_POSTGRES = ('postgresql', 'postgres', 'postgresql+psycopg')


class Journal(BaseJournalBackend):
  """Optuna's journal: a line an operation, in the order in which they happened.

  Unlike Optuna's own file, its lock is one that dies with its holder, and a line that was cut short
  by a power failure is cut off before the next is written, so it blocks nobody.
  """

  def __init__(self, path: pathlib.Path):
    """Args: of the file, made where it is missing."""
    self._path = path
    with open(path, 'ab') as file:
      self._identity = os.fstat(file.fileno()).st_ino
    self._read = (0, 0)  # Lines read so far, and bytes.

  def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
    """Yields the operations from a number on; raises ValueError for a damaged one."""
    number, offset = self._read if self._read[0] <= log_number_from else (0, 0)
    with open(self._path, 'rb') as file:
      self._check(file.fileno(), offset)
      file.seek(offset)
      for line in file:
        if not line.endswith(b'\n'):  # Not yet whole, or never to be.
          return
        log = json.loads(line)
        number, offset = number + 1, offset + len(line)
        self._read = (number, offset)
        if number > log_number_from:
          yield log

  def append_logs(self, logs: list[dict[str, Any]]) -> None:
    """Adds operations; they are on the disk when this returns."""
    with open(self._path, 'r+b') as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      self._check(file.fileno(), 0)
      end = file.seek(0, os.SEEK_END)
      file.seek(max(0, end - 1))
      if file.read(1) not in (b'', b'\n'):  # Cut short.
        file.seek(0)
        end = file.truncate(file.read().rfind(b'\n') + 1)
      file.seek(end)
      file.write(b''.join(json.dumps(log).encode() + b'\n' for log in logs))
      file.flush()
      os.fsync(file.fileno())

  def _check(self, fd: int, known: int) -> None:
    status = os.fstat(fd)
    if status.st_ino != self._identity or status.st_size < known:
      raise WorkdirError(f'{self._path} was removed, emptied or replaced meanwhile; run the same '
                         "command again, which makes it anew of what the trials' directories "
                         'hold.')


class Address:
  """What `--storage` says.

  Attributes:
    shown: it, without a password.
  """

  def __init__(self, text: str):
    """Args: a path, or an address postgresql://USER@HOST/DATABASE; raises ConfigError."""
    scheme, found, rest = text.partition('://')
    self._secrets: list[str] = []
    self._url: Any = None
    self._path: pathlib.Path | None = None
    self._storage: optuna.storages.BaseStorage | None = None
    if not found:
      self._path = pathlib.Path(text)
      self.shown = text
      return
    if scheme.startswith('sqlite'):
      raise ConfigError('SQLite is not for several workers: it locks the whole file, which fails '
                        'on shared disks, and Optuna advises against it; give a path, where a '
                        'journal is kept, or a PostgreSQL address.')
    if scheme not in _POSTGRES:
      raise ConfigError(f'--storage begins with {scheme}://; give a path, where a journal is kept, '
                        'or a PostgreSQL address: postgresql://USER@HOST/DATABASE.')
    import sqlalchemy
    try:
      self._url = sqlalchemy.make_url(f'postgresql+psycopg://{rest}')
    except Exception:  # Whose text holds the address, and the address may hold a password.
      raise ConfigError('--storage is no address; write postgresql://USER@HOST/DATABASE, the '
                        'password in $PGPASSWORD or ~/.pgpass.') from None
    query = dict(self._url.query)
    self._secrets = [str(one) for one in (self._url.password, query.pop('password', None)) if one]
    self.shown = self._url.set(query=query).render_as_string(hide_password=True).replace(
        '+psycopg', '')

  def tame(self, error: BaseException) -> str:
    """What an error says, in one line and without the password."""
    text = ' '.join(str(error.__cause__ or error).split()) or type(error).__name__
    for secret in self._secrets:
      text = text.replace(secret, '***')
    return text[:400].rstrip('.')

  def open(self) -> optuna.storages.BaseStorage:
    """Opens the storage, made where it is missing; a journal that is damaged is set aside.

    Raises:
      ConfigError: when it cannot be reached, or holds something else.
    """
    self._storage = self._journal(self._path) if self._path else self._database()
    return self._storage

  def close(self) -> None:
    """Closes the connections to a database."""
    if isinstance(self._storage, optuna.storages.RDBStorage):
      self._storage.remove_session()
      self._storage.engine.dispose()

  def _journal(self, path: pathlib.Path) -> optuna.storages.BaseStorage:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with open(path, 'ab') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # So that no two set it aside.
        try:
          return optuna.storages.JournalStorage(Journal(path))
        except Exception as error:  # Of Optuna, when operations do not follow from each other.
          with open(path, 'rb') as file:
            if not file.readline(2**16).startswith(b'{"op_code"'):
              raise ConfigError(f'{path} is no journal of a search; choose another --storage.'
                                ) from error
          aside = path.with_name(f'{path.name}.damaged-{secrets.token_hex(2)}')
          logging.warning('%s is damaged (%s); it is kept as %s and made anew of what the trials\' '
                          'directories hold.', path, self.tame(error), aside.name)
          path.rename(aside)
          files.write_bytes(path, b'')
          return optuna.storages.JournalStorage(Journal(path))
    except OSError as error:
      raise ConfigError(f'{path} cannot be used as --storage: {files.reason(error)}; choose '
                        'another or give permission.') from error

  def _database(self) -> optuna.storages.BaseStorage:
    import sqlalchemy
    for left in reversed(range(10)):
      try:
        return optuna.storages.RDBStorage(
            self._url.render_as_string(hide_password=False),
            # Or a database of encoding SQL_ASCII would answer in bytes.
            engine_kwargs={'pool_pre_ping': True, 'connect_args': {'client_encoding': 'utf8'}})
      except sqlalchemy.exc.OperationalError as error:
        raise ConfigError(f'The storage {self.shown} cannot be reached: {self.tame(error)}; see '
                          'that the server runs, and that address, user and password are right.'
                          ) from None
      except ModuleNotFoundError as error:
        raise ConfigError(f'PostgreSQL needs the package {error.name}, which comes with '
                          "'fmnist_jax[search]'.") from None
      except Exception as error:  # Another worker makes the same tables just now.
        if not left:
          raise ConfigError(f'The storage {self.shown} cannot be used: {self.tame(error)}; give '
                            'the user of that address a database in which it may make tables.'
                            ) from None
        time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError
