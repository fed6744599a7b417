"""A run that is interrupted anywhere ends with the bits of the run that was not."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from fmnist_jax import config as config_lib
from fmnist_jax import train
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import CheckpointError, DivergenceError, WorkdirError
from fmnist_jax.interrupt import Interrupted, Unwatched
from fmnist_jax.optimizers import Optimizer
from fmnist_jax.progress import Console
from fmnist_jax.storage import files, workdir
from fmnist_jax.storage.checkpoint import Checkpoints
from fmnist_jax.train import train_and_evaluate
from fmnist_jax.trainer import Trainer

pytestmark = pytest.mark.usefixtures('no_report')


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory):
  """The uninterrupted run."""
  directory = tmp_path_factory.mktemp('resume') / 'whole'
  train_and_evaluate(runs.full_config(), directory)
  return directory


def test_what_a_program_raises_ends_a_run_only_once_its_checkpoint_is_written(
    tmp_path, monkeypatch):
  write = Checkpoints._write
  def slowly(self, *args):
    time.sleep(1)
    write(self, *args)
  monkeypatch.setattr(Checkpoints, '_write', slowly)
  def on_record(record):
    if record['epoch'] == 2:  # That of the first epoch is being written.
      raise LookupError
  with pytest.raises(LookupError):
    train_and_evaluate(runs.full_config(), tmp_path, on_record=on_record)
  assert Checkpoints(tmp_path / 'checkpoints').latest_good() == 20


def run_interrupted(config, directory, polls):
  """Starts again and again, a signal coming before the poll of that number; counts the starts."""
  starts = 0
  while True:
    starts += 1
    try:
      train_and_evaluate(config, directory, signals=runs.InterruptAt(polls))
      return starts
    except Interrupted:
      assert starts < 100, 'it makes no progress'


@pytest.mark.slow
@pytest.mark.parametrize('polls', [3, 5, 7])
def test_interrupted_again_and_again(whole, tmp_path, polls):
  # An epoch has four dispatches and two evaluation batches: places of every kind are hit.
  assert run_interrupted(runs.full_config(), tmp_path / 'run', polls) > 3
  runs.assert_same_run(whole, tmp_path / 'run')


def test_a_fresh_run_has_the_same_bits(whole, tmp_path):
  train_and_evaluate(runs.full_config(), tmp_path / 'run')
  runs.assert_same_run(whole, tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 4])
def test_ten_runs_have_the_same_bits(tmp_path, devices):
  config = config_lib.validate(runs.full_config(epochs=1, devices=devices))
  config, _, dataset, mesh = train.prepare(config, tmp_path)
  equipment = Equipment(config, dataset, mesh)  # One compilation for all.
  found = []
  for number in range(10):
    with workdir.Workdir(tmp_path / str(number), config) as held:
      run = Trainer(config, held, equipment, Console(), Unwatched())
      run.fit()
      found.append((jax.device_get(run.state), runs.history(held.path)))
  for state, history in found[1:]:
    assert history == found[0][1]
    jax.tree.map(np.testing.assert_array_equal, state, found[0][0])


def test_another_seed_has_other_bits(whole, tmp_path):
  train_and_evaluate(runs.full_config(seed=1), tmp_path / 'run')
  assert runs.history(tmp_path / 'run') != runs.history(whole)


def test_streamed_batches_give_the_bits_of_resident_ones(whole, tmp_path):
  config = config_lib.replace(runs.full_config(), {'data.residency': 'streamed'})
  assert run_interrupted(config, tmp_path / 'run', 9) > 1
  assert runs.history(tmp_path / 'run') == runs.history(whole)
  assert runs.results(tmp_path / 'run') == runs.results(whole)


def test_a_damaged_newest_checkpoint_costs_an_epoch_and_no_bits(whole, tmp_path):
  config = runs.full_config()
  with pytest.raises(Interrupted):
    train_and_evaluate(config, tmp_path / 'run', signals=runs.InterruptAt(18))
  checkpoints = sorted((tmp_path / 'run' / 'checkpoints').glob('[0-9]*'),
                       key=lambda path: int(path.name))
  assert len(checkpoints) > 1
  (checkpoints[-1] / 'progress.json').write_text('{}')
  train_and_evaluate(config, tmp_path / 'run')
  runs.assert_same_run(whole, tmp_path / 'run')


def test_a_kill_before_the_first_checkpoint_leaves_no_record_twice(whole, tmp_path):
  config = runs.full_config()
  with pytest.raises(Interrupted):
    train_and_evaluate(config, tmp_path / 'run', signals=runs.InterruptAt(9))
  assert len(runs.history(tmp_path / 'run')) == 1
  # As if killed after the record was written and before the checkpoint was.
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  train_and_evaluate(config, tmp_path / 'run')
  runs.assert_same_run(whole, tmp_path / 'run')


def test_a_finished_run_is_only_read(whole):
  before = {path: path.stat().st_mtime_ns for path in whole.rglob('*') if path.is_file()
            and path.name != '.lock'}
  found = train_and_evaluate(runs.full_config(), whole)
  assert runs.without_times(found) == runs.results(whole)
  assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_missing_result_is_measured_again(whole, tmp_path):
  config = runs.full_config()
  train_and_evaluate(config, tmp_path / 'run')
  (tmp_path / 'run' / 'results.json').unlink()
  (tmp_path / 'run' / 'predictions.npz').unlink()
  train_and_evaluate(config, tmp_path / 'run')
  runs.assert_same_run(whole, tmp_path / 'run')


def test_another_config_is_refused_and_named(whole):
  with pytest.raises(WorkdirError, match=r'train.epochs: 4 -> 5'):
    train_and_evaluate(runs.full_config(epochs=5), whole)


def test_a_lost_history_is_not_hidden(tmp_path):
  with pytest.raises(Interrupted):
    train_and_evaluate(runs.full_config(), tmp_path / 'run', signals=runs.InterruptAt(12))
  (tmp_path / 'run' / 'metrics.jsonl').unlink()
  with pytest.raises(CheckpointError, match=r'metrics.jsonl has 0 epochs'):
    train_and_evaluate(runs.full_config(), tmp_path / 'run')


def test_early_stopping_stops_after_its_patience(tmp_path):
  config = runs.full_config(epochs=30, early_stopping_patience=2)
  # So small a rate that nothing improves: validation accuracy stays what it was.
  config = config_lib.replace(config, {'optim.learning_rate': 1e-12})
  found = train_and_evaluate(config, tmp_path / 'run')
  assert found['epochs'] == found['best_epoch'] + 2 < 30
  assert len(runs.history(tmp_path / 'run')) == found['epochs']


def test_divergence_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path):
  config = runs.full_config(ema_decay=0.0)
  config.optim = dataclasses.replace(config.optim, learning_rate=1e30, clip_norm=0.0,
                                     schedule=config_lib.Step(epochs=(), warmup_epochs=0.0))
  with pytest.raises(DivergenceError, match=r'not finite at step [1-9]\d* .epoch 1.; nothing had '
                                            'been saved yet'):
    train_and_evaluate(config, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'results.json').exists()
  assert not list((tmp_path / 'run').glob('checkpoints/*'))


def explode_at(monkeypatch, at, peak):
  """From this step on the learning rate is `peak`."""
  original = Optimizer.rate

  def exploding(self, horizon):
    rate = original(self, horizon)
    return lambda step: jnp.where(step < at, rate(step), peak)
  monkeypatch.setattr(Optimizer, 'rate', exploding)


@pytest.mark.parametrize(('at', 'peak', 'polls', 'says'), [
    (25, np.inf, 10**6, r'The loss or its gradient is not finite at step 26 \(epoch 2\); '),
    # The last step of epoch 2: its own loss is finite still, what it makes is not.
    (39, 3e38, 10**6, r'clean_train_loss is not finite after step 40 \(epoch 2\); '),
    # The last step before a signal: its loss is finite still, and its weights are not saved.
    (25, np.inf, 7, r'The weights are not finite after step 26 \(epoch 2\); ')])
def test_divergence_keeps_what_was_good_and_is_told_again(tmp_path, monkeypatch, at, peak, polls,
                                                             says):
  explode_at(monkeypatch, at, peak)
  told = []
  for _ in range(2):
    # An epoch has four dispatches and two evaluation batches: the signal comes after step 26.
    interrupt = runs.InterruptAt(polls if not told else polls - 6)
    with pytest.raises(DivergenceError, match=says) as caught:
      train_and_evaluate(runs.full_config(), tmp_path / 'run', signals=interrupt)
    told.append(str(caught.value))
    assert 'the checkpoint of step 20 is kept' in told[-1] and '\n' not in told[-1]
    checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints')
    assert checkpoints.steps() == [20] == [checkpoints.latest_good()]
    assert [record['epoch'] for record in runs.history(tmp_path / 'run')] == [1]
    assert not (tmp_path / 'run' / 'results.json').exists()
  assert told[0] == told[1]
  state, _ = runs.newest_checkpoint(tmp_path / 'run')
  assert all(np.isfinite(leaf).all() for leaf in dataclasses.asdict(state)['params'].values()
             for leaf in leaf.values())


# Called for the time of day alone; durations are measured by another clock.
JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long jump(void) {  /* seconds, -12 to 12 hours, another one at each call */
  static unsigned seed = 1;
  return (long)(rand_r(&seed) % 86400) - 43200;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*original)(clockid_t, struct timespec *);
  if (!original) original = dlsym(RTLD_NEXT, "clock_gettime");
  int result = original(clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += jump();
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  static int (*original)(struct timeval *, void *);
  if (!original) original = dlsym(RTLD_NEXT, "gettimeofday");
  int result = original(now, zone);
  now->tv_sec += jump();
  return result;
}

time_t time(time_t *out) {
  struct timeval now;
  gettimeofday(&now, 0);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('cc') is None, reason='there is no C compiler')
def test_a_clock_that_jumps_by_hours_changes_no_bit_and_no_duration(whole, tmp_path):
  (tmp_path / 'clock.c').write_text(JUMPING_CLOCK)
  library = tmp_path / 'clock.so'
  subprocess.run(['cc', '-shared', '-fPIC', '-o', library, tmp_path / 'clock.c', '-ldl'],
                 check=True)
  tests = pathlib.Path(__file__).parent
  env = os.environ | {'LD_PRELOAD': str(library), 'PYTHONPATH': f'{tests.parent}:{tests}'}
  code = ('import sys, time\n'
          'times = [time.time() for _ in range(100)]\n'
          'assert max(times) - min(times) > 3600 and times != sorted(times)\n'
          'import runs\n'
          'from fmnist_jax.train import train_and_evaluate\n'
          'train_and_evaluate(runs.full_config(checkpoint_every_seconds=1000), sys.argv[1])\n')
  process = subprocess.run([sys.executable, '-c', code, tmp_path / 'run'], env=env, text=True,
                           capture_output=True)
  assert process.returncode == 0, process.stderr
  runs.assert_same_run(whole, tmp_path / 'run')
  records = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  seconds = [0.0, *(record['seconds'] for record in records)]
  assert seconds == sorted(seconds) and seconds[-1] < 600
  assert all(record['images_per_second'] > 0 for record in records)
  spent = files.read_json(tmp_path / 'run' / 'results.json')['seconds']
  assert all(0 <= value < 600 for value in spent.values())


@pytest.mark.parametrize(('change', 'says'), [
    ({'train_loss': 'high'}, 'line 1: train_loss is no number'),
    ({'epoch': 2}, 'line 1: epoch 1 should be there, not 2'),
    ({'clean_train_loss': None}, 'line 1: clean_train_loss is no number')])
def test_a_history_that_was_tampered_with_is_not_gone_on_with(tmp_path, change, says):
  with pytest.raises(Interrupted):
    train_and_evaluate(runs.full_config(), tmp_path / 'run', signals=runs.InterruptAt(9))
  path = tmp_path / 'run' / 'metrics.jsonl'
  record, = workdir.History(path).read()
  path.unlink()
  workdir.History(path).append(record | change)
  with pytest.raises(CheckpointError, match=says):
    train_and_evaluate(runs.full_config(), tmp_path / 'run')
