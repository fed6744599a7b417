"""SIGTERM, SIGHUP, Ctrl-C: at once while there is nothing to save, else at the next safe point.

This module imports the standard library alone, so that a program can install `Interrupt` before
it spends seconds importing jax.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

# How long a signal may wait, outside `deferred`, for a C call such as a compilation to return.
GRACE_SECONDS = 10.0

# In the pipe, where numbers of signals stand otherwise.
_END, _AGAIN = 0, 255


class Interrupted(BaseException):
  """A signal asked the program to leave.

  Not an Exception, so that `except Exception` does not swallow it.

  Attributes:
    signum: number of the signal.
    exit_code: what the process should exit with: 128 + signum, as a shell reports it.
    agreed: whether all processes of a run raise it at the same point.
  """
  agreed = False

  def __init__(self, signum: int):
    super().__init__(f'Interrupted by {signal.Signals(signum).name}.')
    self.signum = int(signum)
    self.exit_code = 128 + self.signum


class Signals(Protocol):
  """What a run polls: `Interrupt`, or what stands in for it."""

  @property
  def requested(self) -> int | None:
    """Number of the first signal received, or None."""

  def check(self) -> None:
    """Raises `Interrupted` if a signal has been received."""

  def deferred(self) -> contextlib.AbstractContextManager[None]:
    """While inside, signals wait to be polled."""


class Unwatched:
  """Leaves signals to the program: nothing is received here."""
  requested: int | None = None

  def check(self) -> None:
    """Does nothing."""

  def deferred(self) -> contextlib.AbstractContextManager[None]:
    """Does nothing."""
    return contextlib.nullcontext()


class Interrupt:
  """A context in which SIGTERM, SIGHUP and SIGINT are orderly requests to leave.

  Outside `deferred` a signal raises `Interrupted` in the main thread at once; if a long C call
  keeps Python from doing so for `GRACE_SECONDS`, the process exits. A program of its own has it
  exit on the spot instead (`leave`). Inside `deferred` a signal is
  only remembered: poll `requested` or `check` where stopping is safe. The second signal says again
  what is being waited for; the third exits on the spot, which loses what is not saved and nothing
  else, because files are replaced atomically.

  Where Python ignores exceptions, in destructors and callbacks of the garbage collector, a signal
  is sent once more, a moment later.

  Messages and the third signal work even while the main thread is inside a C call: a small thread
  reads signals from a pipe.

  A signal that the process was started to ignore (nohup, a shell's background job) stays ignored.
  Outside the main thread, where Python allows no signal handlers, the context does nothing and
  `requested` stays None. Handlers found on entry are restored on exit.
  """

  def __init__(self, *, leave: bool = False) -> None:
    """Args: leave: end the process where a signal would raise, which loses nothing either.

    An exception can come in the middle of anything, and native code, above all while it is being
    imported or compiles in threads, does not always survive one, nor Python's end after one.
    """
    self._leave = leave
    self._received: list[int] = []
    self._deferred = 0
    self._noticed = threading.Event()
    self._previous: dict[int, object] = {}
    self._pipe: tuple[int, int] | None = None
    self._previous_fd = -1
    self._previous_hook: Callable[[sys.UnraisableHookArgs], object] | None = None
    self._repeats = 0  # Signals that we send ourselves.
    self._thread = threading.Thread()

  @property
  def requested(self) -> int | None:
    """Number of the first signal received, or None."""
    return self._received[0] if self._received else None

  def check(self) -> None:
    """Raises `Interrupted` if a signal has been received."""
    if self.requested is not None:
      raise Interrupted(self.requested)

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """While inside, signals wait to be polled; one nobody acted on raises on the way out.

    Raises:
      Interrupted: on entry or on an orderly exit, when a signal has been received.
    """
    self.check()
    self._deferred += 1
    try:
      yield
    finally:
      self._deferred -= 1
    self.check()

  def __enter__(self) -> Interrupt:
    if threading.current_thread() is not threading.main_thread():
      return self
    self._pipe = os.pipe()
    os.set_blocking(self._pipe[1], False)
    self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
    self._thread = threading.Thread(target=self._watch, args=(self._pipe[0],), name='interrupt',
                                    daemon=True)
    self._thread.start()
    self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._ignored
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(signum) is not signal.SIG_IGN:
        self._previous[signum] = signal.signal(signum, self._handle)
    return self

  def __exit__(self, *_: object) -> None:
    previous, self._previous = self._previous, {}
    for signum, handler in previous.items():
      # None: a handler that was not set by Python and cannot be put back by it.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # type: ignore
    if self._previous_hook is not None:
      sys.unraisablehook, self._previous_hook = self._previous_hook, None
    if self._pipe is not None:
      signal.set_wakeup_fd(self._previous_fd)
      os.write(self._pipe[1], bytes([_END]))
      self._thread.join()
      for fd in self._pipe:
        os.close(fd)
      self._pipe = None

  def _handle(self, signum: int, _: object) -> None:
    """Runs in the main thread, between two Python instructions."""
    self._received.append(signum)
    self._noticed.set()
    if not self._deferred and not self._leave:  # Our thread sees to leaving.
      raise Interrupted(self._received[0])

  def _ignored(self, ignored: sys.UnraisableHookArgs) -> None:
    """Python tells of an exception that it is about to ignore."""
    if isinstance(ignored.exc_value, Interrupted) and self._pipe is not None:
      os.write(self._pipe[1], bytes([_AGAIN]))
    elif self._previous_hook is not None:
      self._previous_hook(ignored)

  def _watch(self, pipe: int) -> None:
    """Runs in a thread of its own, as soon as the signal arrives."""
    count = 0
    while True:
      for signum in os.read(pipe, 64):
        if signum == _END:
          return
        if signum == _AGAIN:
          time.sleep(0.01)  # So that the main thread has left the callback.
          if self._previous:
            self._repeats += 1
            signal.pthread_kill(threading.main_thread().ident or 0, self._received[0])
          continue
        if signum not in self._previous:
          continue
        if self._repeats:
          self._repeats -= 1
          continue
        count += 1
        name = signal.Signals(signum).name
        if count >= 3:
          _say(f'{name} for the third time: leaving now; the last saved checkpoint is intact.')
          os._exit(128 + signum)
        if self._deferred:
          # The main thread learns of a signal that the kernel gave to another thread only when it
          # comes back to Python, and it may be waiting for the very threads that poll.
          self._received.append(signum)
          _say(f'{name}: {"saving" if count == 1 else "still saving"} at the next safe point, then '
               f'leaving; {"twice" if count == 1 else "once"} more leaves without saving.')
        elif self._leave:
          _say(str(Interrupted(signum)))
          os._exit(128 + signum)
        elif count == 1:
          threading.Thread(target=self._insist, args=(signum,), daemon=True).start()

  def _insist(self, signum: int) -> None:
    """Leaves when the main thread has not come back to Python in time to do so itself."""
    if not self._noticed.wait(GRACE_SECONDS) and not self._deferred:
      _say(f'{signal.Signals(signum).name}: leaving; there was nothing to save yet.')
      os._exit(128 + signum)


def _say(sentence: str) -> None:
  """Writes a line to the terminal, which may be gone."""
  with contextlib.suppress(OSError):
    os.write(2, f'\n{sentence}\n'.encode())
