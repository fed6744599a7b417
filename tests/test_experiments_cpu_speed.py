"""What experiments/cpu_speed makes of measurements: ratios, targets, intervals, arithmetic."""

import importlib
import json
import pathlib
import sys
import types

import numpy as np
import pytest
from scipy import stats

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'experiments' / 'cpu_speed'
NAMES = ('plan', 'summary', 'targets', 'limits', 'tables', 'environments', 'processes')


@pytest.fixture(scope='module')
def experiment():
  """The experiment's modules, imported as its command imports them."""
  sys.path.insert(0, str(FOLDER))
  try:
    yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
  finally:
    sys.path.remove(str(FOLDER))
    for name in NAMES:
      sys.modules.pop(name, None)


def _speed(mode, seconds, rate, *, model='cnn', batch=128, number=0, peak=500.0):
  return {'task': 'speed', 'mode': mode, 'model': model, 'batch': batch, 'round': number,
          'seed': number, 'train_examples': 55_000, 'start': None,
          'found': {'epoch_seconds': seconds, 'first_seconds': 3.0, 'peak_mb': peak,
                    'accuracy': 0.9, 'versions': {},
                    'images_per_second': {'125': rate / 2, '500': rate}}}


def test_ratios_are_to_the_best_mode_of_the_best_peer(experiment):
  records = [_speed('ours', [4.0], 30_000.0), _speed('ours', [5.0, 3.0], 30_000.0, number=1),
             _speed('keras', [8.0], 20_000.0), _speed('torch', [9.0], 24_000.0),
             _speed('torch_bf16', [6.0], 10_000.0), _speed('flax', [40.0], 5_000.0),
             {**_speed('keras_jit', [1.0], 1.0), 'found': None, 'error': 'failed'}]
  del records[-1]['found']
  found = experiment.summary.speed(records)['cnn/128']
  assert found['best_peer_epoch'] == 'torch_bf16'
  assert found['best_peer_inference'] == 'torch'
  assert found['modes']['ours']['epoch_seconds'] == {
      'median': 4.0, 'min': 3.0, 'max': 5.0, 'count': 3}
  assert found['modes']['ours']['images_per_second']['batch'] == 500
  assert found['times_faster']['torch_bf16'] == pytest.approx(1.5)
  assert found['times_faster_at_least']['torch_bf16'] == pytest.approx(6 / 5)
  assert found['times_faster_inference']['torch'] == pytest.approx(1.25)
  assert 'keras_jit' not in found['modes']

  rows = {row['what']: row for row in experiment.targets.targets(
      {'speed': {'cnn/128': found}, 'time_to': {}, 'parity': {}})}
  epoch = rows['`cnn` epoch against the best mode of the best peer']
  assert (epoch['reached'], epoch['verdict']) == (pytest.approx(1.5), 'missed')
  assert rows['`cnn` epoch against plain Flax']['reached'] == pytest.approx(10)
  assert rows['inference, images a second, `cnn`, best peer']['verdict'] == 'at least'
  assert rows['`mlp` epoch against the best mode of the best peer']['verdict'] == 'not measured'


def test_targets_tell_missed_from_reached(experiment):
  verdict = lambda value: experiment.targets._verdict(value, 1.2, 2.0)
  assert [verdict(v) for v in (None, 1.19, 1.2, 1.99, 2.0)] == [
      'not measured', 'missed', 'at least', 'at least', 'aim']


def test_float32_is_compared_with_float32(experiment):
  records = [_speed('ours', [4.0], 1.0), _speed('ours_float32', [6.0], 1.0),
             _speed('torch_bf16', [5.0], 1.0), _speed('torch_last', [9.0], 1.0),
             _speed('keras', [7.5], 1.0)]
  found = {'speed': experiment.summary.speed(records), 'time_to': {}, 'parity': {}}
  rows = {row['what']: row for row in experiment.targets.targets(found)}
  row = rows['`cnn` epoch in float32 against the best float32 mode']
  assert (row['reached'], row['verdict']) == (pytest.approx(1.25), 'at least')


