"""Training the members of a population: each for itself, in threads, or vectorised in groups."""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fmnist_jax import machine, progress, sharding, step, tensorboard
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import DivergenceError
from fmnist_jax.interrupt import Interrupted, Signals
from fmnist_jax.population.plan import Member, features
from fmnist_jax.population.vectorized import Group
from fmnist_jax.programs import Programs, hyper_arrays
from fmnist_jax.storage import files
from fmnist_jax.storage.workdir import Workdir
from fmnist_jax.trainer import Trainer


def is_done(directory: pathlib.Path) -> bool:
  """Whether a member has come to its end, good or bad."""
  return any((directory / name).exists() for name in ('results.json', 'diverged.json'))


def bytes_per_member(programs: Programs, hyper: dict[str, jax.Array]) -> int:
  """A generous estimate of the device memory that one member needs.

  Its state and its best, each while the next is made; and three times what the backward pass
  keeps of the forward pass, for the larger of a training and an evaluation batch.
  """
  config, module = programs.config, programs.module
  state = jax.eval_shape(programs.init, jax.ShapeDtypeStruct((), np.int32), hyper)

  def backward(state: step.TrainState, images: jax.Array) -> Any:
    def loss(params: Any) -> Any:
      logits, _ = module.apply({'params': params, **state.model_state}, images, train=True,
                               rngs=state.rngs(), mutable=list(state.model_state))
      return jnp.mean(step.cross_entropy(logits, jnp.ones_like(logits)))
    return jax.vjp(loss, state.params)[1]

  images = jax.ShapeDtypeStruct((config.data.batch_size, *programs.image_shape), np.float32)
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  kept = size(jax.eval_shape(backward, state, images))
  batches = max(1.0, config.evaluate.batch_size / (2 * config.data.batch_size))
  return int(4 * size(state) + 3 * batches * kept)


