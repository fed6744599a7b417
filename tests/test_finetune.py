"""Starting from another run's weights, and leaving layers as they are."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from fmnist_jax import config as config_lib
from fmnist_jax import models, step, train, transfer
from fmnist_jax.config import CNN, MLP, SGD
from fmnist_jax.data import Dataset
from fmnist_jax.errors import CheckpointError, ConfigError, WorkdirError
from fmnist_jax.freezing import Freezing
from fmnist_jax.interrupt import Interrupted
from fmnist_jax.population.train import train_population
from fmnist_jax.train import train_and_evaluate
from fmnist_jax.trained_model import load_run

pytestmark = pytest.mark.usefixtures('no_report')


def config(**train):
  """BatchNorm, averages and weight decay; quick to compile."""
  found = runs.full_config(**{'epochs': 2, 'precision': 'float32', 'operations': 'matmul', **train})
  found.data.augment = ()
  found.model = CNN(channels=(4, 8), pool=(2, 2), batch_norm=True, dense=(16,))
  found.optim = SGD(learning_rate=0.05, weight_decay=0.1)
  return found


def still(**train):
  """What it starts from is what it ends with, but for statistics."""
  found = config(epochs=1, **train)
  found.optim = SGD(learning_rate=0.0)
  return found


def other_classes(count=4):
  rng = np.random.default_rng(0)
  return Dataset.of_arrays('noise', rng.integers(0, 256, (360, 28, 28), np.uint8),
                           np.arange(360) % count, class_names=[f'kind {k}' for k in range(count)])


@pytest.fixture(scope='module', name='source')
def _source(tmp_path_factory):
  directory = tmp_path_factory.mktemp('finetune') / 'source'
  train_and_evaluate(config(), directory)
  return directory


def described(directory):
  return json.loads((directory / 'results.json').read_text())['init_from']


def equal(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_what_fits_is_taken_with_its_averages_and_the_rest_starts_fresh(source, tmp_path, capsys):
  train_and_evaluate(still(init_from=str(source)), tmp_path / 'run', dataset=other_classes())
  theirs, run = load_run(source), load_run(tmp_path / 'run', 'latest')
  for layer in ('Conv_0', 'BatchNorm_0', 'Conv_1', 'BatchNorm_1', 'Dense_0'):
    # The averages are what was evaluated; here both weights and averages begin with them.
    equal(run.state.params[layer], theirs.variables['params'][layer])
    np.testing.assert_allclose(
        run.state.ema['params'][layer].get('kernel', 0),
        theirs.variables['params'][layer].get('kernel', 0), rtol=1e-5)
  assert run.state.params['Dense_1']['kernel'].shape == (16, 4)
  found = described(tmp_path / 'run')
  assert found['taken'] == ['BatchNorm_0', 'BatchNorm_1', 'Conv_0', 'Conv_1', 'Dense_0']
  assert found['fresh'] == found['left'] == ['Dense_1']
  assert (found['workdir'], found['step']) == (str(source), theirs.step)
  assert 'starting fresh: Dense_1; left there: Dense_1.' in capsys.readouterr().out


def start(config, dataset):
  """(what is described, the variables that a run of `config` starts with)."""
  config = config_lib.validate(config)
  module = models.build(config.model, dataset.num_classes, models.Compute())
  own = jax.device_get(dict(module.init(jax.random.key(7), jnp.zeros((1, *dataset.image_shape)),
                                        train=False)))
  found = transfer.find(config, dataset, begun=False)
  return found.described, own, found.into(own)


def test_statistics_are_taken_and_a_layer_is_taken_whole_or_not_at_all(source):
  wider = still(init_from=str(source))
  wider.model.dense = (16, 16)  # Another Dense_1, of 16; and one more pixel a side: Dense_0 too.
  rng = np.random.default_rng(0)
  dataset = Dataset.of_arrays('large', rng.integers(0, 256, (40, 32, 32), np.uint8),
                              np.arange(40) % 10)
  found, own, variables = start(wider, dataset)
  theirs = load_run(source).variables
  equal(variables['batch_stats'], jax.device_get(theirs['batch_stats']))
  # Its bias would fit, and its kernel does not.
  assert own['params']['Dense_0']['bias'].shape == theirs['params']['Dense_0']['bias'].shape
  equal(variables['params']['Dense_0'], own['params']['Dense_0'])
  assert found['fresh'] == ['Dense_0', 'Dense_1', 'Dense_2']
  assert found['left'] == ['Dense_0', 'Dense_1']


def test_a_head_for_as_many_but_other_classes_starts_fresh(source):
  found, own, variables = start(config(init_from=str(source)), other_classes(10))
  assert found['fresh'] == ['Dense_1']
  equal(variables['params']['Dense_1'], own['params']['Dense_1'])
  same = train.prepare(config_lib.validate(config()), source)[2]
  assert start(config(init_from=str(source)), same)[0]['fresh'] == []


def test_the_model_of_the_other_run_need_not_be_known(source, tmp_path):
  shutil.copytree(source, tmp_path / 'lab')
  saved = json.loads((tmp_path / 'lab' / 'config.json').read_text())
  saved['model'] = {'type': 'no.such.module:Net'}
  (tmp_path / 'lab' / 'config.json').write_text(json.dumps(saved))
  found, _, _ = start(config(init_from=str(tmp_path / 'lab')), other_classes())
  assert found['fresh'] == ['Dense_1']


def test_what_cannot_be_taken_is_refused_and_nothing_is_written(source, tmp_path):
  def refused(directory, says, **changes):
    with pytest.raises(CheckpointError, match=says):
      train_and_evaluate(config_lib.replace(config(init_from=str(directory)), changes),
                         tmp_path / 'run')
    assert not (tmp_path / 'run').exists()

  refused(tmp_path / 'nowhere', 'nowhere, where there is no run with a checkpoint')
  refused(source, r'Nothing of the run in .* has BatchNorm_0, .*, this model Dense_0, Dense_1\.',
          model=MLP(hidden=(3,)))
  shutil.copytree(source, tmp_path / 'damaged')
  for file in (tmp_path / 'damaged' / 'checkpoints').rglob('progress.json'):
    file.write_bytes(file.read_bytes().replace(b'"epoch": ', b'"epoch":  '))
  refused(tmp_path / 'damaged', 'None of the checkpoints .* is intact')
  (tmp_path / 'many').mkdir()
  (tmp_path / 'many' / 'plan.json').write_text('{}')
  refused(tmp_path / 'many', 'a population; name one of its members')


@pytest.mark.parametrize(('patterns', 'says'), [
    (('Conv_0', 'Cov_1'), r"'Cov_1', which fits no layer .* BatchNorm_0, .*, Dense_0, Dense_1\."),
    (('[BC]*', 'Dense_?/*'), r'freezes all layers of the model \(BatchNorm_0, .*nothing is left')])
def test_patterns_that_make_no_sense_are_refused(tmp_path, patterns, says):
  with pytest.raises(ConfigError, match=says):
    train_and_evaluate(config(freeze=patterns), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_pattern_fits_a_variable_or_a_layer_around_it():
  freezing = Freezing(('Block_1', 'Conv_*', '*/bias'))
  assert all(map(freezing, ('Block_1/Dense_0/kernel', 'Block_1', 'Conv_0/kernel', 'Dense_0/bias')))
  assert not any(map(freezing, ('Block_10/Dense_0/kernel', 'Block_0/Conv_0/kernel', 'bias')))


@pytest.fixture(scope='module', name='frozen')
def _frozen(source):
  """A run, on four devices, that starts from a copy of the other, and its config."""
  shutil.copytree(source, source.with_name('copy'))
  changed = config(init_from=str(source.with_name('copy')), freeze=('Conv_*', 'BatchNorm_*'),
                   devices=4)
  train_and_evaluate(changed, source.with_name('frozen'))
  return source.with_name('frozen'), changed


def test_frozen_layers_keep_every_bit_and_have_no_optimiser_state(source, frozen):
  directory, _ = frozen
  theirs, run = load_run(source), load_run(directory, 'latest')
  theirs = jax.device_get(theirs.variables)
  for own in (run.state.params, run.state.ema['params']):
    for layer in theirs['params']:
      if layer.startswith('Dense'):
        assert (own[layer]['kernel'] != theirs['params'][layer]['kernel']).any()
      else:
        equal(own[layer], theirs['params'][layer])
  for own in (run.state.model_state, run.state.ema['model_state']):
    equal(own['batch_stats'], theirs['batch_stats'])
  trained = 200 * 16 + 16 + 16 * 10 + 10
  velocity = [leaf for leaf in jax.tree.leaves(run.state.opt_state) if leaf.ndim]
  assert sum(leaf.size for leaf in velocity) == trained
  results = json.loads((directory / 'results.json').read_text())
  assert results['trained_parameters'] == run.trained_parameters == trained
  assert results['parameters'] == trained + 4 * 9 + 4 * 8 * 9 + 2 * 4 + 2 * 8


class Told(nn.Module):
  """Its BatchNorm learns when it is called which statistics to use."""

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Conv(4, (3, 3), name='Conv_0')(images)
    x = nn.relu(nn.BatchNorm(name='BatchNorm_0')(x, not train))
    return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.parametrize('module', [
    Told(), *(models.build(CNN(channels=(4,), pool=(2,), batch_norm=True, dense=()), 3,
                           models.Compute(jnp.float32, form)) for form in ('native', 'matmul'))],
    ids=['told', 'native', 'matmul'])
def test_a_frozen_batch_norm_computes_as_it_will_be_used(module):
  keys = iter(jax.random.split(jax.random.key(0), 9))
  images = jax.random.uniform(next(keys), (8, 10, 10, 1))
  variables = dict(module.init(next(keys), images, train=False))
  variables['batch_stats'] = {'BatchNorm_0': {'mean': 0.3 * jnp.arange(4.0),
                                              'var': 1.0 + jnp.arange(4.0)}}

  def loss(params, apply, **how):
    logits, after = apply({**variables, 'params': params}, images, mutable=['batch_stats'], **how)
    return jnp.sum(logits**2), (logits, after)

  gradient = jax.grad(loss, has_aux=True)
  params = variables['params']
  wanted, (logits, _) = gradient(params, module.apply, train=False)
  _, (other, _) = gradient(params, module.apply, train=True)
  assert np.abs(logits - other).max() > 0.1
  found, (own, after) = gradient(params, Freezing(('BatchNorm_0',)).apply(module), train=True)
  np.testing.assert_allclose(own, logits, rtol=1e-5, atol=1e-5)
  equal(after['batch_stats'], variables['batch_stats'])
  # What is below it learns, through the statistics that it will be used with.
  np.testing.assert_allclose(found['Conv_0']['kernel'], wanted['Conv_0']['kernel'], rtol=1e-3,
                             atol=1e-3)
  assert not np.any(found['BatchNorm_0']['scale']) and np.any(found['Dense_0']['kernel'])


def test_frozen_zeros_keep_their_sign():
  freezing = Freezing(('Dense_0',))
  module = models.build(MLP(hidden=(4,)), 3, models.Compute())
  tx = freezing.optimizer(optax.adamw(0.1))
  images = jnp.ones((2, 2, 2, 1))
  state = step.init_state(module, tx, jax.random.key(0), images, ema=True)
  params = {**state.params, 'Dense_0': {'kernel': -jnp.zeros((4, 4)), 'bias': -jnp.zeros(4)}}
  state = step.start_state({'params': params}, tx, state.key, ema=True)
  after, _ = step.train_step(state, images, jnp.eye(3)[:2], apply=freezing.apply(module), tx=tx,
                             ema_decay=0.9)
  after = freezing.kept(state, after)
  for tree in (after.params, after.ema['params']):
    assert np.signbit(tree['Dense_0']['kernel']).all()
  assert (after.params['Dense_1']['bias'] != 0).all()


def test_it_resumes_to_the_same_bits_without_the_other_run(frozen, tmp_path):
  whole, changed = frozen
  with pytest.raises(Interrupted):
    train_and_evaluate(changed, tmp_path / 'run', signals=runs.InterruptAt(8))
  shutil.rmtree(changed.train.init_from)
  train_and_evaluate(changed, tmp_path / 'run')
  runs.assert_same_run(whole, tmp_path / 'run')
  assert described(tmp_path / 'run')['taken']
  with pytest.raises(CheckpointError, match='no run with a checkpoint'):
    train_and_evaluate(changed, tmp_path / 'another')


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_members_of_a_population_start_from_the_same_weights(source, tmp_path, mode):
  shutil.copytree(source, tmp_path / 'copy')
  changed = still(init_from=str(tmp_path / 'copy'), freeze=('Conv_0', 'Dense_0'), devices=0)
  changed.model.channels, changed.model.dense = (4, 8), (16, 12)  # Another head.
  train = lambda: train_population(changed, tmp_path / 'two', seeds=2, mode=mode)
  train()
  theirs = load_run(source).variables['params']
  members = [load_run(tmp_path / 'two' / 'members' / f'seed-{seed}') for seed in (0, 1)]
  for member in members:
    for layer in ('Conv_0', 'Conv_1', 'Dense_0'):
      equal(member.state.params[layer], jax.device_get(theirs[layer]))
    assert described(member.workdir)['fresh'] == ['Dense_1', 'Dense_2']
    assert json.loads((member.workdir / 'results.json').read_text())['trained_parameters'] == (
        2 * 4 + 2 * 8 + 4 * 8 * 9 + 16 * 12 + 12 + 12 * 10 + 10)
  first, second = (member.state.params['Dense_2']['kernel'] for member in members)
  assert (first != second).any()
  # A member that is still to come would start from other weights than the first.
  shutil.rmtree(tmp_path / 'two' / 'members' / 'seed-1')
  shutil.rmtree(tmp_path / 'copy')
  shutil.copytree(tmp_path / 'two' / 'members' / 'seed-0', tmp_path / 'copy')
  with pytest.raises(WorkdirError, match=r'holds another population \(init_from_sha256: '):
    train()
