"""Checkpoints that are whole, verified and durable, or not there.

One directory a step, named by its number:

  STEP/state/         the arrays, written by Orbax
  STEP/progress.json  where the run stands, as plain JSON values
  STEP/manifest.json  size and SHA-256 of every other file, and a digest of itself

A checkpoint is written under a hidden name, forced to the disk, and committed by one rename; only
then are older ones removed. So whatever is killed, or fails, and whenever, at least one checkpoint
can be loaded. Names with a leading dot are not checkpoints: `.new-STEP` is being written, and
`.trash-STEP` being removed; `.old-STEP` is about to be replaced by STEP and counts as STEP until
that is there.

Nothing here executes what a checkpoint holds: arrays are raw numbers, the rest is JSON.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging

from fmnist_jax import processes
from fmnist_jax.errors import CheckpointError, DivergenceError, WorkdirError
from fmnist_jax.storage import files, manifest, readback
from fmnist_jax.storage.files import fsync_directory

PyTree = Any
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # Type and shape of arrays, by name.


class Checkpoints:
  """The checkpoints in one directory.

  With several JAX processes the state must be replicated; process 0 reads and writes, and the
  others get what it read and learn whether it succeeded: all of them call what is public here.
  """

  def __init__(self, directory: str | os.PathLike[str], form: readback.Form = dict,
               held: Callable[[], None] = lambda: None):
    """Opens a directory of checkpoints.

    Args:
      directory: created with the first checkpoint.
      form: what progress must look like.
      held: raises when the directory is not ours to write in any more; called before each save.
    """
    self.directory = pathlib.Path(directory).absolute()
    self._form, self._held = form, held
    self._writer: concurrent.futures.ThreadPoolExecutor | None = None
    self._pending: concurrent.futures.Future[None] | None = None
    self._clean = False
    self._since: float | None = None  # When the last save, or the first look at the clock, was.
    self._late = processes.Late()

  @processes.by_primary
  def steps(self) -> list[int]:
    """Steps of the checkpoints present, good or not, oldest first."""
    try:
      names = os.listdir(self.directory)
    except (FileNotFoundError, NotADirectoryError):
      return []
    except OSError as error:
      raise CheckpointError(f'{self.directory} could not be read: {error.strerror}.') from error
    return sorted({int(match[1]) for match in (re.fullmatch(r'(?:\.old-)?(\d+)', name)
                                               for name in names) if match})

  def verify(self, step: int) -> tuple[pathlib.Path, dict[str, Any]]:
    """Checks that every file of a checkpoint is there and has not changed since it was written.

    Returns:
      Its directory, and the contents of its manifest.

    Raises:
      CheckpointError: naming what is missing, damaged or too much.
    """
    directory = self._path(step)
    if not directory.is_dir():
      there = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(f'There is no checkpoint of step {step} in {self.directory}; those '
                            f'present: {there}.')
    try:
      contents = manifest.verify(directory)
    except OSError as error:
      raise CheckpointError(f'The checkpoint {directory} could not be read: {_reason(error)}.'
                            ) from error
    if contents['step'] != step:
      raise CheckpointError(f'The checkpoint {directory} is really that of step '
                            f'{contents["step"]}; give it back its name.')
    return directory, contents

  @processes.by_primary
  def intact(self) -> list[int]:
    """Steps of the checkpoints that are, oldest first."""
    found = []
    for step in self.steps():
      with contextlib.suppress(CheckpointError):
        self.verify(step)
        found.append(step)
    return found

  @processes.by_primary
  def latest_good(self) -> int | None:
    """The newest step whose checkpoint is intact; damaged ones are logged and passed over.

    Returns:
      The step, or None where there are no checkpoints at all.

    Raises:
      CheckpointError: when there are checkpoints and none is intact, or when the newest was
        written by a newer version of this library.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        self.verify(step)
        return step
      except manifest.NewerFormatError:
        raise
      except CheckpointError as error:
        if self._path(step).is_dir():  # Else a trainer at work has removed it meanwhile.
          logging.warning('%s Falling back to the checkpoint before it.', error)
    if steps:
      raise CheckpointError(f'None of the checkpoints in {self.directory} (steps '
                            f'{", ".join(map(str, steps))}) is intact; delete that directory to '
                            'start anew.')
    return None

  def restore(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Loads a checkpoint, verified, exactly as it was saved.

    Args:
      step: which.
      like: a pytree of arrays or jax.ShapeDtypeStruct: what the state must look like.

    Returns:
      The state, a pytree like `like` of numpy arrays on the host, whatever devices it came from;
      and the progress saved with it.

    Raises:
      CheckpointError: when the checkpoint is missing, damaged, of another model, or written by a
        newer version of this library.
    """
    state = processes.arrays_of_primary(lambda: self._state(step, like), like)
    return state, processes.of_primary(lambda: self._read_progress(self._path(step)))

  def describe(self, step: int) -> tuple[Shapes, str]:
    """What is in a checkpoint, whatever model it is of.

    Returns:
      Type and shape of every array by name, and the SHA-256 of the checkpoint's manifest.

    Raises:
      CheckpointError: as `restore` does.
    """
    def read() -> tuple[Shapes, str]:
      directory, contents = self.verify(step)
      with _of_libraries(directory, contents):
        return _shapes(_stored_arrays(directory)), files.digest(contents)
    shapes, sha256 = processes.of_primary(read)
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in shapes.items()}, sha256

  def arrays(self, step: int, wanted: Shapes) -> dict[str, np.ndarray]:
    """Some arrays of a checkpoint, verified, by name; the others are not read.

    Args:
      step: which.
      wanted: of `describe`.

    Raises:
      CheckpointError: as `restore` does.
    """
    def read() -> dict[str, np.ndarray]:
      directory, contents = self.verify(step)
      with _of_libraries(directory, contents):
        return _read_arrays(directory, _stored_arrays(directory), wanted)
    return processes.arrays_of_primary(read, {
        name: jax.ShapeDtypeStruct(shape, dtype) for name, (dtype, shape) in wanted.items()})

  def _state(self, step: int, like: PyTree) -> PyTree:
    directory, contents = self.verify(step)
    wanted, structure = _named(like)
    with _of_libraries(directory, contents):
      # Shapes first: what does not fit is not read, however large it claims to be.
      stored = _stored_arrays(directory)
      _compare(directory, _shapes(dict(wanted)), _shapes(stored))
      arrays = _read_arrays(directory, stored, stored)
    leaves = [np.asarray(arrays[name]) if _stored(leaf) else np.zeros(leaf.shape, leaf.dtype)
              for name, leaf in wanted]
    return jax.tree.unflatten(structure, leaves)

  @processes.by_primary
  def progress(self, step: int) -> dict[str, Any]:
    """What was saved beside the arrays of a checkpoint, which is verified first; see `restore`."""
    return self._read_progress(self.verify(step)[0])

  def _read_progress(self, directory: pathlib.Path) -> dict[str, Any]:
    """The progress of a verified checkpoint; that it is verified does not mean that it is ours."""
    try:
      progress = json.loads(readback.content(directory / 'progress.json'))
      found = readback.problem(progress, self._form)
    except (ValueError, RecursionError):
      found = 'it is not JSON'
    except OSError as error:
      found = f'progress.json: {_reason(error)}'
    if found:
      raise CheckpointError(f'The checkpoint {directory} holds no progress of a run of this '
                            f'version of fmnist_jax ({found}); choose another --workdir.')
    return progress

  def due(self, every: float) -> bool:
    """Whether the last save is so many seconds ago, or the first call; 0: never.

    By the clock of process 0. Several processes learn it one call late, see `processes.Late`.
    """
    now = time.perf_counter()
    self._since = now if self._since is None else self._since
    return bool(every and self._late(processes.is_primary() and now - self._since > every))

  def save(self, step: int, state: PyTree, progress: Mapping[str, Any],
           keep: Collection[int] = ()) -> None:
    """Writes a checkpoint, commits it, then removes the others but for `keep`.

    An existing checkpoint of this step is replaced.

    Args:
      step: number of optimiser steps taken.
      state: a pytree of jax or numpy arrays; PRNG keys as their uint32 data.
      progress: JSON values: where the run stands.
      keep: steps whose checkpoints stay, besides this one.

    Raises:
      CheckpointError: when it cannot be written; the checkpoints there before are intact.
      ValueError: for progress that is not JSON, or a state that no process has whole.
    """
    self.save_async(step, state, progress, keep)
    self.wait()

  def save_async(self, step: int, state: PyTree, progress: Mapping[str, Any],
                 keep: Collection[int] = ()) -> None:
    """`save`, but returns once the state is copied to the host; a thread does the rest.

    The state may be donated or changed as soon as this returns. First waits for the save before
    it, and raises what that could not do.
    """
    self.wait()
    self._since, self._late = time.perf_counter(), processes.Late()
    text = json.dumps(dict(progress), indent=2, allow_nan=False).encode() + b'\n'
    named = _named(state)[0]
    _check_whole(named)
    if not processes.is_primary():
      self._pending = concurrent.futures.Future()
      return
    # Copies: on CPU numpy would otherwise share memory with an array that may be donated.
    arrays = {name: np.array(leaf, copy=True) for name, leaf in named}
    if self._writer is None:
      self._writer = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint', processes.by_itself)
    self._pending = self._writer.submit(self._write, int(step), arrays, text, frozenset(keep))

  def wait(self) -> None:
    """Returns when the last `save_async` is on the disk.

    Raises:
      CheckpointError: when it could not be written.
    """
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    processes.of_primary(pending.result)

  def close(self) -> None:
    """Waits for the save under way and ends the writing thread."""
    try:
      self.wait()
    finally:
      self.end_writing()

  def end_writing(self) -> None:
    """Ends the writing thread, once it has written, whether or not the other processes do."""
    if self._writer is not None:
      self._writer.shutdown()
      self._writer = None

  def abandon(self, why: str, advice: str) -> NoReturn:
    """Raises DivergenceError, once the save under way is done; it says what is kept."""
    self.wait()
    self._abandon(why, advice)
    raise AssertionError

  @processes.by_primary
  def _abandon(self, why: str, advice: str) -> NoReturn:
    kept = self.steps()
    where = (f'the checkpoint of step {kept[-1]} is kept in {self.directory}' if kept else
             'nothing had been saved yet')
    raise DivergenceError(f'{why}; {where}; {advice}.')

  @processes.by_primary
  def clean(self) -> None:
    """Removes what killed processes left half written or half removed; `save` does so too.

    What cannot be removed is logged.
    """
    self._clean = True
    for old in self._leftovers('.old-*'):
      current = self.directory / old.name.removeprefix('.old-')
      with self._removing(old):
        if current.exists():
          self._discard(old)
        else:
          old.rename(current)
    for path in [*self._leftovers('.new-*'), *self._leftovers('.trash-*')]:
      with self._removing(path):
        shutil.rmtree(path)

  def _leftovers(self, pattern: str) -> list[pathlib.Path]:
    return sorted(self.directory.glob(pattern))

  @contextlib.contextmanager
  def _removing(self, path: pathlib.Path) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._clean = False  # The next save tries again.
      logging.warning('%s, which is not needed any more, could not be removed: %s.', path,
                      _reason(error))

  def _path(self, step: int) -> pathlib.Path:
    path = self.directory / str(step)
    old = self.directory / f'.old-{step}'
    return old if old.exists() and not path.exists() else path

  def _write(self, step: int, arrays: dict[str, np.ndarray], progress: bytes,
             keep: frozenset[int]) -> None:
    new, current = self.directory / f'.new-{step}', self.directory / str(step)
    try:
      self._held()
      if current.exists() and not _is_ours(current):
        raise FileExistsError(0, f'{current} is there and no checkpoint')
      if not self._clean:
        self.clean()
      (new / 'state').mkdir(parents=True)
      _write_arrays(new / 'state', arrays)
      _read_back(new / 'state', arrays)
      (new / 'progress.json').write_bytes(progress)
      manifest.write(new, step)
      if current.exists():
        current.rename(self.directory / f'.old-{step}')
      new.rename(current)
      fsync_directory(self.directory)
    except WorkdirError:
      raise
    except Exception as error:
      self._clean = False
      shutil.rmtree(new, ignore_errors=True)
      before = [s for s in self.steps() if s != step]
      intact = f'the checkpoint of step {before[-1]} is intact' if before else (
          'there is none before it')
      raise CheckpointError(f'The checkpoint of step {step} could not be written to '
                            f'{self.directory}: {_reason(error)}; {intact}; free some space or '
                            'give permission, then run the same command again.') from error
    unneeded = [s for s in self.steps()
                if s != step and s not in keep and _is_ours(self._path(s))]
    for path in [*self._leftovers('.old-*'), *map(self._path, unneeded)]:
      with self._removing(path):
        self._discard(path)

  def _discard(self, path: pathlib.Path) -> None:
    """Removes a directory so that, half removed, it cannot be taken for a checkpoint."""
    trash = self.directory / f'.trash-{path.name.removeprefix(".old-")}'
    path.rename(trash)
    fsync_directory(self.directory)
    shutil.rmtree(trash)


def _is_ours(path: pathlib.Path) -> bool:
  """Whether a folder holds anything of a checkpoint, damaged or not; else it is somebody's."""
  return not path.is_symlink() and any(
      (path / name).exists() for name in (manifest.NAME, 'state', 'progress.json'))


def _named(tree: PyTree) -> tuple[list[tuple[str, Any]], Any]:
  """(path such as 'params/Dense_0/kernel', leaf) of every leaf, and the tree's structure."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  named = [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf) for path, leaf in leaves]
  if len(dict(named)) != len(named):
    raise ValueError('Two leaves of the state have the same path.')
  return named, structure


def _stored(leaf: Any) -> bool:
  """Orbax stores no arrays without elements, and there is nothing to store."""
  return 0 not in leaf.shape


def _check_whole(named: list[tuple[str, Any]]) -> None:
  for name, leaf in named:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
      raise ValueError(f'{name} is split over processes; replicate the state before saving it.')


class _Own(threading.local):
  """What each thread has for itself: runs of a population save at the same time."""
  handler: tuple[Any, list[Exception]] | None = None


_own = _Own()


def _handler() -> tuple[Any, list[Exception]]:
  """This thread's reader and writer of arrays, and the list in which it leaves what went wrong."""
  if _own.handler is None:
    _own.handler = _make_handler()
  return _own.handler


def _make_handler() -> tuple[Any, list[Exception]]:
  # Imported here: it takes 0.2 s that a start need not wait for.
  import orbax.checkpoint as ocp
  failures: list[Exception] = []

  class Arrays(ocp.type_handlers.NumpyHandler):
    """Lets every read and write come to its end before a failure is told.

    Otherwise the others go on behind our back: they make the directory that we remove anew, and
    print tracebacks.
    """

    async def _each(self, method: Any, *lists: Any) -> list[Any]:
      calls = [method(self, *([one] for one in ones)) for ones in zip(*lists)]
      entries: list[Any] = []
      for one in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(one, BaseException):
          raise one
        entries += one
      return entries

    async def metadata(self, infos: Any) -> Any:
      return await self._each(ocp.type_handlers.NumpyHandler.metadata, infos)

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
      args = args or [ocp.RestoreArgs()] * len(infos)
      return await self._each(ocp.type_handlers.NumpyHandler.deserialize, infos, args)

    async def _open_and_write(self, *args: Any, **kwargs: Any) -> None:
      try:
        await super()._open_and_write(*args, **kwargs)
      except Exception as error:
        failures.append(error)

  return ocp.PyTreeCheckpointHandler(
      type_handler_registry=ocp.type_handlers.create_type_handler_registry(
          (np.ndarray, Arrays(deepcopy_host_arrays=False)),
          (jax.Array, ocp.type_handlers.ArrayHandler())),  # Unused; without it Orbax warns.
      # Process 0 writes alone; this keeps Orbax from waiting for the others.
      multiprocessing_options=ocp.options.MultiprocessingOptions(
          primary_host=0, active_processes={0})), failures


def _write_arrays(directory: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  import orbax.checkpoint as ocp
  handler, failures = _handler()
  failures.clear()
  stored = {name: array for name, array in arrays.items() if _stored(array)}
  handler.save(directory, args=ocp.args.PyTreeSave(stored))
  if failures:
    raise failures[0]
  handler.finalize(directory)


def _read_back(directory: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Raises OSError unless what was written is what was to be written, bit for bit."""
  found = _handler()[0].restore(directory)
  for name, array in arrays.items():
    if _stored(array) and (name not in found or found[name].dtype != array.dtype
                           or found[name].tobytes() != array.tobytes()):
      raise OSError(0, f'what was read back of {name} is not what was written')


def _stored_arrays(directory: pathlib.Path) -> dict[str, Any]:
  """What Orbax knows of the arrays of a verified checkpoint, by name; they are not read."""
  if (directory / 'state' / '_METADATA').stat().st_size > readback.LARGEST_JSON:
    raise CheckpointError(f'The checkpoint {directory} is damaged: its list of arrays is larger '
                          f'than {readback.LARGEST_JSON:,} bytes.')
  return _handler()[0].metadata(directory / 'state').tree


def _shapes(arrays: Mapping[str, Any]) -> Shapes:
  return {name: (np.dtype(array.dtype).name, tuple(array.shape)) for name, array in arrays.items()}


def _read_arrays(directory: pathlib.Path, stored: Mapping[str, Any],
                 wanted: Collection[str]) -> dict[str, np.ndarray]:
  """Reads those of the `_stored_arrays` that are wanted."""
  import orbax.checkpoint as ocp
  for name in wanted:
    array = stored[name]
    chunk = array.storage.chunk_shape if array.storage else None
    if chunk and math.prod(chunk) > math.prod(array.shape):
      raise CheckpointError(f'The checkpoint {directory} is damaged: its {name} claims to lie '
                            'in pieces that are larger than itself.')
  return _handler()[0].restore(directory / 'state', args=ocp.args.PyTreeRestore(
      item=dict.fromkeys(wanted, 0), partial_restore=True)) if wanted else {}


@contextlib.contextmanager
def _of_libraries(directory: pathlib.Path, contents: Mapping[str, Any]) -> Iterator[None]:
  """What fails inside, in a checkpoint that is intact, does so for the libraries installed."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:
    versions = ', '.join(f'{name} {version}' for name, version in contents['versions'].items())
    raise CheckpointError(f'The checkpoint {directory} is intact but cannot be read with the '
                          f'libraries installed ({_reason(error)}); it was written with '
                          f'{versions}.') from error


def _compare(directory: pathlib.Path, wanted: Shapes, found: Shapes) -> None:
  """Raises CheckpointError unless a checkpoint holds the arrays that the model has."""
  wanted = {name: (dtype, shape) for name, (dtype, shape) in wanted.items() if 0 not in shape}
  for name in sorted(wanted.keys() | found.keys()):
    if name not in found:
      problem = f'it has no {name}'
    elif name not in wanted:
      problem = f'it has {name}, which this model has not'
    elif wanted[name] != found[name]:
      there, here = (f'{dtype}{list(shape)}' for dtype, shape in (found[name], wanted[name]))
      problem = f'its {name} is {there} where this model has {here}'
    else:
      continue
    raise CheckpointError(f'The checkpoint {directory} is of another model: {problem}.')


def _reason(error: BaseException) -> str:
  """The system's words, in one line, also where Orbax's storage layer wraps them."""
  text = str(error) or type(error).__name__
  number = re.search(r"os_error_code='(\d+)'", text)
  if number:
    return os.strerror(int(number[1]))
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return ' '.join(text.split())[:200].rstrip('.')
