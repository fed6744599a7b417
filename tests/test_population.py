"""Populations: each member is the run that its seed is alone, whichever way they are trained."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import scipy.stats
import sklearn.metrics

import fmnist_jax
from fmnist_jax import command as command_lib
from fmnist_jax import config as config_lib
from fmnist_jax import sharding, step, trainer
from fmnist_jax.errors import ConfigError, DivergenceError, WorkdirError
from fmnist_jax.interrupt import Interrupted
from fmnist_jax.population import __main__ as population
from fmnist_jax.population import independent as members
from fmnist_jax.population import stacked
from fmnist_jax.population.plan import plan
from fmnist_jax.population.train import train_population
from fmnist_jax.programs import Programs, hyper_arrays
from fmnist_jax.storage import workdir
from fmnist_jax.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures('no_report')

VARY = {'model.dropout': [0.0, 0.3]}
NAMES = ['seed-3_model.dropout-0.0', 'seed-4_model.dropout-0.0',
         'seed-3_model.dropout-0.3', 'seed-4_model.dropout-0.3']


def config(**train):
  return runs.full_config(**{'epochs': 3, 'seed': 3, 'devices': 0, **train})


def quick_config(**train):
  """All that the vectorised loop has to keep, quick to compile."""
  full = config(precision='float32', **train)
  full.data.augment = (config_lib.Flip(0.5),)
  full.model = config_lib.MLP(hidden=(16,), dropout=0.2)
  return full


@pytest.fixture(scope='module', name='independent')
def _independent(tmp_path_factory):
  directory = tmp_path_factory.mktemp('population') / 'independent'
  return directory, train_population(quick_config(), directory, seeds=2, vary=VARY,
                                     mode='independent')


@pytest.fixture(scope='module', name='vectorized')
def _vectorized(tmp_path_factory):
  directory = tmp_path_factory.mktemp('population') / 'vectorized'
  return directory, train_population(quick_config(), directory, seeds=3, mode='vectorized')


def test_members_are_all_combinations_and_named_by_them():
  planned = plan(quick_config(), 2, {**VARY, 'optim.learning_rate': [1e-5, 2]})
  assert len(planned) == len({member.name for member in planned}) == 8
  assert planned[1].name == 'seed-4_model.dropout-0.0_optim.learning_rate-1e-05'
  assert planned[1].config.train.seed == 4
  assert planned[1].config.model.dropout == 0.0
  assert planned[1].config.optim.learning_rate == 1e-5
  rest = {'train.seed': 3, 'model.dropout': 0.2, 'optim.learning_rate': 0.05}
  for member in planned:
    assert config_lib.replace(member.config, rest) == config_lib.validate(quick_config())


@pytest.mark.parametrize(('seeds', 'vary', 'says'), [
    (0, {}, r'--seeds is 0; it must be at least 1'),
    (2, {'optim.learning_rat': [1.0]}, r"did you mean 'optim.learning_rate'"),
    (2, {'train.epochs': [1.0]}, r'train.epochs cannot be varied .* optim.momentum'),
    (2, {'model.dropout': [0.1]}, r'vary model.dropout.0 or model.dropout.1'),
    (2, {'optim.momentum': [0.5, 1.0]}, r'optim.momentum is 1.0; it must be .*below 1'),
    (2, {'optim.momentum': [0.5, 0.5]}, r'lists a value twice'),
    (2, {'optim.momentum': []}, r'has no values'),
])
def test_what_cannot_be_planned_says_why(seeds, vary, says):
  with pytest.raises(ConfigError, match=says):
    plan(config(), seeds, vary)


def test_the_order_of_what_is_varied_means_nothing(tmp_path):
  vary = {'optim.momentum': [0.5, 0.9], 'model.dropout': [0.1]}
  own = quick_config(epochs=1)
  found = train_population(own, tmp_path / 'run', seeds=1, vary=vary)
  again = train_population(own, tmp_path / 'run', seeds=1, vary=dict(reversed(vary.items())))
  assert found == again and [group['members'] for group in found['groups']] == [
      [f'seed-3_model.dropout-0.1_optim.momentum-{value}'] for value in (0.5, 0.9)]


def test_vary_is_parsed():
  assert population.parse_vary(['optim.learning_rate=1e-3,3e-3', 'model.dropout.0=0']) == {
      'optim.learning_rate': [1e-3, 3e-3], 'model.dropout.0': [0.0]}
  for arguments, says in ((['a'], 'needs values'), (['a=1', 'a=2'], 'given twice'),
                          (['a=x'], 'must be a number')):
    with pytest.raises(ConfigError, match=says):
      population.parse_vary(arguments)


@pytest.mark.parametrize('name', [NAMES[1], NAMES[2]])
def test_one_after_another_has_the_bits_of_the_run_alone(independent, tmp_path, name):
  own = {member.name: member.config for member in plan(quick_config(), 2, VARY)}[name]
  train_and_evaluate(own, tmp_path / 'alone')
  member = independent[0] / 'members' / name
  runs.assert_same_run(tmp_path / 'alone', member)
  assert workdir.read_config(member) == workdir.read_config(tmp_path / 'alone')


@pytest.mark.slow
def test_members_in_threads_have_the_bits_of_the_run_alone(tmp_path):
  one = config(devices=1, epochs=2)
  train_and_evaluate(one, tmp_path / 'alone')
  how = {'seeds': 3, 'mode': 'independent', 'at_once': 3}
  train_population(one, tmp_path / 'run', **how)
  runs.assert_same_run(tmp_path / 'alone', tmp_path / 'run' / 'members' / 'seed-3')
  assert run_interrupted(tmp_path / 'again', 11, one, **how) > 2
  assert_same_population(tmp_path / 'run', tmp_path / 'again')


def test_a_member_that_fails_stops_the_others_and_is_told(tmp_path, monkeypatch):
  finish = trainer.Trainer.finish
  def failing(self, **how):
    if self.config.train.seed == 4:
      raise WorkdirError('The disk is full.')
    return finish(self, **how)
  monkeypatch.setattr(trainer.Trainer, 'finish', failing)
  how = {'seeds': 3, 'mode': 'independent', 'at_once': 2}
  with pytest.raises(WorkdirError, match=r'The disk is full'):
    train_population(quick_config(devices=1, epochs=1), tmp_path / 'run', **how)
  monkeypatch.undo()
  found = train_population(quick_config(devices=1, epochs=1), tmp_path / 'run', **how)
  assert found['groups'][0]['seeds'] == [3, 4, 5]


def test_members_differ_where_they_should(independent):
  histories = [runs.history(independent[0] / 'members' / name) for name in NAMES]
  assert all(a != b for i, a in enumerate(histories) for b in histories[:i])


def test_members_that_agree_in_features_are_compiled_once(tmp_path, monkeypatch):
  traced = []
  train = Programs.train
  def counted(self, *args):
    traced.append(1)
    return train(self, *args)
  monkeypatch.setattr(Programs, 'train', counted)
  train_population(quick_config(epochs=1), tmp_path / 'run', seeds=3, mode='independent',
                   vary={'optim.learning_rate': [0.01, 0.02]})
  assert len(traced) == 1


def equal_states(own_config, seeds):
  """Programs and states of runs alone, and of the same runs stacked."""
  mesh = sharding.make_mesh(1)
  alone = Programs(own_config, mesh, (28, 28, 1), 10, 60)
  apart = sharding.make_member_mesh(len(seeds))
  over = stacked.MemberPrograms(Programs(own_config, apart, (28, 28, 1), 10, 60), len(seeds))
  hyper = hyper_arrays(own_config)
  states = [alone.init(np.int32(seed), hyper) for seed in seeds]
  split = sharding.by_member(apart)
  stack = lambda trees: sharding.put(
      jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(trees)), split)
  return alone, over, states, stack, hyper


def test_a_vectorised_step_agrees_with_the_step_alone():
  own_config = config_lib.replace(config(devices=1), {
      'data.augment': (config_lib.Flip(), config_lib.Shift(2.0), config_lib.RandomErasing()),
      'train.operations': 'native', 'train.precision': 'float32', 'data.residency': 'resident'})
  seeds = [5, 6, 7, 8]
  alone, over, states, stack, _ = equal_states(own_config, seeds)
  # What may be varied is: of the optimiser, the loss, the augmentation, the dropout.
  hypers = [hyper_arrays(config_lib.replace(own_config, {
      'optim.learning_rate': 0.01 * k, 'optim.weight_decay': 0.1 * k, 'optim.momentum': 0.2 * k,
      'loss.label_smoothing': 0.05 * k, 'data.augment.0.probability': 0.2 * k,
      'data.augment.1.pixels': 1.0 * k, 'optim.schedule.rise': 0.1 * k,
      'model.dropout': (0.1 * k, 0.2 * k)})) for k in (1, 2, 3, 4)]
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (60, 28, 28, 1), np.uint8)
  labels = rng.integers(0, 10, 60).astype(np.int32)
  sums = step.Sums.zero()
  expected, orders = [], []
  for state, hyper in zip(states, hypers):
    order = alone.order(state.key, np.int32(0))
    orders.append(order)
    args = (state, sums, hyper, images, labels, order, np.int32(0), np.int32(1))
    expected.append(jax.jit(alone.train)(*args))
  whole = sharding.replicated(over.alone.mesh)
  put = lambda value: sharding.put(value, whole)
  together = stack(states)
  order = over.call(over.order, together.key, over.epochs(0))
  np.testing.assert_array_equal(order, np.stack(orders))
  state, found = over.call(
      over.train, together, stack([sums] * 4), stack(hypers), put(images), put(labels),
      order, put(np.int32(0)), put(np.int32(1)),
      sharding.put(np.ones(4, bool), sharding.by_member(over.alone.mesh)))
  assert len(state.step.sharding.device_set) == 4, 'members are divided among the devices'
  for k, (one, sums_alone) in enumerate(expected):
    assert int(sums_alone.count) == 20
    jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(
        np.asarray(a)[k].astype(np.float64), np.asarray(b).astype(np.float64), atol=1e-5,
        rtol=1e-5), (state, found), (one, sums_alone))


def test_a_stopped_member_stays_as_it_is():
  own_config = config_lib.replace(quick_config(devices=1), {
      'train.operations': 'native', 'train.precision': 'float32', 'data.residency': 'resident'})
  _, over, states, stack, hyper = equal_states(own_config, [1, 2])
  put = lambda value: sharding.put(value, sharding.replicated(over.alone.mesh))
  together = stack(states)
  before = jax.device_get(together)
  order = over.call(over.order, together.key, over.epochs(0))
  active = sharding.put(np.array([False, True]), sharding.by_member(over.alone.mesh))
  state, sums = over.call(
      over.train, together, stack([step.Sums.zero()] * 2), stack([hyper] * 2),
      put(np.full((60, 28, 28, 1), 7, np.uint8)), put(np.zeros(60, np.int32)), order,
      put(np.int32(0)), put(np.int32(2)), active)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a)[0], b[0]), state, before)
  assert state.step.tolist() == [0, 2] and sums.count.tolist() == [0, 40]
  changed = jax.tree.map(lambda a, b: not np.array_equal(np.asarray(a)[1], b[1]), state.params,
                         before.params)
  assert all(jax.tree.leaves(changed))


def test_vectorised_members_are_runs_of_their_own(vectorized):
  directory, found = vectorized
  assert not (directory / 'groups' / '0').exists()
  for seed in (3, 4, 5):
    member = directory / 'members' / f'seed-{seed}'
    run = fmnist_jax.load_run(member)
    assert run.config.train.seed == seed == run.results['seed']
    assert run.results['epochs'] == len(run.history) == run.progress['epoch']
    assert run.step == run.results['best_epoch'] * 20 == run.state.step
    best = max(run.history, key=lambda record: (record['validation_accuracy'], -record['epoch']))
    assert run.results['best_epoch'] == best['epoch']
    again = fmnist_jax.evaluate_run(member)
    assert again['loss'] == pytest.approx(run.results['loss'], abs=1e-5)
    assert again['examples'] == 90
    validation = fmnist_jax.evaluate_run(member, 'validation')
    assert validation['accuracy'] == pytest.approx(best['validation_accuracy'], abs=1e-9)
    latest = fmnist_jax.load_run(member, 'latest')
    assert latest.step == run.results['epochs'] * 20
  assert found['mode'] == 'vectorized'


def test_vectorised_members_learn_what_they_would_alone(vectorized, tmp_path):
  train_and_evaluate(quick_config(seed=4), tmp_path / 'alone')
  alone = runs.history(tmp_path / 'alone')[0]
  member = runs.history(vectorized[0] / 'members' / 'seed-4')[0]
  assert alone['step'] == member['step'] and alone['learning_rate'] == member['learning_rate']
  # 20 steps of rounding apart.
  assert member['train_loss'] == pytest.approx(alone['train_loss'], abs=2e-3)
  assert member['validation_loss'] == pytest.approx(alone['validation_loss'], abs=2e-2)


def test_population_json_against_numpy_and_scipy(independent):
  directory, found = independent
  assert found == json.loads((directory / 'population.json').read_text())
  assert [group['settings'] for group in found['groups']] == [
      {'model.dropout': 0.0}, {'model.dropout': 0.3}]
  group = found['groups'][1]
  assert group['members'] == NAMES[2:] and group['seeds'] == [3, 4]
  results = [json.loads((directory / 'members' / name / 'results.json').read_text())
             for name in NAMES[2:]]
  predictions = [np.load(directory / 'members' / name / 'predictions.npz') for name in NAMES[2:]]
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
  for name in ('accuracy', 'loss', 'macro_f1'):
    values = [result[name] for result in results]
    stats = group[name]
    close(stats['mean'], np.mean(values))
    close(stats['std'], np.std(values, ddof=1))
    close((stats['min'], stats['max']), (min(values), max(values)))
    close((stats['low'], stats['high']), scipy.stats.t.interval(
        0.95, 1, loc=np.mean(values), scale=scipy.stats.sem(values)))
  shirts = [result['per_class'][6]['f1'] for result in results]
  close(group['f1_of_class']['Shirt']['mean'], np.mean(shirts))
  mean = (predictions[0]['probabilities'].astype(float)
          + predictions[1]['probabilities'].astype(float)) / 2
  labels = predictions[0]['labels']
  close(group['ensemble']['accuracy'],
        sklearn.metrics.accuracy_score(labels, mean.argmax(1)))
  gaps = []
  for name, result in zip(NAMES[2:], results):
    record = runs.history(directory / 'members' / name)[result['best_epoch'] - 1]
    gaps.append(record['clean_train_accuracy'] - record['validation_accuracy'])
  close(group['train_validation_gap']['mean'], np.mean(gaps))
  assert (directory / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def test_a_finished_population_is_only_read(independent):
  directory, found = independent
  times = lambda: {path: path.stat().st_mtime_ns for path in directory.glob('members/**/*')
                   if path.is_file()}
  before = times()
  assert train_population(quick_config(), directory, seeds=2, vary=VARY) == found
  assert times() == before


def run_interrupted(directory, polls, own, **how):
  starts = 0
  while True:
    starts += 1
    try:
      train_population(own, directory, signals=runs.InterruptAt(polls), **how)
      return starts
    except Interrupted:
      assert starts < 100, 'it makes no progress'


def assert_same_population(a, b):
  names = sorted(path.name for path in (a / 'members').iterdir())
  assert names == sorted(path.name for path in (b / 'members').iterdir()) and names
  for name in names:
    runs.assert_same_run(a / 'members' / name, b / 'members' / name)
  left, right = ({key: value for key, value in json.loads(
      (path / 'population.json').read_text()).items() if key != 'seconds'} for path in (a, b))
  for found in (left, right):
    for group in found['groups']:
      group.pop('seconds')
  assert left == right


@pytest.mark.parametrize('polls', [5, 13])
def test_a_vectorised_population_resumes_with_the_same_bits(vectorized, tmp_path, polls):
  assert run_interrupted(tmp_path / 'run', polls, quick_config(), seeds=3, mode='vectorized') > 1
  assert_same_population(vectorized[0], tmp_path / 'run')


def test_a_independent_population_resumes_with_the_same_bits(independent, tmp_path):
  how = {'seeds': 2, 'vary': VARY, 'mode': 'independent'}
  assert run_interrupted(tmp_path / 'run', 17, quick_config(), **how) > 2
  assert_same_population(independent[0], tmp_path / 'run')


def test_groups_and_lots_of_a_vectorised_population(vectorized, tmp_path):
  found = train_population(quick_config(epochs=1), tmp_path / 'run', seeds=3,
                           vary=VARY, mode='vectorized', at_once=2)
  assert json.loads((tmp_path / 'run' / 'groups.json').read_text()) == [2, 2]
  assert [len(group['members']) for group in found['groups']] == [3, 3]
  losses = set()
  for group in found['groups']:
    for name in group['members']:
      record, = runs.history(tmp_path / 'run' / 'members' / name)
      assert record['step'] == 20
      losses.add(record['train_loss'])
  assert len(losses) == 6


def test_members_stop_early_each_for_itself(tmp_path):
  # The second rate is so small that nothing improves; the first learns.
  found = train_population(
      quick_config(epochs=12, early_stopping_patience=2), tmp_path / 'run', seeds=1,
      vary={'optim.learning_rate': [0.05, 1e-12]}, mode='vectorized')
  learning, still = found['groups']
  assert still['epochs'][0] == still['best_epochs'][0] + 2 < learning['epochs'][0]
  names = [group['members'][0] for group in found['groups']]
  histories = [runs.history(tmp_path / 'run' / 'members' / name) for name in names]
  assert [len(history) for history in histories] == [learning['epochs'][0], still['epochs'][0]]
  latest = fmnist_jax.load_run(tmp_path / 'run' / 'members' / names[1], 'latest')
  assert latest.step == still['epochs'][0] * 20 == latest.state.step


@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_a_member_that_diverges_takes_no_other_with_it(tmp_path, mode):
  own = quick_config(epochs=2, ema_decay=0.0)
  own.optim = config_lib.Adam(schedule=config_lib.Constant())
  vary = {'optim.learning_rate': [1e-3, 1e30]}
  found = train_population(own, tmp_path / 'run', seeds=2, vary=vary, mode=mode)
  assert found['diverged'] == [f'seed-{seed}_optim.learning_rate-1e+30' for seed in (3, 4)]
  group, = found['groups']
  assert group['settings'] == {'optim.learning_rate': 1e-3} and group['epochs'] == [2, 2]
  lost = tmp_path / 'run' / 'members' / found['diverged'][0]
  assert 'not finite at step' in json.loads((lost / 'diverged.json').read_text())['message']
  assert not (lost / 'results.json').exists()
  assert train_population(own, tmp_path / 'run', seeds=2, vary=vary) == found


def test_a_population_of_which_none_is_left_says_so(tmp_path):
  own = quick_config(epochs=1, ema_decay=0.0)
  own.optim = config_lib.Adam(learning_rate=1e30, schedule=config_lib.Constant())
  with pytest.raises(DivergenceError, match=r'Not one of 2 members .* not finite at step'):
    train_population(own, tmp_path / 'run', seeds=2, mode='vectorized')


def test_directories_of_others_are_refused(independent, tmp_path):
  directory, _ = independent
  with pytest.raises(WorkdirError, match=r'another population \(seeds: 2 -> 3'):
    train_population(quick_config(), directory, seeds=3, vary=VARY)
  with pytest.raises(WorkdirError, match=r'mode: independent -> vectorized'):
    train_population(quick_config(), directory, seeds=2, vary=VARY, mode='vectorized')
  with pytest.raises(WorkdirError, match=r'train.epochs: 3 -> 5'):
    train_population(quick_config(epochs=5), directory, seeds=2, vary=VARY)
  with pytest.raises(ConfigError, match=r'--mode is \'fast\''):
    train_population(quick_config(), directory, seeds=2, vary=VARY, mode='fast')
  with pytest.raises(WorkdirError, match=r'holds a population, not a single run'):
    train_and_evaluate(quick_config(), directory)
  train_and_evaluate(quick_config(epochs=1), tmp_path / 'run')
  with pytest.raises(WorkdirError, match=r'holds a single run'):
    train_population(quick_config(epochs=1), tmp_path / 'run', seeds=2)


def test_streamed_data_is_refused(tmp_path):
  own = config_lib.replace(config(), {'data.residency': 'streamed'})
  with pytest.raises(ConfigError, match=r'set data.residency=resident'):
    train_population(own, tmp_path / 'run', seeds=2)
  assert not pathlib.Path(tmp_path / 'run').exists()


def test_groups_are_equal_and_fit_into_memory(monkeypatch):
  own_config = config_lib.replace(config(), {
      'train.operations': 'native', 'train.precision': 'float32'})
  mesh = sharding.make_member_mesh(4)
  programs = Programs(own_config, mesh, (28, 28, 1), 10, 60)
  needed = members.bytes_per_member(programs, hyper_arrays(own_config))
  state = jax.eval_shape(programs.init, np.int32(0), hyper_arrays(own_config))
  assert needed > 4 * sum(4 * leaf.size for leaf in jax.tree.leaves(state))

  class Equipment:
    pass
  equipment = Equipment()
  equipment.programs, equipment.mesh = programs, mesh
  monkeypatch.setattr(members, 'memory', lambda _: 3 * needed)
  assert [members.group_size(equipment, count, 0) for count in (2, 3, 4, 7)] == [2, 3, 2, 3]
  assert members.group_size(equipment, 7, 6) == 4
  monkeypatch.setattr(members, 'memory', lambda _: 1)
  assert members.group_size(equipment, 5, 0) == 1


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, mode):
  root = pathlib.Path(__file__).parents[1]
  environment = {**os.environ, 'PYTHONPATH': str(root), 'XLA_FLAGS': ''}
  command = [sys.executable, '-m', 'fmnist_jax.population', '--config=smoke', '--seeds=2',
             '--workdir=run', f'--mode={mode}', '--vary=optim.learning_rate=1e-3,3e-3',
             '--config.train.epochs=20', '--config.train.early_stopping_patience=0',
             '--config.data.train_examples=700', '--config.data.test_examples=60']
  start = lambda: subprocess.Popen(command, cwd=tmp_path, env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  process = start()
  while 'epoch  2/20' not in process.stdout.readline():
    assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 143 and 'Interrupted by SIGTERM.' in err
  assert not (tmp_path / 'run' / 'population.json').exists()
  process = start()
  out, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, '')
  assert out.count('/20  ') < {'independent': 80, 'vectorized': 20}[mode], 'it goes on'
  assert 'optim.learning_rate=0.003' in out and 'ensemble' in out
  for name in ('seed-0_optim.learning_rate-0.001', 'seed-1_optim.learning_rate-0.003'):
    history = runs.history(tmp_path / 'run' / 'members' / name)
    assert [record['epoch'] for record in history] == list(range(1, 21))


@pytest.mark.parametrize(('arguments', 'says'), [
    (['--seeds=0'], 'error: --seeds is 0; it must be at least 1.'),
    (['--seeds=' + '9' * 30], f'error: --seeds and --vary make {10**30 - 1:,} members; there can'),
    (['--sedes=2'], 'error: There is no option --sedes=2; did you mean --seeds?'),
    (['--seeds=two'], "error: --seeds is 'two'; it must be a whole number."),
    (['--config=nowhere'], 'error: There is no config file nowhere'),
    (['--config.train.epochs=0'], 'error: train.epochs is 0; it must be at least 1.'),
])
def test_a_mistake_is_told_in_one_sentence(monkeypatch, capsys, tmp_path, arguments, says):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'argv', ['population', '--config=smoke', *arguments])
  with pytest.raises(SystemExit) as left:
    command_lib.run(population.main)
  assert left.value.code == 1
  err = capsys.readouterr().err
  assert err.startswith(says) and err.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_members_whose_last_step_made_their_weights_infinite_are_given_up(tmp_path, monkeypatch):
  original = config_lib.Optimizer.rate
  # An epoch has 20 steps: their losses are all finite.
  monkeypatch.setattr(config_lib.Optimizer, 'rate', lambda *args: lambda step: jnp.where(
      step < 19, original(*args)(step), jnp.inf))
  for mode, says in (('vectorized', 'at step 20'), ('independent', 'after step 20')):
    with pytest.raises(DivergenceError, match=f'Not one of 2 members .* not finite {says}'):
      train_population(quick_config(epochs=1), tmp_path / mode, seeds=2, mode=mode)


@pytest.mark.parametrize(('name', 'content'), [
    ('plan.json', '{}'), ('plan.json', '{"seeds": "2", "vary": {}, "mode": []}')])
def test_a_plan_of_another_form_is_refused(independent, tmp_path, name, content):
  shutil.copytree(independent[0], tmp_path / 'run')
  (tmp_path / 'run' / name).write_text(content)
  with pytest.raises(WorkdirError, match=rf'{name} is damaged'):
    train_population(quick_config(), tmp_path / 'run', seeds=2, vary=VARY)
