"""The model families: published sizes, and the same function however it is computed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax import models, settings
from fmnist_jax.config import CNN, MLP, MobileNet, ResNet, SpeedNet, ViT
from fmnist_jax.errors import ConfigError
from fmnist_jax.models import layers, resnet, speed
from fmnist_jax.ops import build
from fmnist_jax.progress import architecture

CPU_FORMS = ['matmul'] if build.problem() else ['matmul', 'onednn']
IMAGES = jnp.asarray(np.random.default_rng(0).random((4, 28, 28, 1), np.float32))


def init(config, **how):
  module = models.build(config, 10, models.Compute(**how))
  # Compiled: one operation at a time they take many times as long.
  start = jax.jit(lambda key: module.init(key, IMAGES, train=False))
  return module, start(jax.random.key(0, impl='unsafe_rbg'))  # Which compiles in no time.


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
    # 0.27 M, 11.17 M, then 2.7 M, 8.9 M and 36.5 M of arXiv:1605.07146, tables 4 and 5.
    (ResNet(), 272_474), (ResNet(channels=(64, 128, 256, 512), blocks=2), 11_173_962),
    (ResNet(blocks=2, width=4, block='preactivation'), 2_748_890),
    (ResNet(blocks=6, width=4, block='preactivation'), 8_949_210),
    (ResNet(blocks=4, width=10, block='preactivation'), 36_479_194),
    # 1.97 M of arXiv:2404.00498, which does not count scales of BatchNorm.
    (SpeedNet(kernel=2, channels=(64, 256, 256)), 1_972_816)])
def test_published_sizes_for_cifar(config, parameters):
  assert size(config, (32, 32, 3), 10) == parameters


@pytest.mark.parametrize(('config', 'parameters'), [
    (MobileNet(stem=32, stem_stride=2, channels=(16, 24, 32, 64, 96, 160, 320),
               expansion=(1, 6, 6, 6, 6, 6, 6), blocks=(1, 2, 3, 4, 3, 3, 1),
               strides=(1, 2, 2, 2, 1, 2, 1), kernels=(3,) * 7, head=1280, squeeze=0), 3_504_872),
    (MobileNet(stem=32, stem_stride=2, channels=(16, 24, 40, 80, 112, 192, 320),
               expansion=(1, 6, 6, 6, 6, 6, 6), blocks=(1, 2, 2, 3, 3, 4, 1),
               strides=(1, 2, 2, 2, 1, 2, 1), kernels=(3, 3, 5, 3, 5, 5, 3), head=1280,
               squeeze=4, activation='silu'), 5_288_548),
    (ViT(patch=16, width=384, depth=12, heads=6), 22_050_664),
    (ViT(patch=16, width=768, depth=12, heads=12), 86_567_656)],
    ids=['MobileNetV2', 'EfficientNet-B0', 'ViT-S/16', 'ViT-B/16'])
def test_published_sizes_for_imagenet(config, parameters):
  assert size(config, (224, 224, 3), 1000) == parameters


def size(config, image_shape, classes):
  """How many parameters, without making them."""
  module = models.build(config, classes, models.Compute())
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(lambda images: module.init(jax.random.key(0), images, train=False),
                             images)
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize('block', ['basic', 'preactivation'])
def test_squeeze_and_excitation_costs_what_its_paper_says(block):
  # Two matrices of C x C / r a block (arXiv:1709.01507, equation 6), and their biases.
  squeezed, plain = ResNet(squeeze=8, block=block), ResNet(block=block)
  cost = sum(3 * (2 * c * c // 8 + c // 8 + c) for c in (16, 32, 64))
  assert size(squeezed, (32, 32, 3), 10) == size(plain, (32, 32, 3), 10) + cost


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
    CNN(channels=(4, 8), convolutions=2, padding='SAME', batch_norm=True, norm_after_pool=True),
    CNN(channels=(4, 8, 8), pool=(2, 0, 2), convolutions=2, padding='SAME', dense=()),
    CNN(channels=(4,), pool=(3,), pooling='average', activation='gelu', kernel=5),
    CNN(channels=(4, 8, 8), pool=(2, 2, 0)), ResNet(channels=(4, 6), blocks=2),
    ResNet(channels=(4, 6), blocks=1, squeeze=2, stochastic_depth=0.4),
    ResNet(channels=(4, 6), blocks=1, width=2, block='preactivation'),
    ResNet(channels=(4,), blocks=1, block='preactivation', squeeze=2, stochastic_depth=0.4),
    SpeedNet(channels=(4, 6)),
    SpeedNet(kernel=4, stride=2, channels=(4,), convolutions=3, pooling='average'),
    MobileNet(stem=4, channels=(4, 6), expansion=(1, 2), blocks=(1, 2), strides=(2, 2),
              kernels=(3, 5), head=8, squeeze=2, stochastic_depth=0.4),
    MobileNet(stem=4, channels=(4,), expansion=(2,), blocks=(1,), strides=(1,), kernels=(3,),
              head=8, squeeze=0, activation='silu', dropout=0.3),
    ViT(patch=7, width=8, depth=2, heads=2, dropout=0.1, stochastic_depth=0.4),
    MLP(hidden=(16, 8), activation='tanh')]


@pytest.mark.parametrize('implementation', CPU_FORMS)
@pytest.mark.parametrize('config', EVERY)
def test_all_forms_are_one_function_with_one_set_of_parameters(config, implementation):
  native, variables = init(config, implementation='native')
  fast, others = init(config, implementation=implementation)
  jax.tree.map(np.testing.assert_array_equal, variables, others)

  def outcome(module):
    def trained(params):
      run = lambda train: module.apply(
          {**variables, 'params': params}, IMAGES, train=train, mutable=['batch_stats'],
          rngs={'dropout': jax.random.key(2)})
      logits, after = run(True)
      return jnp.sum(logits[:, 3] ** 2), (logits, after, run(False)[0])
    return jax.jit(jax.value_and_grad(trained, has_aux=True))(variables['params'])

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
               outcome(native), outcome(fast))


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


@pytest.mark.parametrize(('model', 'message'), [
    (MobileNet(channels=(4, 8)), r'model.expansion has 4 entries for 2 stages in model.channels'),
    (ViT(width=100, heads=3), r'model.width, 100, does not divide by model.heads, 3')])
def test_settings_that_do_not_go_together_are_told(model, message):
  with pytest.raises(ConfigError, match=message):
    config_lib.validate(config_lib.Config(model=model))


def test_patches_that_do_not_cover_an_image_are_told():
  models.check_fits(ViT(patch=7, width=4, depth=1, heads=1), (28, 14, 1), 10)
  for shape in ((28, 30, 1), (4, 4, 1)):
    with pytest.raises(ConfigError, match='does not divide into patches of 7x7 pixels; use'):
      models.check_fits(ViT(patch=7), shape, 10)


def test_what_a_speed_net_leaves_no_pixel_of_is_told():
  models.check_fits(SpeedNet(kernel=2, channels=(4, 4, 4)), (9, 28, 1), 10)
  with pytest.raises(ConfigError, match=r'leaves no pixel of a 8x28 image; use fewer blocks'):
    models.check_fits(SpeedNet(kernel=2, channels=(4, 4, 4)), (8, 28, 1), 10)


def test_the_first_kernels_of_a_speed_net_are_the_cosine_transform_and_its_negative():
  kernel = speed.cosines(jax.random.key(0), (2, 2, 1, 8))[:, :, 0]
  np.testing.assert_allclose(kernel[:, :, :4].transpose(2, 0, 1), [
      [[.5, .5], [.5, .5]], [[.5, -.5], [.5, -.5]], [[.5, .5], [-.5, -.5]],
      [[.5, -.5], [-.5, .5]]], atol=1e-6)
  for shape in ((3, 3, 1, 18), (2, 2, 3, 24)):
    kernel = speed.cosines(jax.random.key(0), shape).reshape(-1, shape[-1])
    half = shape[-1] // 2
    np.testing.assert_allclose(kernel[:, :half].T @ kernel[:, :half], np.eye(half), atol=1e-6)
    np.testing.assert_array_equal(kernel[:, half:], -kernel[:, :half])


def test_a_preactivation_block_is_what_flax_layers_make_of_it():
  config = ResNet(channels=(4, 6), blocks=1, block='preactivation')
  module, variables = init(config, implementation='matmul')

  def conv(x, path, stride=1):
    kernel = functools.reduce(lambda tree, name: tree[name], path, variables['params'])['kernel']
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME',
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  # As it begins, with running statistics, BatchNorm only divides by sqrt(1 + 1e-5).
  rectified = lambda x: nn.relu(x / jnp.sqrt(1 + 1e-5))
  x = conv(IMAGES, ['Conv_0'])
  y = conv(rectified(x), ['PreActivationBlock_0', 'Conv_0'])
  x = x + conv(rectified(y), ['PreActivationBlock_0', 'Conv_1'])
  y = conv(rectified(x), ['PreActivationBlock_1', 'Conv_0'], 2)
  x = conv(rectified(x), ['PreActivationBlock_1', 'Conv_2'], 2) + conv(
      rectified(y), ['PreActivationBlock_1', 'Conv_1'])
  head = variables['params']['Dense_0']
  expected = rectified(x).mean((1, 2)) @ head['kernel'] + head['bias'][None]
  np.testing.assert_allclose(module.apply(variables, IMAGES, train=False), expected, atol=1e-5)


def test_stochastic_depth_leaves_out_whole_examples_and_keeps_the_mean():
  layer = layers.StochasticDepth(0.3)
  apply = lambda rate: layers.StochasticDepth(rate).apply(
      {}, jnp.ones((20_000, 2, 1, 3)), train=True, rngs={'dropout': jax.random.key(1)})
  out = np.asarray(apply(0.3)).reshape(20_000, 6)
  kept = out[:, 0] != 0
  assert kept.mean() == pytest.approx(0.7, abs=0.01)
  np.testing.assert_allclose(out, np.where(kept, 1 / 0.7, 0)[:, None] * np.ones(6), rtol=1e-6)
  np.testing.assert_array_equal(jax.jit(apply)(jnp.float32(0.3)), apply(0.3))
  np.testing.assert_array_equal(jax.jit(apply)(jnp.float32(0)), 1)
  assert layer.apply({}, out, train=False) is out


def test_the_deeper_a_block_the_oftener_it_is_left_out(monkeypatch):
  rates = []
  monkeypatch.setattr(resnet, 'StochasticDepth', lambda rate: rates.append(rate) or (
      lambda y, train: y))
  init(ResNet(channels=(4, 6), blocks=2, stochastic_depth=0.2, squeeze=2))
  np.testing.assert_allclose(rates, [0.05, 0.1, 0.15, 0.2])


def test_gates_of_squeeze_and_excitation_are_of_the_means_of_channels():
  layer = layers.SqueezeExcitation(2, models.Compute())
  variables = layer.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
  x = np.random.default_rng(0).random((4, 5, 6, 3), np.float32)
  first, second = (variables['params'][f'Dense_{i}'] for i in (0, 1))
  hidden = np.maximum(x.mean((1, 2)) @ first['kernel'], 0)
  gates = 1 / (1 + np.exp(-hidden @ second['kernel']))
  np.testing.assert_allclose(layer.apply(variables, x), x * gates[:, None, None], atol=1e-6)


MAPPED = [ResNet(channels=(4, 6), blocks=1, squeeze=2, stochastic_depth=0.4),
          SpeedNet(channels=(4,)),
          MobileNet(stem=4, channels=(4,), expansion=(2,), blocks=(2,), strides=(2,), kernels=(3,),
                    head=8, dropout=0.3, stochastic_depth=0.4),
          ViT(patch=7, width=8, depth=1, heads=2, dropout=0.1, stochastic_depth=0.4)]


@pytest.mark.parametrize('implementation', CPU_FORMS)
@pytest.mark.parametrize('config', MAPPED, ids=lambda config: type(config).__name__)
def test_members_of_a_population_are_what_they_are_alone(config, implementation):
  names = sorted(settings.continuous(config))
  _, variables = init(config)

  def loss(params, values):
    module = models.build(settings.replace(config, dict(zip(names, values))), 10,
                          models.Compute(implementation=implementation))
    logits, _ = module.apply({**variables, 'params': params}, IMAGES, train=True,
                             rngs={'dropout': jax.random.key(1)}, mutable=['batch_stats'])
    return jnp.sum(logits[:, 3] ** 2)

  grown = jax.tree.map(lambda leaf: 1.5 * leaf, variables['params'])
  params = jax.tree.map(lambda *leaves: jnp.stack(leaves), variables['params'], grown)
  values = jnp.array([[0.2], [0.5]]) * jnp.ones((1, len(names)))
  step = jax.value_and_grad(loss)
  found = jax.jit(jax.vmap(step))(params, values)
  for member, alone in enumerate((variables['params'], grown)):
    expected = jax.jit(step)(alone, values[member])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[member], b, rtol=2e-4, atol=2e-5),  # noqa: B023
                 found, expected)
