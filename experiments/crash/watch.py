"""Starts runs of the command line and sees from outside what they are doing."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

# Is told each phase that begins and when it did, in seconds after the process's start, '' first;
# says when to send the signal, or None: not because of that.
When = Callable[[str, float], float | None]

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_PIPE = 900  # The observer's descriptor: high, so that nobody else gets it.

# Everything that has state: augmentation, dropout, BatchNorm, EMA, early stopping. Small batches
# of evaluation, because it would be over too soon to be hit.
RUN = ('--config=smoke', '--config.data.train_examples=1500',
       '--config.data.test_examples=60', '--config.data.validation_examples=100',
       '--config.data.batch_size=20', '--config.train.steps_per_dispatch=2',
       '--config.evaluate.batch_size=4')
LONG = (*RUN, '--config.train.epochs=12', '--config.train.checkpoint_every_seconds=0.1')
SHORT = (*RUN, '--config.train.epochs=2', '--config.train.checkpoint_every_seconds=0')

# In the order in which a run passes them.
PHASES = {
    'interpreter': 'Python starts; nothing of this library has been read',
    'start-up': 'imports',
    'data': 'preparing and reading the data',
    'compilation': 'building the state, compiling, resuming',
    'epoch': 'training, no checkpoint being written',
    'evaluation': 'measuring, after an epoch or after the last',
    'save': 'a checkpoint is being written',
    'rename': 'a file or checkpoint is being put in its place',
    'report': 'predictions, pictures, results.json'}


class Phase:
  """What a run is doing, from what it does to files."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir = str(workdir)
    self._main, self._compiling = 'interpreter', False
    self._saving = self._renaming = False
    self.trained_at: float | None = None  # When training began, or went on.
    self.captured: dict[str, float] = {}  # Step -> when its state was handed over to be saved.
    self.committed_at: float | None = None  # When the newest that is whole was captured.

  @property
  def name(self) -> str:
    """One of `PHASES`, or 'end'."""
    if self._renaming:
      return 'rename'
    if self._saving:
      return 'save'
    return 'compilation' if self._compiling else self._main

  def event(self, kind: str, what: str, error: int, seconds: float, path: str) -> None:
    """Takes in a line of the observer."""
    name = os.path.basename(path)
    if '/fmnist_jax/xla/' in path:
      self._program(kind, what, name)
    elif path == self._workdir or path.startswith(f'{self._workdir}/'):
      self._file(kind, what, error, seconds, path[len(self._workdir) + 1:])
    elif self._main == 'interpreter' and name.startswith('interrupt.'):
      self._main = 'start-up'
    elif self._main == 'start-up' and '/fmnist_jax_synthetic' in path:
      self._main = 'data'

  def _program(self, kind: str, what: str, name: str) -> None:
    """A compiled program is looked for (read), was found (touch) or is kept (rename)."""
    if kind == 'read':
      self._compiling = self._main != 'start-up'
      if name.startswith(('jit_evaluate-', 'jit_predict-')):
        self._main = 'evaluation'
      elif name.startswith('jit_order-'):
        self._main = 'epoch'
    elif kind == 'touch' or (kind, what) == ('rename', 'e'):
      self._compiling = False

  def _file(self, kind: str, what: str, error: int, seconds: float, path: str) -> None:
    new = re.fullmatch(r'checkpoints/\.new-(\d+)', path)
    if self._main in ('start-up', 'data'):
      self._main = 'compilation'
    if self._main == 'epoch' and self.trained_at is None:
      self.trained_at = seconds
    if kind == 'rename' and what == 'b' and '__lock' not in path:
      self._renaming = True
    if kind == 'sync' and (path in ('', 'checkpoints')):
      self._renaming = False
    if kind == 'rename' and what == 'e' and (error or path.startswith('.report')):
      self._renaming = False  # Nobody waits for the disk after that.
    if new and kind == 'mkdir' and not error:
      self._saving = True
      self.captured[new[1]] = seconds
    elif new and kind == 'rename' and what == 'e' and not error:
      self._saving = False
      self.committed_at = self.captured.get(new[1])
    elif path == 'metrics.jsonl' and kind == 'sync':
      self._main = 'epoch'
    elif (kind == 'read' and self._main == 'epoch' and
          re.fullmatch(r'checkpoints/\d+/manifest\.json', path)):
      self._main = 'evaluation'
    elif path.startswith('.predictions.npz') and kind == 'open':
      self._main = 'report'
    elif path.startswith('.results.json') and (kind, what) == ('rename', 'e'):
      self._main = 'end'


@dataclasses.dataclass
class Life:
  """What became of one process.

  Attributes:
    code: its exit code, negative for the signal that killed it.
    out: what it said on standard output.
    err: on standard error.
    seconds: from its start to its end.
    acted: when it was killed or told to leave, seconds after its start; None: never.
    leaving: seconds from there to its end.
    leaving_cpu: of them, those it computed, which do not depend on who else is at work.
    phase: what it was doing then.
    lost: seconds of work after the newest checkpoint, or since training began or went on.
    began: seconds from its start to training; None where it did not come so far.
    spans: (phase, seconds after its start when it began), all of them.
    events: the observer's lines: (kind, what, errno, path).
  """
  code: int
  out: str
  err: str
  seconds: float
  acted: float | None
  leaving: float
  leaving_cpu: float
  phase: str
  lost: float
  began: float | None
  spans: list[tuple[str, float]]
  events: list[tuple[str, str, int, str]]


