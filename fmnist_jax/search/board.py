"""Who trains which trial: asked of Optuna, leased, told once; whatever happens to a worker.

A *member* is a draw of the space, and what search.json lists. An *attempt* at it is a trial of
Optuna's, in one of the states that Optuna has:

  WAITING    to be trained by whoever asks next
  RUNNING    leased to the worker that its attribute `worker` names
  COMPLETE   trained to its end, PRUNED: given up; the member is finished
  FAIL       its lease was lost, or given back: the member waits for another attempt

All changes of state are atomic in the storage, and none leads out of the last three, so of two
workers that tell of an attempt, or take it, one succeeds. A worker counts in a study attribute; who
sees that count stand still for the time of a lease, by a clock of its own, lets the attempts of
that worker FAIL. No two clocks are compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fmnist_jax.config import Config
from fmnist_jax.errors import ConfigError, UserError, WorkdirError
from fmnist_jax.search.space import Space
from fmnist_jax.search.storage import Address

optuna.logging.set_verbosity(optuna.logging.ERROR)

SAMPLERS = {'tpe': 'TPESampler', 'random': 'RandomSampler',
            'grid': 'RandomSampler',  # Which draws nothing: all there is waits from the beginning.
            'qmc': 'QMCSampler', 'gp': 'GPSampler', 'cmaes': 'CmaEsSampler',
            'nsgaii': 'NSGAIISampler'}
PRUNERS = ('median', 'halving', 'hyperband', 'none')
_BEATS = 6  # in the time of a lease
_SPEAKING = 10  # trials, trained to their end, are the fewest that say what matters


class Lost(Exception):
  """The lease of an attempt is not ours any more."""


@dataclasses.dataclass
class Task:
  """An attempt that this worker has leased.

  Attributes:
    member: what it is an attempt at.
    params: what was drawn, by dotted name.
    config: of it; or why there can be none.
    trial: Optuna's.
  """
  member: str
  params: dict[str, Any]
  config: Config | ConfigError
  trial: optuna.Trial


def sampler_of(name: str) -> optuna.samplers.BaseSampler:
  """One of `SAMPLERS`; raises ConfigError where it needs a package that is not there."""
  needed = {'gp': 'torch', 'cmaes': 'cmaes'}
  if name in needed and importlib.util.find_spec(needed[name]) is None:
    raise ConfigError(f'--sampler={name} needs a package that is not installed: pip install '
                      f'{needed[name]}.')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    return getattr(optuna.samplers, SAMPLERS[name])()


def pruner_of(name: str, epochs: int) -> optuna.pruners.BasePruner:
  """One of `PRUNERS`, for runs of so many epochs."""
  first = max(1, epochs // 9)
  if name == 'median':
    return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 4)
  if name == 'halving':
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
  if name == 'hyperband':
    return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=epochs)
  return optuna.pruners.NopPruner()


class Board:
  """A study as one worker sees it; its methods may be called in several threads.

  Attributes:
    worker: a name that no other worker has.
  """

  def __init__(self, study: optuna.Study, address: Address, space: Space, config: Config,
               trials: int, lease: float):
    """Args:
      study: in the storage that the workers share.
      address: of that storage.
      space: what is searched.
      config: that it starts from.
      trials: how many members there shall be.
      lease: seconds without a sign of life after which a worker's attempts are taken from it.
    """
    self.worker = secrets.token_hex(3)
    self._study, self._storage, self._address = study, study._storage, address
    self._space, self._config, self._wanted, self._lease = space, config, trials, lease
    self._seen: dict[int, tuple[Any, float]] = {}  # Signs of others' attempts, and since when.
    self._beats = 0
    self._lock = threading.RLock()
    self._stopped = threading.Event()
    self._heart = threading.Thread(target=self._live, name='heartbeat', daemon=True)
    self._error: UserError | None = None

  def __enter__(self) -> Board:
    self.look()
    self._heart.start()
    return self

  def __exit__(self, *_: object) -> None:
    """Stops the signs of life; attempts that are still leased are given back."""
    self._stopped.set()
    self._heart.join()
    with contextlib.suppress(UserError), self._guarded():
      for trial in self._trials():
        if trial.state == TrialState.RUNNING and trial.user_attrs.get('worker') == self.worker:
          self._fail(trial)
      self._settle(self._trials())

  @contextlib.contextmanager
  def _guarded(self) -> Iterator[None]:
    """One thread at a time; what Optuna and the database raise becomes a sentence.

    An attempt that has ended, and so refuses what is done with it, has been ended by another
    worker: `Lost`.
    """
    with self._lock:
      if self._error:
        raise self._error
      try:
        yield
      except UpdateFinishedTrialError:
        raise Lost from None
      except (StorageInternalError, SQLAlchemyError, KeyError, OSError, ValueError) as error:
        raise WorkdirError(
            f'The storage {self._address.shown} failed ({type(error).__name__}: '
            f'{self._address.tame(error)}); run the same command again once it works: it goes on '
            'with what the directories of trials hold.') from None

  def _trials(self) -> list[FrozenTrial]:
    return self._study.get_trials(deepcopy=False)

  def _fail(self, trial: Any) -> None:
    """An attempt comes to nothing, unless it has come to an end already."""
    with contextlib.suppress(UpdateFinishedTrialError):
      self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

  # Asking and telling.

  def ask(self) -> Task | None:
    """An attempt to train, leased; None where there is none to be had just now."""
    with self._guarded():
      while True:
        before = self._trials()
        if (not any(trial.state == TrialState.WAITING for trial in before)
            and _size(before) >= self._wanted):
          return None
        trial = self._study.ask()
        try:
          return self._leased(trial)
        except (Lost, UpdateFinishedTrialError):
          self._fail(trial)

  def _leased(self, trial: optuna.Trial) -> Task:
    """The task of an attempt; raises `Lost` where another worker was first with its member."""
    trial.set_user_attr('worker', self.worker)
    earlier = [one for one in self._trials() if one.number < trial.number]
    member = trial.user_attrs.get('member')
    if any(one.state != TrialState.FAIL and _member(one) == member for one in earlier
           if member) or (not member and _size(earlier) >= self._wanted):
      raise Lost
    config = self._draw(trial)
    if not member:
      member = f'{trial.number:04d}-{secrets.token_hex(2)}'
      trial.set_user_attr('member', member)
    return Task(member, dict(trial.params), config, trial)

  def _draw(self, trial: Any) -> Config | ConfigError:
    try:
      return self._space.draw(self._config, trial)
    except ConfigError as error:
      return error

  def report(self, task: Task, epoch: int, value: float) -> bool:
    """Tells the accuracy after an epoch, from 1; returns whether Optuna gives the trial up.

    Raises:
      Lost: when the attempt is not ours any more.
    """
    with self._guarded():
      known = self._storage.get_trial(task.trial._trial_id)
      if known.state != TrialState.RUNNING:
        raise Lost
      if epoch not in known.intermediate_values:
        task.trial.report(value, epoch)
      return task.trial.should_prune()

  def holds(self, task: Task) -> bool:
    """Whether an attempt is still ours."""
    with self._guarded():
      return self._storage.get_trial(task.trial._trial_id).state == TrialState.RUNNING

  def tell(self, task: Task, outcome: Mapping[str, Any]) -> None:
    """Finishes an attempt, with what becomes of it in search.json.

    Raises:
      Lost: when the attempt is not ours any more.
    """
    with self._guarded():
      task.trial.set_user_attr('outcome', dict(outcome))
      state = _state(outcome)
      told = self._study.tell(task.trial, outcome['accuracy'], state, skip_if_finished=True)
      if told.state != state:
        raise Lost

  def rungs(self, task: Task) -> dict[str, float]:
    """What successive halving keeps of a trial, to be kept with its outcome."""
    with self._guarded():
      attributes = self._storage.get_trial(task.trial._trial_id).system_attrs
      return {name: value for name, value in attributes.items()
              if name.startswith('completed_rung_')}

  def let_go(self, task: Task) -> None:
    """Gives an attempt back, for others to take up."""
    with self._guarded():
      self._fail(task.trial)

  # Looking after others.

  def _live(self) -> None:
    """The heartbeat."""
    while not self._stopped.wait(self._lease / _BEATS):
      try:
        self.look()
      except UserError as error:
        self._error = error
        return

  def look(self) -> None:
    """Gives a sign of life, and takes the attempts of workers that give none."""
    with self._guarded():
      self._beats += 1
      self._study.set_user_attr(f'worker {self.worker}', {
          'beats': self._beats, 'where': f'process {os.getpid()} on {socket.gethostname()}'})
      signs, now, before = self._study.user_attrs, time.monotonic(), self._seen
      self._seen = {}
      for trial in self._trials():
        worker = trial.user_attrs.get('worker')
        if trial.state != TrialState.RUNNING or worker == self.worker:
          continue
        sign = (worker, signs.get(f'worker {worker}'))
        known, since = before.get(trial.number, (None, now))
        self._seen[trial.number] = (sign, since if known == sign else now)
        if known == sign and now - since > self._lease:
          self._fail(trial)
      self._settle(self._trials())

  def _settle(self, trials: Sequence[FrozenTrial]) -> None:
    """Members that have come to nothing so far wait for another attempt."""
    for member, attempts in _members(trials).items():
      if all(one.state == TrialState.FAIL for one in attempts):
        self._enqueue(member, attempts[0].system_attrs.get('fixed_params', attempts[0].params))

  def _enqueue(self, member: str, params: Mapping[str, Any]) -> None:
    self._study.enqueue_trial(dict(params), {'member': member})

  def restore(self, finished: Mapping[str, Mapping[str, Any]],
              unfinished: Mapping[str, Mapping[str, Any]]) -> int:
    """Puts what the trials' directories hold into the storage, where that has forgotten it.

    Args:
      finished: the outcomes of members.
      unfinished: the params of others.

    Returns:
      How many members the storage lacked.
    """
    with self._guarded():
      known = _members(self._trials())
      for member, outcome in finished.items():
        if member not in known:
          drawn = optuna.trial.FixedTrial(outcome['params'])
          self._draw(drawn)
          curves = outcome['validation_accuracy'][:1]
          reported = {epoch: value for curve in curves for epoch, value in enumerate(curve, 1)}
          state, value = _state(outcome), outcome['accuracy']
          if value is None and reported:  # As Optuna does of a trial that is given up.
            value = reported[max(reported)]
          self._study.add_trial(optuna.trial.create_trial(
              state=state, value=value, params=outcome['params'], intermediate_values=reported,
              distributions=drawn.distributions, system_attrs=outcome['rungs'],
              user_attrs={'member': member, 'outcome': dict(outcome)}))
      for member, params in unfinished.items():
        if member not in known:
          self._enqueue(member, params)
      return len((finished.keys() | unfinished.keys()) - known.keys())

  # What is there.

  def finished(self) -> bool:
    """Whether all members are."""
    with self._guarded():
      return len(_finished(self._trials())) >= self._wanted

  def outcomes(self) -> dict[str, dict[str, Any]]:
    """The outcome of every finished member, in the order in which they were drawn."""
    with self._guarded():
      return {member: trial.user_attrs['outcome']
              for member, trial in _finished(self._trials()).items()}

  def importances(self) -> dict[str, float]:
    """How much each domain matters for being among the best tenth (PED-ANOVA, arXiv:2304.10255).

    Shares, the largest first; empty where too few trials say anything.
    """
    with self._guarded():
      complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
      if len(complete) < _SPEAKING:
        return {}
      found = optuna.importance.get_param_importances(
          self._study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
      return found if any(found.values()) else {}


def _member(trial: FrozenTrial) -> str | None:
  return trial.user_attrs.get('member')


def _members(trials: Sequence[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
  """The attempts at every member, oldest first."""
  found: dict[str, list[FrozenTrial]] = {}
  for trial in trials:
    if _member(trial):
      found.setdefault(trial.user_attrs['member'], []).append(trial)
  return found


def _size(trials: Sequence[FrozenTrial]) -> int:
  """How many members there are, those about to be drawn included."""
  return len(_members(trials)) + sum(
      not _member(trial) and trial.state == TrialState.RUNNING for trial in trials)


def _finished(trials: Sequence[FrozenTrial]) -> dict[str, FrozenTrial]:
  """The attempt that finished each member that is finished: the first one, should there be two."""
  return {member: done[0] for member, attempts in _members(trials).items()
          if (done := [one for one in attempts
                       if one.state in (TrialState.COMPLETE, TrialState.PRUNED)])}


def _state(outcome: Mapping[str, Any]) -> TrialState:
  return TrialState.PRUNED if outcome['accuracy'] is None else TrialState.COMPLETE
