"""Parts of one's own that are wrong: each is told in one sentence, and nothing is written."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
import runs

import fmnist_jax
from fmnist_jax.config import Flip
from fmnist_jax.errors import ConfigError, DataError


def part(base, **members):
  """A section made of functions."""
  return dataclasses.dataclass(type('Own', (base,), {**members, '__module__': __name__}))()


def loss(function):
  return {'loss': part(fmnist_jax.Loss, __call__=lambda _, *args: function(*args))}


def augmentation(function):
  return {'data.augment': (
      Flip(), part(fmnist_jax.Augmentation, __call__=lambda _, *args: function(*args)))}


def optimizer(function):
  return {'optim': part(fmnist_jax.Optimizer, build=function)}


def schedule(function):
  return {'optim.schedule': part(fmnist_jax.Schedule, build=function)}


def model(**members):
  return {'model': part(fmnist_jax.Model, **members)}


def source(load):
  return {'data': part(fmnist_jax.DataSource, load=load)}


@dataclasses.dataclass
class Branching(fmnist_jax.Loss):
  gamma: float = fmnist_jax.setting(2.0, 'of nothing', continuous=True)

  def __call__(self, logits, targets):
    return jnp.sum(logits * targets, -1) if self.gamma > 1 else jnp.sum(logits, -1)


def linear(images, classes=10, **more):
  return nn.Dense(classes, **more)(images.reshape(len(images), -1))


class WideInTraining(nn.Module):

  @nn.compact
  def __call__(self, images, *, train):
    return jnp.tile(linear(images), (1, 2 if train else 1))


class Half(nn.Module):

  @nn.compact
  def __call__(self, images, *, train):
    return linear(images, param_dtype=jnp.bfloat16)


class Keeps(nn.Module):
  """A variable of as many rows as there are images."""

  @nn.compact
  def __call__(self, images, *, train):
    last, logits = self.variable('cache', 'last', jnp.zeros, (len(images), 10)), linear(images)
    if train:
      last.value = logits
    return logits


class Key(nn.Module):

  @nn.compact
  def __call__(self, images, *, train):
    self.variable('random', 'key', jax.random.key, 0)
    return linear(images)


@pytest.mark.parametrize(('changes', 'says'), [
    (loss(lambda x, t: jnp.mean(x * t)), r'loss .*:Own gives float32 \[\] .*of each example'),
    (loss(lambda x, t: x * t), r'loss .*:Own gives float32 \[20, 10\] for'),
    (loss(lambda x, t: None), r'loss .*:Own gives NoneType'),
    (loss(lambda x, t: jnp.argmax(x, -1)), r'loss .*:Own gives int32 \[20\]'),
    (loss(lambda x, t: x @ t), r'loss .*:Own does not work: TypeError: .*test_parts.py, line'),
    ({'loss': Branching()}, r'loss .*:Branching does not work: TracerBool'),
    (augmentation(lambda k, i, t: i), r'augmentation .*:Own gives uint8 .* of these shapes'),
    (augmentation(lambda k, i, t: (i[::2], t[::2])), r':Own gives \(uint8 \[10, 28, 28, 1\]'),
    (augmentation(lambda k, i, t: (i, t.argmax(-1))), r':Own gives .* int32 \[20\]\) for'),
    (augmentation(lambda k, i, t: (i.astype(int), t)), r':Own gives \(int32 .* uint8 or float32'),
    (augmentation(lambda k, i, t: (i.nonsense, t)), r':Own does not work: .*nonsense'),
    ({'data.augment': Flip()}, r'data.augment is Flip\(.*it must be a tuple'),
    (optimizer(lambda _, h: None), r'optimiser .*:Own does not work: .*NoneType'),
    (optimizer(lambda _, h: optax.lbfgs()), r'optimiser .*:Own does not work: TypeError'),
    (optimizer(lambda _, h: optax.GradientTransformation(
        lambda p: jnp.zeros(()), lambda u, s, p: (u, jnp.zeros(2)))),
     r'optimiser .*:Own changes shape'),
    (schedule(lambda _, h: 1 / 0), r'schedule .*:Own does not work: ZeroDivisionError.*parts.py'),
    (schedule(lambda _, h: 1.0), r'schedule .*:Own does not work: .*not callable'),
    (schedule(lambda _, h: lambda t: jnp.ones(3)), r'schedule .*:Own gives float32 \[3\]'),
    (model(build=lambda *_: Half(), check=lambda *_: 1 / 0), r':Own cannot be built: ZeroDivision'),
    ({'model': WideInTraining()}, r'WideInTraining gives float32 \[2, 20\] for two images'),
    ({'model': Half()}, r'Half has parameters of type bfloat16; all must be float32'),
    ({'model': Keeps()}, r'Keeps has other variables .* how many images'),
    ({'model': Key()}, r'Key has variables that are keys')])
def test_one_sentence_names_the_part(tmp_path, changes, says):
  config = fmnist_jax.config.replace(runs.full_config(epochs=1), changes)
  with pytest.raises(ConfigError, match=says) as caught:
    fmnist_jax.train_and_evaluate(config, tmp_path / 'run')
  assert '\n' not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(('load', 'says'), [
    (lambda _: None, r'data source .*:Own loads a NoneType; .*fmnist_jax.Dataset'),
    (lambda _: 1 / 0, r'data source .*:Own could not be loaded: ZeroDivision.*parts.py')])
def test_a_source_that_loads_no_data_set(tmp_path, load, says):
  config = fmnist_jax.config.replace(runs.full_config(epochs=1), source(load))
  with pytest.raises(DataError, match=says):
    fmnist_jax.train_and_evaluate(config, tmp_path / 'run')
  assert not list(tmp_path.iterdir())
