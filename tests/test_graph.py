"""Networks as lists of layers, and as the ONNX models that come of these."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmnist_jax import graph, models
from fmnist_jax.config import CNN, MLP, MobileNet, ResNet, SpeedNet, ViT
from fmnist_jax.errors import ExportError

ort = pytest.importorskip('onnxruntime')
NAMES = tuple('abcdefghij')


def made(model, shape, seed=0):
  """A module and variables none of which is what it begins as."""
  module = models.build(model, len(NAMES), models.Compute())
  variables = module.init(jax.random.key(seed), jnp.zeros((1, *shape)), train=False)
  random = np.random.default_rng(seed)
  change = lambda path, leaf: (
      random.uniform(0.5, 2, leaf.shape) if path[-1].key in ('var', 'scale')
      else leaf + random.normal(0, 0.1, leaf.shape)).astype(np.float32)
  return module, jax.tree.map_with_path(change, variables)


def checked(model, shape=(28, 28, 1)):
  """The kinds of a model's layers, its ONNX having given what it gives."""
  from fmnist_jax.export import onnx
  module, variables = made(model, shape)
  network = graph.trace(model, variables, shape, NAMES)
  for layer in network.layers:
    assert all(array.dtype == np.float32 for array in layer.arrays.values())
  images = np.random.default_rng(1).integers(0, 256, (7, *shape), np.uint8)
  expected = jax.nn.softmax(module.apply(variables, images / np.float32(255), train=False))
  session = ort.InferenceSession(onnx.build(network, {}))
  found, = session.run(['probabilities'], {'images': images})
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert np.ptp(expected, axis=0).max() > 1e-3, 'the images differ, so that something is compared'
  return [layer.kind for layer in network.layers]


@pytest.mark.parametrize(('model', 'kinds'), [
    (MLP(hidden=(16, 8), activation='tanh', dropout=0.1),
     'flatten dense tanh dense tanh dense'),
    (CNN(channels=(4, 8), pool=(2, 3), dense=(16,)),
     'conv relu max_pool conv relu max_pool flatten dense relu dense'),
    (CNN(channels=(4, 8), pool=(2, 0), batch_norm=True, padding='SAME', convolutions=2, dense=()),
     'conv relu conv relu max_pool conv relu conv relu flatten dense'),
    (CNN(channels=(4,), pool=(2,), convolutions=2, batch_norm=True, norm_after_pool=True,
         padding='SAME', dense=()), 'conv relu conv relu max_pool affine flatten dense'),
    (CNN(channels=(4,), pool=(3,), pooling='average', activation='gelu', dropout=(0.1,),
         dense=(8,)), 'conv gelu avg_pool flatten dense gelu dense'),
    (CNN(channels=(4,), pool=(2,), pooling='average', activation='silu', batch_norm=True,
         dense=(8,)), 'conv silu avg_pool flatten dense silu dense'),
    (ResNet(channels=(4, 8), blocks=1),
     'conv relu conv relu conv add relu conv relu conv conv add relu avg_pool flatten dense'),
    (ResNet(channels=(4, 8), blocks=1, block='preactivation', squeeze=2),
     'conv affine relu conv relu conv avg_pool flatten dense relu dense sigmoid reshape multiply '
     'add affine relu conv conv relu conv avg_pool flatten dense relu dense sigmoid reshape '
     'multiply add affine relu avg_pool flatten dense'),
    (SpeedNet(channels=(4, 8)),
     'conv relu conv relu max_pool conv relu conv relu max_pool conv relu max_pool flatten dense'),
    (MobileNet(stem=4, channels=(4,), expansion=(2,), blocks=(1,), strides=(1,), kernels=(5,),
               head=8, squeeze=2, activation='silu'),
     'conv silu conv silu conv silu avg_pool flatten dense silu dense sigmoid reshape multiply '
     'conv add conv silu avg_pool flatten dense'),
], ids=['mlp', 'cnn', 'cnn-norm', 'cnn-norm-last', 'cnn-gelu', 'cnn-silu', 'resnet',
        'resnet-squeezed', 'speed', 'mobile'])
def test_each_family_is_its_layers(model, kinds):
  assert sorted(checked(model)) == sorted(kinds.split())


class Own(nn.Module):
  """Of Flax's layers, with what nets have: squeeze and excitation, groups, dilation, remat."""

  @nn.compact
  def __call__(self, images, *, train):
    norm = lambda x: nn.BatchNorm(use_running_average=not train)(x)
    x = norm(images * 2 - 1)
    x = nn.relu(norm(nn.Conv(8, (3, 3), strides=2)(x)))
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    y = nn.sigmoid(nn.Dense(8)(nn.silu(nn.Dense(4)(x.mean((1, 2))))))
    x = x - x * y[:, None, None, :]
    x = nn.remat(nn.Conv)(8, (3, 3), feature_group_count=4, kernel_dilation=2)(x)
    x = nn.avg_pool(nn.gelu(nn.Dense(6)(x)), (2, 2), (1, 1), 'SAME')
    x = x * nn.sigmoid(nn.Conv(1, (3, 3))(x))
    x = jnp.maximum(x, 0) / 3 + jnp.square(x)
    x = x.max((1, 2)) - 0.1 * x.sum((1, 2), keepdims=True).squeeze((1, 2))
    return nn.Dense(10)(norm(x)).astype(jnp.float32)


def test_a_module_of_ones_own_of_usual_layers():
  kinds = checked(Own(), (20, 16, 3))
  assert kinds.count('conv') == 4 and kinds.count('dense') == 3 and 'gelu' in kinds


class Odd(nn.Module):
  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Dense(10)(jnp.sort(images.reshape(len(images), -1)))
    return x


class Blind(nn.Module):
  @nn.compact
  def __call__(self, images, *, train):
    return nn.Dense(10)(jnp.ones((len(images), 4)))


class Placed(nn.Module):
  """A sum that differs from pixel to pixel: an addition, but none of those that layers do."""

  @nn.compact
  def __call__(self, images, *, train):
    x = images + jnp.arange(28.0).reshape(1, 28, 1, 1)
    return nn.Dense(10)(x.reshape(len(x), -1))


class Looped(nn.Module):
  @nn.compact
  def __call__(self, images, *, train):
    x = jax.lax.fori_loop(0, 3, lambda i, x: x * 0.5 + 1, images)
    return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.mark.parametrize(('model', 'message'), [
    (Odd(), r'test_graph:Odd has .* \(lax\.sort, with 784 as the result for an image\)'),
    (Placed(), r'\(lax\.add, with 28x28x1 as'), (Looped(), r'\(lax\.(scan|while), with'),
    (ViT(patch=7, width=8, depth=1, heads=2), r'The model ViT has .* \(lax\.'),
    (Blind(), 'test_graph:Blind gives the same for all images')])
def test_what_no_layer_stands_for_is_told_in_a_sentence(model, message):
  _, variables = made(model, (28, 28, 1))
  with pytest.raises(ExportError, match=message):
    graph.trace(model, variables, (28, 28, 1), NAMES)


class Reuses(nn.Module):
  """What looks like SiLU but is read in its middle; a convolution with two readers."""

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Conv(4, (3, 3))(images)
    gate = nn.sigmoid(x)
    x = x * gate + gate + (2 * x + 1)
    return nn.Dense(10)(x.mean((1, 2)))


def test_what_is_read_twice_stays():
  kinds = checked(Reuses())
  assert 'silu' not in kinds and 'sigmoid' in kinds and 'affine' in kinds
