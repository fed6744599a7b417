"""What the processes of one run do together, where there are several.

A run may be spread over processes, each with devices of its own, that jax has introduced to each
other (`jax.distributed`). All go through the same program at the same time; process 0 alone prints
and touches the work directory. What one of them alone knows, such as that a file could not be
written or that a signal came, all have to learn at the same point: whoever goes on without the
others waits for them for ever.

In a single process every function here does what it says at once, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import itertools
import json
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmnist_jax import errors, machine
from fmnist_jax.errors import BackendError, UserError
from fmnist_jax.interrupt import Interrupted, Signals

PyTree = Any
T = TypeVar('T')

_rounds = itertools.count()


def _network() -> Any:
  """What jax knows of the other processes: `process_id`, `num_processes`, `client`.

  Of its own, since it makes none of this public: `jax.process_index()` starts the devices, which
  waits for every process, before any of them could tell the others that it has failed; and nothing
  else hands out the client, by which they tell each other.
  """
  from jax._src import distributed
  return distributed.global_state


def start(coordinator: str, number: int | None, index: int | None) -> None:
  """Introduces this process to the others; before anything is computed.

  Args:
    coordinator: 'host:port' of process 0, or 'auto' where jax finds that out by itself (TPU pods,
      SLURM, Open MPI, Kubernetes).
    number: of processes; None with 'auto'.
    index: of this one; None with 'auto'.

  Raises:
    BackendError: when they do not find each other.
  """
  address = None if coordinator == 'auto' else coordinator
  own = 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ  # The user says where.
  bind = _bind(coordinator) if address and not index and not own else None
  try:
    jax.distributed.initialize(address, number, index, coordinator_bind_address=bind)
  except (RuntimeError, ValueError) as error:
    raise BackendError(f'The processes did not find each other ({_line(error)}); start all of '
                       'them with the same --coordinator and --processes, and another --process '
                       'each.') from error
  together(_check_versions)
  if not is_primary():  # Process 0 says the same.
    logging.getLogger('absl').setLevel(logging.ERROR)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_versions() -> None:
  """Raises BackendError where this process computes with other software than process 0."""
  here = {name: machine.versions()[name] for name in ('fmnist_jax', 'jax', 'jaxlib')}
  first = json.loads(_exchange(json.dumps(here), [0])[0])
  other = [f'{name} {first[name]} and {here[name]}' for name in here if here[name] != first[name]]
  if other:
    raise BackendError(f'Process 0 and process {_network().process_id} have different versions ('
                       f'{", ".join(other)}); install the same everywhere.')


def _bind(coordinator: str) -> str | None:
  """Where process 0 listens: on a numeric or local address alone, where one was named.

  Other names mean another address here, often, than they do to the others; with them, as without
  `bind`, it listens on all interfaces.

  Raises:
    BackendError: when somebody listens there already.
  """
  host, _, port = coordinator.rpartition(':')
  host = host.strip('[]')
  try:
    local = ipaddress.ip_address('127.0.0.1' if host == 'localhost' else host)
  except ValueError:
    local = None
  family = socket.AF_INET6 if local and local.version == 6 else socket.AF_INET
  try:
    with socket.socket(family) as trial:
      trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      trial.bind((str(local) if local else '', int(port)))
  except (OSError, OverflowError) as error:
    if local and getattr(error, 'errno', None) == errno.EADDRNOTAVAIL:
      return None  # Another machine's name for this one (NAT): on all interfaces.
    raise BackendError(f'{coordinator} cannot be listened on ({error}); choose a free port of '
                       'this machine for --coordinator.') from error
  if not local:
    return None
  return f'[{local}]:{port}' if family == socket.AF_INET6 else f'{local}:{port}'


def count() -> int:
  """How many processes share the run."""
  return _network().num_processes


def is_primary() -> bool:
  """Whether this is process 0, which alone prints and writes."""
  return _network().process_id == 0


def together(action: Callable[[], T]) -> T:
  """Does something in every process; when it fails in one, it fails in all.

  All processes must come here, as to the other functions below, in the same order.

  Returns:
    What `action` returned in this process.

  Raises:
    UserError: what `action` raised, of the first process in which it did. In the others but
      process 0 it is marked as told.
  """
  return _agreed(action, range(count()))[0]


def of_primary(action: Callable[[], T]) -> T:
  """Does something in process 0 alone; every process gets what it returns or raises.

  Args:
    action: returns a JSON value. In it, process 0 is by itself: what is for all processes to call
      it may call alone.
  """
  value, said = _agreed(action, [0])
  return value if is_primary() else said[0]['value']


def by_primary(method: Callable[..., T]) -> Callable[..., T]:
  """A method whose calls are `of_primary`: all processes call it, and process 0 alone does it."""
  @functools.wraps(method)
  def call(*args: Any, **kwargs: Any) -> T:
    return of_primary(lambda: method(*args, **kwargs))
  return call


def by_itself() -> None:
  """From now on this thread, of process 0, calls alone what is for all processes to call."""
  _by_itself.now = True


def arrays_of_primary(read: Callable[[], PyTree], like: PyTree) -> PyTree:
  """Host arrays that process 0 reads, in every process, bit for bit.

  Args:
    read: returns a pytree of numpy arrays.
    like: a pytree of the same structure, shapes and dtypes.
  """
  if count() == 1:
    return read()
  found: list[PyTree] = []
  of_primary(lambda: found.append(read()))
  wanted, structure = jax.tree.flatten(like)
  sizes = [leaf.size * np.dtype(leaf.dtype).itemsize for leaf in wanted]
  # As bytes: the broadcast is a sum, which would lose the sign of a zero.
  content = (b''.join(leaf.tobytes() for leaf in jax.tree.leaves(found[0])) if found else
             bytes(sum(sizes)))
  from jax.experimental import multihost_utils
  content = np.asarray(multihost_utils.broadcast_one_to_all(
      np.frombuffer(content, np.uint8))).tobytes()
  ends = np.cumsum([0, *sizes])
  return jax.tree.unflatten(structure, [
      np.frombuffer(content[a:b], leaf.dtype).reshape(leaf.shape)
      for leaf, a, b in zip(wanted, ends, ends[1:])])


def largest_of_all(value: int) -> int:
  """The largest of every process's numbers."""
  if count() == 1:
    return value
  return max(json.loads(text) for text in _exchange(json.dumps(value), range(count())))