def test_memory_is_compared_with_the_leanest_mode(experiment):
  records = [_speed('ours', [4.0], 1.0, peak=500.0), _speed('keras', [8.0], 1.0, peak=800.0),
             _speed('keras_jit', [9.0], 1.0, peak=400.0)]
  found = {'speed': experiment.summary.speed(records), 'time_to': {}, 'parity': {}}
  rows = {row['what']: row for row in experiment.targets.targets(found)}
  assert rows["peak memory, `cnn`: Keras's over ours"]['reached'] == pytest.approx(0.8)
  assert rows["peak memory, `cnn`: Keras's over ours"]['verdict'] == 'missed'


def _curve(mode, start, curve, number=0):
  return {'task': 'time_to', 'mode': mode, 'model': 'cnn', 'batch': 128, 'round': number,
          'start': start, 'found': {'curve': curve, 'peak_mb': 1000.0}}


def test_time_to_accuracy_counts_the_first_time_in_every_round(experiment):
  records = [_curve('ours', 'warm', [(5, 0.88), (10, 0.90), (15, 0.89), (20, 0.92)]),
             _curve('ours', 'warm', [(6, 0.901), (12, 0.91)], 1),
             _curve('keras', '-', [(16, 0.90), (30, 0.915)]),
             _curve('torch_bf16', '-', [(40, 0.95)])]
  found = experiment.summary.time_to(records)
  assert found['ours, warm']['0.9']['median'] == 8
  assert found['ours, warm']['0.915'] is None  # Not in both rounds.
  rows = {row['what']: row for row in experiment.targets.targets(
      {'speed': {}, 'time_to': found, 'parity': {}})}
  first = rows['process start to 90 % validation accuracy, `cnn`, warm cache']
  assert (first['reached'], first['verdict']) == (2.0, 'missed')
  assert rows['process start to 91.5 % validation accuracy, `cnn`, warm cache'][
      'verdict'] == 'not measured'


def test_intervals_agree_with_scipy(experiment):
  random = np.random.default_rng(0)
  ours, theirs = random.normal(0.91, 0.002, 8), random.normal(0.912, 0.004, 7)
  gap = experiment.summary.difference(ours.tolist(), theirs.tolist())
  want = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
  assert (gap['mean'] - gap['half_width'], gap['mean'] + gap['half_width']) == pytest.approx(
      (want.low, want.high))
  alone = experiment.summary.interval(ours.tolist())
  want = stats.t.interval(0.95, 7, ours.mean(), stats.sem(ours))
  assert (alone['mean'] - alone['half_width'], alone['mean'] + alone['half_width']
          ) == pytest.approx(want)


def test_parity_fails_only_beyond_chance(experiment):
  def runs(mode, values):
    return [{'task': 'parity', 'mode': mode, 'model': 'cnn', 'seed': seed,
             'found': {'validation': value, 'test': value}} for seed, value in enumerate(values)]
  records = (runs('ours', [0.910, 0.912, 0.911]) + runs('keras', [0.911, 0.913, 0.912])
             + runs('torch_bf16', [0.920, 0.922, 0.921]))
  found = experiment.summary.parity(records)
  assert found['cnn']['keras']['test_not_below']
  assert not found['cnn']['torch_bf16']['test_not_below']
  assert found['cnn']['torch_bf16']['test_difference']['mean'] == pytest.approx(-0.01)


def test_arithmetic_of_a_step(experiment):
  # By hand: 26 * 26 pixels * 9 * 32, 11 * 11 * 9 * 32 * 64, 1600 * 128, 1280 multiplications.
  first, rest = 194_688, 2_230_272 + 204_800 + 1_280
  assert experiment.limits.step_gflop('cnn', 128) == pytest.approx(
      128 * 2e-9 * (2 * first + 3 * rest))
  found = experiment.limits.limits(
      {'a': {'float32': 100.0, 'bfloat16': 300.0}, 'b': {'float32': 200.0, 'bfloat16': 150.0}},
      {'cnn/128': {'ours': 10.0}}, 55_000)['settings']['cnn/128']
  assert found['floor_seconds']['float32'] == pytest.approx(found['gflop_a_step'] * 429 / 200)
  assert found['share_of_ours']['bfloat16'] == pytest.approx(found['gflop_a_step'] * 429 / 3000)


