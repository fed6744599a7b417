"""The model families: published sizes, and the same function however it is computed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax import models
from fmnist_jax.config import CNN, MLP, ResNet
from fmnist_jax.errors import ConfigError
from fmnist_jax.ops import build
from fmnist_jax.progress import architecture

CPU_FORMS = ['matmul'] if build.problem() else ['matmul', 'onednn']
IMAGES = jnp.asarray(np.random.default_rng(0).random((4, 28, 28, 1), np.float32))


def init(config, **how):
  module = models.build(config, 10, models.Compute(**how))
  # Compiled: one operation at a time they take many times as long.
  start = jax.jit(lambda key: module.init(key, IMAGES, train=False))
  return module, start(jax.random.key(0))


def count(variables):
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(('config', 'parameters'), [
    (MLP(hidden=(128,)), 101_770), (MLP(hidden=(128, 64)), 109_386), (MLP(hidden=()), 7_850),
    (CNN(), 225_034)])
def test_published_sizes(config, parameters):
  module, variables = init(config)
  assert count(variables) == parameters
  assert f'{parameters:,}' in architecture(module, (28, 28, 1)).splitlines()[-1]


@pytest.mark.parametrize(('config', 'parameters'), [
    (ResNet(), 272_474), (ResNet(channels=(64, 128, 256, 512), blocks=2), 11_173_962)])
def test_published_sizes_of_residual_networks(config, parameters):
  module = models.build(config, 10, models.Compute())
  assert f'{parameters:,}' in architecture(module, (32, 32, 3)).splitlines()[-1]


def test_the_table_of_layers_shows_what_every_tutorial_shows():
  table = architecture(models.build(CNN(), 10, models.Compute()), (28, 28, 1))
  rows = [line.split('  ') for line in table.splitlines()[1:]]
  rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
  assert rows == [
      ['input', '28 x 28 x 1'], ['Conv_0', '26 x 26 x 32', '320'], ['MaxPool_0', '13 x 13 x 32'],
      ['Conv_1', '11 x 11 x 64', '18,496'], ['MaxPool_1', '5 x 5 x 64'],
      ['Dense_0', '128', '204,928'], ['Dense_1', '10', '1,290'], ['total', '225,034']]


def test_the_table_of_layers_counts_what_is_nested_once():
  class Block(nn.Module):

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.Dense(4)(x))

  class Net(nn.Module):

    @nn.compact
    def __call__(self, images, *, train):
      return Block()(images.reshape(len(images), -1))

  names = [line.split()[0] for line in architecture(Net(), (2, 2, 1)).splitlines()]
  assert names == ['layer', 'input', 'Block_0/Dense_1', 'Block_0/Dense_0', 'total']


EVERY = [
    CNN(), CNN(padding='SAME', pool=(2, 2), batch_norm=True),
    CNN(channels=(4, 8, 8), pool=(2, 0, 2), convolutions=2, padding='SAME', dense=()),
    CNN(channels=(4,), pool=(3,), pooling='average', activation='gelu', kernel=5),
    CNN(channels=(4, 8, 8), pool=(2, 2, 0)), ResNet(channels=(4, 6), blocks=2),
    MLP(hidden=(16, 8), activation='tanh')]


@pytest.mark.parametrize('implementation', CPU_FORMS)
@pytest.mark.parametrize('config', EVERY)
def test_all_forms_are_one_function_with_one_set_of_parameters(config, implementation):
  native, variables = init(config, implementation='native')
  fast, others = init(config, implementation=implementation)
  jax.tree.map(np.testing.assert_array_equal, variables, others)

  def loss(module):
    return lambda params: jnp.sum(module.apply(
        {**variables, 'params': params}, IMAGES, train=False)[:, 3] ** 2)

  expected = jax.jit(jax.value_and_grad(loss(native)))(variables['params'])
  found = jax.jit(jax.value_and_grad(loss(fast)))(variables['params'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
               expected, found)


@pytest.mark.parametrize('implementation', ['matmul', 'native'])
@pytest.mark.parametrize('config', [CNN(), MLP()])
def test_bytes_are_scaled_to_the_unit_interval(config, implementation):
  module, variables = init(config, implementation=implementation)
  images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
  np.testing.assert_allclose(module.apply(variables, images, train=False),
                             module.apply(variables, images / np.float32(255), train=False),
                             atol=1e-5)


def test_the_cnn_is_what_flax_layers_make_of_it():
  module, variables = init(CNN(), implementation='matmul')
  x = IMAGES
  for i, width in enumerate((32, 64)):
    x = nn.Conv(width, (3, 3), padding='VALID').apply(
        {'params': variables['params'][f'Conv_{i}']}, x)
    x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
  x = x.reshape(4, -1)
  x = nn.relu(nn.Dense(128).apply({'params': variables['params']['Dense_0']}, x))
  x = nn.Dense(10).apply({'params': variables['params']['Dense_1']}, x)
  np.testing.assert_allclose(module.apply(variables, IMAGES, train=False), x, atol=1e-5)


def test_bfloat16_computes_with_float32_parameters():
  module, variables = init(CNN(batch_norm=True), dtype=jnp.bfloat16, implementation='matmul')
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  exact, _ = init(CNN(batch_norm=True), implementation='matmul')
  rough = module.apply(variables, IMAGES, train=False)
  np.testing.assert_allclose(rough, exact.apply(variables, IMAGES, train=False), atol=0.05)
  assert rough.dtype == jnp.float32


def test_dropout_keeps_its_share_and_the_mean():
  ones = jnp.ones((64, 1001))
  layer = models.Dropout(0.3)
  out = layer.apply({}, ones, train=True, rngs={'dropout': jax.random.key(1)})
  kept = np.asarray(out) != 0
  assert kept.mean() == pytest.approx(0.7, abs=0.01)
  np.testing.assert_allclose(np.asarray(out)[kept], 1 / 0.7, rtol=1e-6)
  # Entries that share a random word are independent of each other.
  first, second = kept[:, :500], kept[:, 501:1001]
  assert np.corrcoef(first.ravel(), second.ravel())[0, 1] == pytest.approx(0, abs=0.02)
  np.testing.assert_array_equal(layer.apply({}, ones, train=False), ones)


def test_a_dropout_rate_may_be_traced_and_the_number_0_is_no_dropout():
  ones = jnp.ones((8, 100))
  apply = lambda rate: models.Dropout(rate).apply({}, ones, train=True,
                                                  rngs={'dropout': jax.random.key(1)})
  np.testing.assert_array_equal(jax.jit(apply)(jnp.float32(0.3)), apply(0.3))
  np.testing.assert_array_equal(jax.jit(apply)(jnp.float32(0.0)), ones)
  assert apply(0.0) is ones


def test_traced_settings_reach_the_dropout_layers():
  config = config_lib.Config(model=CNN(dropout=(0.5, 0.25), dense_dropout=0.5))

  @jax.jit
  def run(hyper, variables):
    module = models.build(config_lib.replace(config, hyper).model, 10,
                          models.Compute(implementation='matmul'))
    return module.apply(variables, IMAGES, train=True, rngs={'dropout': jax.random.key(3)})

  module, variables = init(config.model, implementation='matmul')
  values = {name: jnp.float32(value) for name, value in config_lib.continuous(config).items()
            if name.startswith('model.')}
  assert len(values) == 3
  np.testing.assert_allclose(
      run(values, variables),
      module.apply(variables, IMAGES, train=True, rngs={'dropout': jax.random.key(3)}), atol=1e-5)


def test_what_does_not_fit_is_told():
  models.check_fits(CNN(), (28, 28, 1), 10)
  with pytest.raises(ConfigError, match=r'Block 2 .* leaves no pixel of a 8x28 image'):
    models.check_fits(CNN(), (8, 28, 1), 10)


def test_a_model_that_no_machine_holds_is_told_before_it_is_made():
  for wide in (MLP(hidden=(2**20, 2**20)), CNN(channels=(2**20, 2**20)),
               MLP(hidden=(2**20,) * 200), CNN(kernel=31, channels=(2**20,), pool=(2,),
                                               padding='SAME')):
    with pytest.raises(ConfigError, match=r'weights, too many for training in the \d+ GiB'):
      models.check_fits(wide, (28, 28, 1), 10)