class Late:
  """The largest of every process's numbers, known one call late.

  The devices find it out between two dispatches and nobody has to wait for them. In a single
  process it is known at once.
  """

  def __init__(self) -> None:
    self._coming: jax.Array | None = None

  def __call__(self, value: int) -> int:
    """Takes in this call's number, at least 0; returns the largest of the call before, or 0."""
    if count() == 1:
      return value
    before, self._coming = self._coming, _largest()(value)
    return 0 if before is None else int(before)


@contextlib.contextmanager
def agreeing(signals: Signals) -> Iterator[Signals]:
  """Signals to be polled: where there are several processes, one to any of them stops all."""
  if count() == 1:
    yield signals
    return
  agreed = _Agreed(signals)
  with agreed.deferred():
    yield agreed


class _Agreed:
  """A signal to one process stops all at the same poll; inside `deferred`, a whole run, alone."""

  def __init__(self, signals: Signals):
    """Args: this process's own."""
    self._signals, self._late, self._inside = signals, Late(), False

  @property
  def requested(self) -> int | None:
    """Number of the first signal that this process received, or None."""
    return self._signals.requested

  def check(self) -> None:
    """Raises `Interrupted` if any process had received a signal at the last poll."""
    self._leave(self._late(self._signals.requested or 0))

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """While inside, signals wait to be polled; see `Interrupt.deferred`."""
    if self._inside:
      yield
      return
    with self._signals.deferred():
      self._inside = True
      try:
        self._leave(largest_of_all(self._signals.requested or 0))
        yield
        self._leave(largest_of_all(self._signals.requested or 0))
      finally:
        self._inside = False

  def _leave(self, signum: int) -> None:
    if signum:
      interrupted = Interrupted(signum)
      interrupted.agreed = True
      raise interrupted