class Watcher:
  """Starts runs with the observer loaded.

  Attributes:
    work: where everything is written.
  """

  def __init__(self, work: pathlib.Path):
    self.work = work
    work.mkdir(parents=True, exist_ok=True)
    # A shell's job in the background ignores Ctrl-C and would hand that on to the runs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    self._library = work / 'observer.so'
    source = HERE / 'observer.c'
    if not self._library.exists() or self._library.stat().st_mtime < source.stat().st_mtime:
      subprocess.run(['gcc', '-shared', '-fPIC', '-O2', '-o', str(self._library), str(source),
                      '-ldl'], check=True)

  def environment(self, data: str, cache: str) -> dict[str, str]:
    """Of a run whose prepared data and compiled programs lie in folders of these names."""
    env = {name: value for name, value in os.environ.items()
           if name not in ('XLA_FLAGS', 'LD_PRELOAD', 'FMNIST_DATA_DIR')}
    return env | {'PYTHONPATH': str(ROOT), 'TFDS_DATA_DIR': str(self.work / data),
                  'XDG_CACHE_HOME': str(self.work / cache), 'JAX_PLATFORMS': 'cpu',
                  'PYTHONUNBUFFERED': '1'}

  def live(self, arguments: Sequence[str], workdir: pathlib.Path, *, data: str = 'data',
           cache: str = 'cache', fail: str = '', signum: int = signal.SIGKILL,
           when: When = lambda phase, at: None, wrapper: Sequence[str] = (),
           limit: float = 1200.0) -> Life:
    """Runs the command line to its end, or until a signal is due.

    Args:
      arguments: of `fmnist_jax.main`, without the work directory.
      workdir: the run's directory.
      data: folder of prepared data, below `work`.
      cache: folder of compiled programs, likewise.
      fail: see CRASH_FAIL in observer.c.
      signum: what to send.
      when: decides when to send it; never, by default.
      wrapper: a command to put in front.
      limit: seconds after which the process counts as hanging and is killed.
    """
    workdir = workdir.absolute()
    reading, writing = os.pipe()
    os.dup2(writing, _PIPE, inheritable=True)
    os.close(writing)
    env = self.environment(data, cache)
    env |= {'LD_PRELOAD': str(self._library), 'CRASH_FD': str(_PIPE), 'CRASH_FAIL': fail,
            'CRASH_ROOTS': ':'.join(map(str, (workdir, self.work / data, self.work / cache,
                                              ROOT / 'fmnist_jax')))}
    texts = [self.work / 'stdout.txt', self.work / 'stderr.txt']
    with open(texts[0], 'w') as out, open(texts[1], 'w') as err:
      began = time.monotonic()
      process = subprocess.Popen(
          [*wrapper, sys.executable, '-m', 'fmnist_jax.main', *arguments, f'--workdir={workdir}'],
          env=env, cwd=self.work, stdout=out, stderr=err, pass_fds=(_PIPE,))
    os.close(_PIPE)
    phase, spans, events, buffered = Phase(workdir), [('interpreter', 0.0)], [], b''
    due, acted, told, spent = when('', 0.0), None, '', 0.0
    try:
      while True:
        now = time.monotonic() - began
        if due is not None and acted is None and now >= due:
          spent = _cpu_seconds(process.pid)
          process.send_signal(signum)
          acted, told = time.monotonic() - began, phase.name
        if now > limit:
          process.kill()
        wait = limit if due is None or acted is not None else max(0.0, due - now)
        if not select.select([reading], [], [], min(wait, 5.0))[0]:
          continue
        chunk = os.read(reading, 1 << 16)
        if not chunk:
          break
        *lines, buffered = (buffered + chunk).split(b'\n')
        for line in lines:
          kind, what, error, stamp, path = line.decode().split(' ', 4)
          at = int(stamp) / 1e9
          phase.event(kind, what, int(error), at, path)
          events.append((kind, what, int(error), path))
          if phase.name != spans[-1][0]:
            spans.append((phase.name, at - began))
            due = when(phase.name, at - began) if due is None and acted is None else due
      _, status, usage = os.wait4(process.pid, 0)
      code = process.returncode = os.waitstatus_to_exitcode(status)
    finally:
      os.close(reading)
      if process.poll() is None:
        process.kill()
        process.wait()
    ended = time.monotonic() - began
    # A kill acts at once: what was reported until then is what was going on.
    if acted is not None and signum == signal.SIGKILL:
      told = phase.name
    since = phase.committed_at or phase.trained_at
    return Life(
        code, texts[0].read_text(), texts[1].read_text(), ended, acted,
        ended - acted if acted is not None else 0.0,
        usage.ru_utime + usage.ru_stime - spent if acted is not None else 0.0, told,
        max(0.0, began + acted - since) if acted is not None and since else 0.0,
        phase.trained_at - began if phase.trained_at else None, spans, events)


def _cpu_seconds(process: int) -> float:
  fields = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def aim(target: str, usual: Life, chance: random.Random) -> When:
  """A `when` that acts within a phase, at a random moment of it.

  Args:
    target: the phase; 'any': at any time of the whole run.
    usual: a run that shows how long phases take.
    chance: chooses.
  """
  if target == 'any':
    due = chance.random() * usual.seconds
    return lambda phase, at: due if phase == '' else None
  ends = [at for _, at in usual.spans[1:]] + [usual.seconds]
  spans = [end - at for (phase, at), end in zip(usual.spans, ends) if phase == target]
  # One of the first, because a run that goes on has fewer left.
  number = chance.randrange(min(6, len(spans)))
  wait, seen = chance.random() * spans[number], -1

  def when(phase: str, at: float) -> float | None:
    nonlocal seen
    # Python is starting before anything tells of it.
    seen += phase == target or (phase == '' and target == 'interpreter')
    return at + wait if seen == number else None

  return when
