import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fmnist_jax import interrupt
from fmnist_jax.interrupt import Interrupt, Interrupted


def raise_signal(signum):
  os.kill(os.getpid(), signum)
  time.sleep(0.01)  # Python runs handlers between instructions.


@pytest.mark.parametrize('signum, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_leaves_at_once_when_nothing_is_to_be_saved(signum, code):
  before = signal.getsignal(signum)
  reached = False
  with pytest.raises(Interrupted) as caught, Interrupt():
    raise_signal(signum)
    reached = True
  assert caught.value.exit_code == code
  assert not reached
  assert signal.getsignal(signum) is before


@pytest.mark.parametrize('signum, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_program_leaves_on_the_spot_when_nothing_is_to_be_saved(signum, code):
  program = ('import os, time\nfrom fmnist_jax import command\n'
             'def main(interrupt):\n'
             '  try:\n'
             f'    os.kill(os.getpid(), {int(signum)})\n'
             '    time.sleep(60)\n'
             '  finally:\n'
             '    print("an exception")\n'
             'command.run(main)')
  ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                         timeout=50)
  assert ended.returncode == code
  assert ended.stderr.strip() == f'Interrupted by {signal.Signals(signum).name}.'
  assert not ended.stdout


def test_a_program_comes_to_its_safe_point():
  program = ('import os, time\nfrom fmnist_jax import command\n'
             'def main(interrupt):\n'
             '  with interrupt.deferred():\n'
             f'    os.kill(os.getpid(), {int(signal.SIGTERM)})\n'
             '    time.sleep(0.2)\n'
             '    print("saved", flush=True)\n'
             'command.run(main)')
  ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                         timeout=50)
  assert (ended.returncode, ended.stdout) == (143, 'saved\n')
  assert 'saving at the next safe point' in ended.stderr


def test_is_not_swallowed_as_an_ordinary_exception():
  with pytest.raises(Interrupted), Interrupt():
    try:
      raise_signal(signal.SIGTERM)
    except Exception:
      pytest.fail('caught as an Exception')


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_deferred_signal_waits_to_be_polled(signum, capfd):
  steps = []
  with pytest.raises(Interrupted) as caught, Interrupt() as interrupts, interrupts.deferred():
    assert interrupts.requested is None
    interrupts.check()
    for step in range(5):
      steps.append(step)
      if step == 2:
        raise_signal(signum)
      if interrupts.requested is not None:
        steps.append('saved')
        interrupts.check()
  assert steps == [0, 1, 2, 'saved']
  assert caught.value.signum == signum
  assert f'{signal.Signals(signum).name}: saving' in capfd.readouterr().err


def test_deferred_signal_nobody_polled_raises_at_the_end():
  done = False
  with pytest.raises(Interrupted), Interrupt() as interrupts, interrupts.deferred():
    raise_signal(signal.SIGTERM)
    done = True
  assert done


def test_a_signal_somebody_swallowed_is_not_forgotten():
  with Interrupt() as interrupts:
    with contextlib.suppress(BaseException):
      raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted), interrupts.deferred():
      pytest.fail('went on')


def test_a_signal_is_not_lost_where_python_ignores_exceptions(capfd):
  class Dying:
    def __del__(self):
      raise_signal(signal.SIGTERM)

  hook = sys.unraisablehook
  with pytest.raises(Interrupted), Interrupt():
    Dying()
    time.sleep(60)
    pytest.fail('the signal was lost')
  assert sys.unraisablehook is hook
  assert capfd.readouterr().err == ''


def test_other_ignored_exceptions_are_told_as_ever(capfd, monkeypatch):
  monkeypatch.setattr(sys, 'unraisablehook', lambda ignored: print(ignored.exc_value))

  class Dying:
    def __del__(self):
      raise ValueError('told')

  with Interrupt():
    Dying()
  assert capfd.readouterr().out == 'told\n'


def test_a_signal_that_another_thread_was_given_is_polled_while_the_main_thread_waits():
  seen = []

  def poll():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    time.sleep(0.3)  # Until the main thread waits.
    os.kill(os.getpid(), signal.SIGTERM)
    until = time.monotonic() + 10
    while not seen and time.monotonic() < until:
      seen.extend(filter(None, [watched.requested]))
      time.sleep(0.01)

  with pytest.raises(Interrupted), Interrupt() as watched, watched.deferred():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
      thread = threading.Thread(target=poll)
      thread.start()
      thread.join()  # Blocks in a lock: no handler runs here.
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
  assert seen == [signal.SIGTERM]


def test_an_error_goes_before_a_pending_signal():
  with pytest.raises(ValueError), Interrupt() as interrupts, interrupts.deferred():
    raise_signal(signal.SIGTERM)
    raise ValueError


def test_does_nothing_outside_the_main_thread():
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def work():
    with Interrupt() as interrupts, interrupts.deferred():
      seen.append((interrupts.requested, signal.getsignal(signal.SIGTERM)))
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [(None, before)]


def test_ignored_signals_stay_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with Interrupt() as interrupts:
      raise_signal(signal.SIGINT)
      assert interrupts.requested is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)


def test_can_be_entered_again_and_leaves_nothing_open():
  open_files = len(os.listdir('/proc/self/fd'))
  threads = threading.active_count()
  for _ in range(3):
    with pytest.raises(Interrupted), Interrupt() as interrupts, interrupts.deferred():
      raise_signal(signal.SIGINT)
  assert len(os.listdir('/proc/self/fd')) == open_files
  assert threading.active_count() == threads


def child(code):
  return subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True,
                          env=os.environ | {'PYTHONPATH': os.path.dirname(os.path.dirname(
                              interrupt.__file__))})


# A C call that lets other threads run and is not cut short by a signal, as a compilation is.
LONG_CALL = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"


def test_the_third_signal_leaves_from_within_a_c_call():
  process = child('import sys\n'
                  'from fmnist_jax.interrupt import Interrupt\n'
                  'with Interrupt() as interrupts, interrupts.deferred():\n'
                  '  print("ready", file=sys.stderr, flush=True)\n'
                  f'  {LONG_CALL}\n')
  assert process.stderr.readline() == 'ready\n'
  for words in ('saving at the next safe point', 'still saving', 'leaving now'):
    process.send_signal(signal.SIGINT)
    process.stderr.readline()
    assert words in process.stderr.readline()
  assert process.wait(timeout=20) == 130
  process.stderr.close()


def test_a_c_call_cannot_hold_up_a_signal_for_long():
  process = child('import sys\n'
                  'from fmnist_jax import interrupt\n'
                  'interrupt.GRACE_SECONDS = 0.1\n'
                  # As if Python never got to run the handler.
                  'interrupt.Interrupt._handle = lambda *_: None\n'
                  'with interrupt.Interrupt():\n'
                  '  print("ready", file=sys.stderr, flush=True)\n'
                  f'  {LONG_CALL}\n')
  assert process.stderr.readline() == 'ready\n'
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=20) == 143
  assert 'nothing to save' in process.stderr.read()
  process.stderr.close()


def test_needs_nothing_but_the_standard_library():
  process = child('import fmnist_jax.interrupt, sys\n'
                  'sys.exit("jax" in sys.modules or "numpy" in sys.modules)')
  assert process.wait(timeout=60) == 0
  process.stderr.close()