@contextlib.contextmanager
def leaving() -> Iterator[None]:
  """What a program's work is done in, so that a process that fails alone leaves at once.

  Leaving Python in good order would wait for the others, who wait for this one; when it is gone,
  jax ends them. An end that all have agreed on passes through.
  """
  try:
    yield
  except BaseException as error:
    if count() == 1 or (isinstance(error, UserError | Interrupted) and error.agreed):
      raise
    code = 1
    if isinstance(error, Interrupted):
      code = error.exit_code
    elif isinstance(error, UserError):
      print(f'error: {error}', file=sys.stderr)
    elif isinstance(error, jax.errors.JaxRuntimeError):
      print('error: This process lost the others, or its devices failed '
            f'({_line(error)}); start all of them again: they go on at the last checkpoint.',
            file=sys.stderr)
    else:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _ByItself(threading.local):
  """Whether this thread is in an action that process 0 alone is in."""
  now = False


_by_itself = _ByItself()


def _agreed(action: Callable[[], T], speakers: Sequence[int]) -> tuple[T, list[Any]]:
  """Runs `action` in some processes; returns its value here and what each of them said."""
  if count() == 1 or _by_itself.now:
    return action(), []
  value: Any = None
  mine: dict[str, Any] = {}
  error = None
  if _network().process_id in speakers:
    try:
      _by_itself.now = list(speakers) == [0]
      value = action()
      mine = {'value': value} if _by_itself.now else {}
    except UserError as raised:
      error = raised
      mine = {'error': [type(raised).__name__, str(raised)]}
    finally:
      _by_itself.now = False
  said = [json.loads(text) for text in _exchange(json.dumps(mine), speakers)]
  for process, words in zip(speakers, said):
    if 'error' in words:
      raise _of_all(error, process, *words['error'])
  return value, said


def _of_all(own: UserError | None, process: int, kind: str, text: str) -> UserError:
  """The error that all raise, as this process raises it: the first one's."""
  if _network().process_id == process and own is not None:
    own.agreed = True
    return own
  if is_primary():
    text = f'Process {process}: {text}'
  error = getattr(errors, kind, UserError)(text)
  error.agreed, error.told = True, not is_primary()
  return error


def _exchange(mine: str, speakers: Sequence[int]) -> list[str]:
  """The texts of some processes, in their order; by way of process 0, not of the devices."""
  network, number = _network(), next(_rounds)
  if network.process_id in speakers:
    network.client.key_value_set(f'fmnist_jax/{number}/{network.process_id}', mine)
  return [_heard(network.client, f'fmnist_jax/{number}/{process}') for process in speakers]


def _heard(client: Any, key: str) -> str:
  """Waits as long as it takes; jax notices within 100 seconds when a process is lost."""
  while True:
    try:
      # In short waits, between which Python sees to signals.
      return client.blocking_key_value_get(key, 1000)
    except jax.errors.JaxRuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise


@functools.cache
def _largest() -> Callable[[int], jax.Array]:
  """Finds the largest of every process's numbers, on the devices."""
  mesh = Mesh(np.array(jax.devices()), ('device',))
  split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('device',), ()))
  largest = jax.jit(jnp.max, out_shardings=whole)
  return lambda value: largest(jax.make_array_from_callback(
      (mesh.size,), split, lambda index: np.full(1, value, np.int32)))


def _line(error: BaseException) -> str:
  """An error of jax's in one line, without the full stop."""
  return ' '.join(str(error).split())[:300].rstrip('.')
