"""Several processes train one run: on loopback, two processes with two CPU devices each."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

from fmnist_jax import config_file
from fmnist_jax.storage import workdir
from fmnist_jax.train import train_and_evaluate

OVERRIDES = ['data.train_examples=396', 'data.test_examples=61', 'data.validation_examples=100',
             'data.batch_size=48', 'data.augment=Flip', 'model=MLP', 'model.hidden=16',
             'model.dropout=0.1', 'optim=SGD', 'train.epochs=3', 'train.steps_per_dispatch=1',
             'train.precision=float32', 'train.early_stopping_patience=0']

# `fmnist_jax.main`, which sends itself a signal when it has seen the sums of a step, and gives up a
# process that it does not hear of within 15 seconds in place of jax's 100.
CHILD = """
import functools, os, sys
from fmnist_jax import machine, command, main
machine.prepare_environment()
import jax
from fmnist_jax.trainer import Trainer
jax.distributed.initialize = functools.partial(jax.distributed.initialize,
                                               heartbeat_timeout_seconds=15)
number, step = int(sys.argv.pop(1)), int(sys.argv.pop(1))
show = Trainer.show
def show_and_signal(self, taken, sums):
  global step
  if step and taken >= step:
    step = 0
    os.kill(os.getpid(), number)
  show(self, taken, sums)
Trainer.show = show_and_signal
command.run(main.main)
"""


def run_both(directory, *more, signals=((0, 0), (0, 0)), apart=((), ()), config=None):
  """Runs the command line in two processes; returns (exit code, stdout, stderr) of each.

  Args:
    directory: the work directory.
    *more: arguments of both.
    signals: for each, the signal it sends itself and after which step (0: never).
    apart: further arguments of each.
    config: config file; None: `OVERRIDES` of a shipped one.
  """
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  env = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),
         'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  both = [subprocess.Popen(
      [sys.executable, '-c', CHILD, *map(str, signals[index]), *(
          [f'--config={config}'] if config else
          ['--config=smoke', *(f'--config.{override}' for override in OVERRIDES)]),
       f'--workdir={directory}', *more, *apart[index],
       f'--coordinator=localhost:{port}', '--processes=2', f'--process={index}'],
      env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for index in range(2)]
  try:
    said = [process.communicate(timeout=280) for process in both]
  finally:
    for process in both:
      process.kill()
  return [(process.returncode, *what) for process, what in zip(both, said)]


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory):
  """An uninterrupted run of two processes."""
  directory = tmp_path_factory.mktemp('distributed') / 'whole'
  for code, _, err in run_both(directory):
    assert (code, err) == (0, '')
  return directory


def test_two_processes_compute_what_one_does(whole, tmp_path):
  config = config_file.load('smoke', OVERRIDES)
  train_and_evaluate(config, tmp_path / 'one')
  (ours, _), (theirs, _) = (runs.newest_checkpoint(path) for path in (whole, tmp_path / 'one'))
  # Sums of two and of four parts round differently: 1e-5 a step, of which there are 18.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=18e-5), ours, theirs)
  for a, b in zip(runs.history(whole), runs.history(tmp_path / 'one'), strict=True):
    for name in a:
      assert a[name] == pytest.approx(b[name], abs=1e-3 if 'loss' in name else 0.021), name
  found, expected = runs.results(whole), runs.results(tmp_path / 'one')
  assert found['examples'] == expected['examples'] == 61
  assert np.sum(found['confusion_matrix']) == 61 and found['device'] == expected['device']


@pytest.mark.slow
def test_interrupted_and_killed_the_run_ends_with_the_same_bits(whole, tmp_path):
  # Streamed, of which each process reads its part, where the other run was resident; and saved as
  # soon as process 0's clock says so, at steps that differ from start to start.
  more = '--config.data.residency=streamed', '--config.train.checkpoint_every_seconds=0.01'
  directory = tmp_path / 'run'
  # Process 1 alone is asked to leave, in the second epoch.
  for code, _, err in run_both(directory, *more, signals=[(0, 0), (signal.SIGTERM, 8)]):
    assert code == 143 and err.endswith('Interrupted by SIGTERM.\n') and 'Traceback' not in err
  assert len(runs.history(directory)) == 1
  saved = runs.newest_checkpoint(directory)[0].step
  assert 6 < saved < 12, 'it stopped between two dispatches'
  # Process 1 is killed, in the third epoch.
  (first, _, err), (second, _, _) = run_both(
      directory, *more, signals=[(0, 0), (signal.SIGKILL, 14)])
  assert second == -signal.SIGKILL
  assert first not in (0, 143)
  assert 'Traceback' not in err
  assert len(runs.history(directory)) == 2
  for code, _, err in run_both(directory, *more):
    assert (code, err) == (0, '')
  runs.assert_same_run(whole, directory)


def test_an_error_of_process_0_ends_both_and_is_told_once(tmp_path):
  with workdir.Workdir(tmp_path / 'held', config_file.load('smoke', OVERRIDES)):
    (first, _, err), (second, out, silent) = run_both(tmp_path / 'held')
  assert first == second == 1
  assert err.startswith('error: ') and 'in use by process' in err and err.count('\n') == 1
  assert (out, silent) == ('', '')


def test_an_error_of_another_process_ends_both(tmp_path):
  (first, _, err), (second, _, theirs) = run_both(
      tmp_path / 'run', apart=[[], ['--config.train.seed=1']])
  assert first == second == 1
  assert theirs.startswith('error: This process has another config than process 0 (train.seed: '
                           '0 -> 1)') and theirs.count('\n') == 1
  assert err == theirs.replace('error: ', 'error: Process 1: ')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_only_process_0_reads_the_run_that_both_start_from(whole, tmp_path):
  more = [f'--config.train.init_from={whole}', '--config.train.freeze=Dense_0',
          '--config.train.seed=1', '--config.train.epochs=1']
  (code, out, err), (second, _, silent) = run_both(tmp_path / 'run', *more)
  assert (code, err, second, silent) == (0, '', 0, '')
  assert 'taken: Dense_0, Dense_1; starting fresh: nothing; left there: nothing.' in out
  theirs, (state, progress) = runs.load_run(whole), runs.newest_checkpoint(tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, state.params['Dense_0'],
               jax.device_get(theirs.variables['params']['Dense_0']))
  assert progress['init_from']['step'] == theirs.step
  for code, _, err in run_both(tmp_path / 'other', '--config.train.init_from=nowhere'):
    assert code == 1 and err in ('', 'error: train.init_from is nowhere, where there is no run '
                                 'with a checkpoint.\n')
  assert not (tmp_path / 'other').exists()