def test_later_rounds_measure_contenders_only(experiment):
  size = experiment.plan.Size(settings=(('mlp', 128), ('cnn', 128), ('cnn', 32)), rounds=2)
  # 'ours' stays although another of our modes was faster: it may have had a bad moment.
  medians = {'mlp': {'ours': 0.2, 'ours_float32': 0.1, 'flax': 0.3, 'keras': 1.0,
                     'keras_jit': 1.4, 'torch': 0.4, 'torch_compile': 0.7},
             'cnn': {'ours': 4.0, 'flax': 40.0, 'keras': 8.0, 'keras_jit': 20.0, 'torch': 9.0,
                     'torch_bf16': 6.1}}
  specs = list(experiment.plan.speed(size, lambda model, batch: medians[model]))
  modes = lambda number, model, batch=128: {
      s['mode'] for s in specs if (s['round'], s['model'], s['batch']) == (number, model, batch)}
  assert modes(0, 'cnn') == set(experiment.plan.MODES) - {'torch_mlp_bf16'}
  assert modes(1, 'mlp') == {'ours', 'ours_float32', 'keras', 'torch'}
  # Of each precision the best: PyTorch's bfloat16 and its float32.
  assert modes(1, 'cnn') == {'ours', 'flax', 'keras', 'torch', 'torch_bf16'}
  assert modes(0, 'cnn', 32) == {'ours', 'keras', 'torch', 'torch_bf16'}
  assert len({experiment.plan.key(s) for s in specs}) == len(specs)
  assert all(s['examples'] == 54_912 for s in specs if s['batch'] == 128)


def test_log_continues_and_retries(experiment, tmp_path):
  path = tmp_path / 'measurements.jsonl'
  spec = {'task': 'speed', 'mode': 'ours', 'model': 'mlp', 'batch': 128, 'round': 0, 'seed': 0,
          'train_examples': 10}
  log = experiment.processes.Log(path)
  log.append({**spec, 'error': 'killed'})
  assert not log.done(spec)
  log.append({**spec, 'found': {'epoch_seconds': [1.0]}})
  with path.open('a') as file:
    file.write('{"task": "spe')
  again = experiment.processes.Log(path)
  assert again.done(spec)
  assert not again.done({**spec, 'round': 1})
  again.append({**spec, 'round': 1, 'found': {'epoch_seconds': [1.0]}})
  assert experiment.processes.Log(path).done({**spec, 'round': 1})


def test_tables_go_between_the_markers(experiment, tmp_path):
  records = [_speed('ours', [4.0], 30_000.0), _speed('keras', [8.0], 20_000.0)]
  found = {'speed': experiment.summary.speed(records), 'parity': {}, 'time_to': {}}
  results = {'machine': 'a machine', 'versions': {'jax': '1'}, 'settings': {'epochs': {}},
             'targets': experiment.targets.targets(found), 'summary': found, 'limits': {}}
  readme = tmp_path / 'README.md'
  readme.write_text(f'before\n{experiment.tables.BEGIN}\nold\n{experiment.tables.END}\nafter\n')
  for _ in range(2):
    experiment.tables.write(readme, results)
  text = readme.read_text()
  assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
  assert text.count('| **Keras** | 8.00 | 2.00x |') == 1
  assert experiment.tables.BEGIN in (FOLDER / 'README.md').read_text()


def test_committed_results_are_of_real_data():
  path = FOLDER / 'results.json'
  if not path.is_file():
    pytest.skip('nothing measured yet')
  assert json.loads(path.read_text())['synthetic'] is False