def memory(mesh: Mesh) -> int:
  """Bytes that a group may use: half of each device's memory, or a quarter of the machine's."""
  stats = mesh.devices.flat[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit'] // 2 * mesh.size
  return machine.memory() // 4


def group_size(equipment: Equipment, members: int, at_once: int) -> int:
  """How many of these members train together: all, or equal groups that memory has room for.

  Args:
    equipment: programs and data.
    members: how many there are.
    at_once: how many may train together; 0: as many as memory has room for.
  """
  if not at_once:
    programs = equipment.programs
    needed = bytes_per_member(programs, hyper_arrays(programs.config))
    at_once = max(1, memory(equipment.mesh) // needed)
  groups = -(-members // at_once)
  return -(-members // groups)


def threads(equipment: Equipment, members: int, at_once: int) -> int:
  """How many members train apart at a time: a thread a core on one CPU device, else one.

  Programs that span devices must not run at the same time: each would wait for the other.
  """
  mesh, programs = equipment.mesh, equipment.programs
  if mesh.size > 1:
    return 1
  if not at_once:
    if sharding.platform(mesh) != 'cpu':
      return 1
    needed = bytes_per_member(programs, hyper_arrays(programs.config))
    at_once = max(1, min(machine.cores(), memory(mesh) // needed))
  return min(at_once, members)


def in_threads(threads: int, signals: Signals, tasks: Iterable[Callable[[Signals], None]]) -> None:
  """Does tasks, so many at a time; each is given signals of its own to poll.

  Raises:
    BaseException: what went wrong first, at which the other tasks leave.
  """
  own = _ThreadSignals(signals)

  def work(task: Callable[[Signals], None]) -> None:
    try:
      own.check()
      task(own)
    except BaseException:
      own.stop()
      raise

  with signals.deferred(), futures.ThreadPoolExecutor(threads, 'member') as pool:
    errors = [future.exception() for future in [pool.submit(work, task) for task in tasks]]
  for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Interrupted)):
    raise error


class _ThreadSignals:
  """Stands in for signals in the threads of members: all leave when one fails."""

  def __init__(self, signals: Signals):
    self._signals, self._stopped = signals, threading.Event()

  @property
  def requested(self) -> int | None:
    """See `Signals`."""
    return self._signals.requested

  def stop(self) -> None:
    """Makes the others save and leave."""
    self._stopped.set()

  def check(self) -> None:
    """Raises `Interrupted` when a signal came, or a thread failed."""
    if self._stopped.is_set():
      raise Interrupted(self._signals.requested or signal.SIGTERM)
    self._signals.check()

  def deferred(self) -> contextlib.AbstractContextManager[None]:
    """Nothing: the main thread defers signals for all."""
    return contextlib.nullcontext()


class _Named(progress.Console):
  """Lines of a member begin with its name; there is no bar."""

  def __init__(self, console: progress.Console, name: str):
    super().__init__(silent=True)
    self._console, self._name = console, name

  def say(self, text: str) -> None:
    """Prints a line."""
    self._console.say(f'{self._name}  {text}')


@dataclasses.dataclass
class Work:
  """What training members needs.

  Attributes:
    population: the directory.
    equipment: programs and data.
    console: where to say what happens.
    signals: polled while training.
    data_seconds: spent on loading so far, booked on the first member that trains.
  """
  population: Workdir
  equipment: Equipment
  console: progress.Console
  signals: Signals
  data_seconds: float

  def _by_features(self, members: Sequence[Member]) -> list[
      tuple[Equipment, list[Member]]]:
    """Members that share a program, each lot with its own."""
    lots: dict[tuple[str, ...], list[Member]] = {}
    for member in members:
      lots.setdefault(features(member.config), []).append(member)
    return [(self.equipment.of(lot[0].config), lot) for lot in lots.values()]

  def _hold(self, member: Member) -> Workdir:
    directory = self.population.path / 'members' / member.name
    return Workdir(directory, member.config, tensorboard.recorder(member.config, directory))

  def apart(self, members: Sequence[Member], at_once: int) -> None:
    """Every member as its run alone would be, bit for bit; compiled once.

    Args:
      members: to train, or to go on with.
      at_once: how many at a time, each in a thread of its own.
    """
    tasks = [(equipment, member) for equipment, lot in self._by_features(members)
             for member in lot]
    if at_once == 1:
      for equipment, member in tasks:
        self._train_one(equipment, member, self.signals)
      return
    in_threads(at_once, self.signals, (
        functools.partial(self._train_one, *task) for task in tasks))

  def _train_one(self, equipment: Equipment, member: Member, signals: Signals) -> None:
    with self._hold(member) as workdir:
      if is_done(workdir.path):
        return
      named = _Named(self.console, member.name)
      trainer = Trainer(member.config, workdir, equipment, named, signals)
      try:
        trainer.resume()
        self._book_data(trainer)
        trainer.fit()
        trainer.finish(with_report=False)
      except DivergenceError as error:
        self.console.say(f'{member.name} is given up: {error}')
        workdir.held()
        files.write_json(workdir.path / 'diverged.json', {'message': str(error)})
      finally:
        trainer.checkpoints.close()

  def _book_data(self, trainer: Trainer) -> None:
    trainer.progress.seconds['data'] += self.data_seconds
    self.data_seconds = 0.0

  def in_step(self, members: Sequence[Member], at_once: int) -> None:
    """Members in groups, each group one program over a member axis."""
    lots = self._by_features(members)
    path = self.population.path / 'groups.json'
    if not path.exists():
      # Kept, because a group goes on from its checkpoint only as the group it was.
      files.write_json(path, [group_size(equipment, len(lot), at_once)
                              for equipment, lot in lots])
    number = itertools.count()
    for (equipment, lot), size in zip(lots, files.read_json(path, [range(1, 2**31)])):
      for start in range(0, len(lot), size):
        directory = self.population.path / 'groups' / str(next(number))
        self._train_group(lot[start:start + size], size, directory, equipment)

  def _train_group(self, group: Sequence[Member], size: int, directory: pathlib.Path,
                   equipment: Equipment) -> None:
    with contextlib.ExitStack() as stack:
      members = [(member.config, stack.enter_context(self._hold(member))) for member in group]
      if all(is_done(own.path) for _, own in members):
        shutil.rmtree(directory, ignore_errors=True)
        return
      directory.mkdir(parents=True, exist_ok=True)
      trainer = Group(members, directory, equipment, size, self.console, self.signals)
      stack.callback(trainer.checkpoints.close)
      trainer.resume()
      self._book_data(trainer)
      self.console.say(f'{group[0].name} to {group[-1].name}:')
      trainer.fit()
      trainer.finish()
