"""One step, against arithmetic done another way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmnist_jax import sharding, step
from fmnist_jax.config import MLP, SAM, SGD, Config, Constant, Data, Train
from fmnist_jax.losses import CrossEntropy
from fmnist_jax.optimizers import Horizon
from fmnist_jax.programs import Programs


class Linear(nn.Module):
  """Somebody else's module."""

  @nn.compact
  def __call__(self, images, *, train):
    return nn.Dense(3)(images.reshape(images.shape[0], -1))


class Normed(nn.Module):

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Conv(4, (3, 3))(images)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    x = nn.Dropout(0.3, deterministic=not train)(x.reshape(x.shape[0], -1))
    return nn.Dense(3)(x)


def train_step(state, images, labels, **how):
  return step.train_step(state, images, jax.nn.one_hot(labels, 3), **how)


def batch(count=8, seed=0):
  random = np.random.default_rng(seed)
  return (jnp.asarray(random.random((count, 6, 6, 1), np.float32)),
          jnp.asarray(random.integers(0, 3, count), jnp.int32))


def start(module, tx, ema=False, seed=0):
  return step.init_state(module, tx, jax.random.key(seed), batch(1)[0], ema=ema)


def test_cross_entropy_by_hand():
  logits = jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
  targets = jax.nn.one_hot(jnp.array([1, 2]), 3)
  p = np.exp([[1, 2, 0.5], [0, 0, 0]])
  log_p = np.log(p / p.sum(1, keepdims=True))
  expected = -np.array([log_p[0, 1], log_p[1, 2]])
  np.testing.assert_allclose(step.cross_entropy(logits, targets), expected, rtol=1e-6)
  mixed = jnp.array([[0.25, 0.75, 0.0], [0.5, 0.0, 0.5]])
  np.testing.assert_allclose(step.cross_entropy(logits, mixed), -(mixed * log_p).sum(1), rtol=1e-6)
  smooth = 0.9 * expected - 0.1 * log_p.mean(1)
  np.testing.assert_allclose(CrossEntropy(label_smoothing=0.1)(logits, targets), smooth, rtol=1e-6)
  np.testing.assert_array_equal(CrossEntropy()(logits, targets),
                                step.cross_entropy(logits, targets))


def test_balanced_weights_make_classes_count_the_same():
  random = np.random.default_rng(0)
  logits = random.normal(size=(6, 3)).astype(np.float32)
  labels = np.array([0, 0, 0, 0, 1, 2])
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  weights = 6 / (3 * np.array([4, 1, 1]))
  targets = np.eye(3, dtype=np.float32)[labels]
  loss = CrossEntropy(class_weights='balanced')
  found = loss.weighed(np.bincount(labels))(logits, targets)
  np.testing.assert_allclose(found, -weights[labels] * log_p[range(6), labels], rtol=1e-6)
  means = [-log_p[labels == k, k].mean() for k in range(3)]
  assert np.mean(found) == pytest.approx(np.mean(means), rel=1e-6)
  # Smoothing gives other classes their part, each with its own weight, as PyTorch has it.
  smooth = CrossEntropy(class_weights='balanced', label_smoothing=0.3)
  np.testing.assert_allclose(smooth.weighed(np.bincount(labels))(logits, targets), -np.sum(
      (0.7 * targets + 0.1) * weights * log_p, 1), rtol=1e-6)
  plain = CrossEntropy()
  assert plain.weighed(np.bincount(labels)) is plain
  # A class without an example, in a set that was cut short.
  assert np.isfinite(loss.weighed(np.array([5, 1, 0]))(logits, targets)).all()


def test_a_run_weighs_classes_by_its_training_set():
  labels = np.array([0] * 6 + [1] * 2, np.int32)
  images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)
  def trained(class_weights):
    config = Config(
        data=Data(batch_size=8), model=MLP(hidden=()),
        optim=SGD(learning_rate=0.5, momentum=0, schedule=Constant()),
        loss=CrossEntropy(class_weights=class_weights),
        train=Train(epochs=1, precision='float32', operations='native'))
    programs = Programs(config, sharding.make_mesh(8, 1), (2, 2, 1), 2, 8, np.bincount(labels))
    state = programs.init(0, {})
    after, sums = programs.train(state, step.Sums.zero(), {}, jnp.array(images), jnp.array(labels),
                                 jnp.arange(8).reshape(1, 8), 0, 1)
    return state.params, after.params, sums
  before, after, sums = trained('balanced')
  x = images.reshape(8, 4) / 255.0
  dense, = before.values()
  logits = x @ np.asarray(dense['kernel'], float) + np.asarray(dense['bias'], float)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  weights = np.array([8 / 12, 2])[labels][:, None]
  gradient = x.T @ ((p - np.eye(2)[labels]) * weights) / 8
  found, = after.values()
  np.testing.assert_allclose(found['kernel'], dense['kernel'] - 0.5 * gradient, rtol=1e-5,
                             atol=1e-6)
  assert float(sums.loss) == pytest.approx(
      -(weights[:, 0] * np.log(p[range(8), labels])).sum(), rel=1e-5)
  assert not np.array_equal(trained('none')[1]['Dense_0']['kernel'], found['kernel'])


@pytest.mark.parametrize(('platform', 'asked'), [('gpu', {'xla_gpu_deterministic_ops': True}),
                                                 ('cpu', None)])
def test_a_gpu_is_asked_for_the_same_bits_in_every_run(monkeypatch, platform, asked):
  monkeypatch.setattr(sharding, 'platform', lambda mesh: platform)
  told, compile_ = [], jax.stages.Lowered.compile
  monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda self, options=None: (
      told.append(options), compile_(self, options))[1])
  config = Config(model=MLP(hidden=()), train=Train(deterministic=True, precision='float32',
                                                    operations='native'))
  programs = Programs(config, sharding.make_mesh(128, 1), (2, 2, 1), 2, 128)
  programs.call(programs.init, programs.number(0), {})
  assert told == [asked]


def test_a_linear_model_learns_by_the_gradient_of_the_mean_loss():
  tx = optax.sgd(0.5)
  state = start(Linear(), tx)
  images, labels = batch()
  new, sums = train_step(state, images, labels, apply=Linear().apply, tx=tx)
  x = np.asarray(images, np.float64).reshape(8, -1)
  kernel = np.asarray(state.params['Dense_0']['kernel'], np.float64)
  logits = x @ kernel
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  y = np.eye(3)[np.asarray(labels)]
  np.testing.assert_allclose(new.params['Dense_0']['kernel'], kernel - 0.5 * x.T @ (p - y) / 8,
                             atol=1e-6)
  np.testing.assert_allclose(new.params['Dense_0']['bias'], -0.5 * (p - y).mean(0), atol=1e-6)
  assert sums.loss == pytest.approx(-np.log((p * y).sum(1)).sum(), rel=1e-5)
  assert int(sums.correct) == (logits.argmax(1) == np.asarray(labels)).sum()
  assert int(sums.count) == 8 and int(sums.bad_step) == -1 and int(new.step) == 1


def test_batch_statistics_and_dropout_belong_to_the_step():
  tx = optax.sgd(0.1)
  state = start(Normed(), tx)
  images, labels = batch()
  go = lambda state: train_step(state, images, labels, apply=Normed().apply, tx=tx)[0]
  new = go(state)
  conv = nn.Conv(4, (3, 3)).apply({'params': state.params['Conv_0']}, images)
  np.testing.assert_allclose(new.model_state['batch_stats']['BatchNorm_0']['mean'],
                             0.1 * conv.mean((0, 1, 2)), atol=1e-6)
  again, later = go(state), go(state.replace(step=state.step + 1))
  kernel = lambda s: np.asarray(s.params['Dense_0']['kernel'])
  np.testing.assert_array_equal(kernel(new), kernel(again))
  assert (kernel(new) != kernel(later)).any(), 'another step must drop other units'


def test_streams_and_steps_have_keys_of_their_own():
  state = start(Linear(), optax.sgd(0.1))
  keys = [jax.random.key_data(state.replace(step=jnp.int32(t)).step_key(stream)).tolist()
          for t in range(5) for stream in (step.DROPOUT, step.AUGMENT, step.NOISE)]
  assert len({tuple(key) for key in keys}) == len(keys)


def test_moving_averages_follow_their_formula_and_are_what_is_evaluated():
  tx = optax.sgd(0.5)
  state = start(Normed(), tx, ema=True)
  images, labels = batch()
  expected = np.asarray(state.params['Dense_0']['kernel'], np.float64)
  for t in range(20):
    state, _ = train_step(state, images, labels, apply=Normed().apply, tx=tx, ema_decay=0.6)
    decay = min(0.6, (1 + t) / (10 + t))
    expected = decay * expected + (1 - decay) * np.asarray(state.params['Dense_0']['kernel'])
  used = state.variables()
  np.testing.assert_allclose(used['params']['Dense_0']['kernel'], expected, rtol=1e-5, atol=1e-6)
  assert set(used) == {'params', 'batch_stats'}
  assert (np.asarray(used['batch_stats']['BatchNorm_0']['mean'])
          != np.asarray(state.model_state['batch_stats']['BatchNorm_0']['mean'])).any()


class Counting(nn.Module):
  """A collection and an RNG of names that nobody has heard of; a counter is no average."""

  @nn.compact
  def __call__(self, images, *, train):
    x = images.reshape(images.shape[0], -1)
    calls = self.variable('tally', 'calls', lambda: jnp.zeros((), jnp.int32))
    largest = self.variable('tally', 'largest', lambda: jnp.zeros((), jnp.float32))
    if train:
      x = x + jax.random.normal(self.make_rng('jitter'), x.shape)
      calls.value, largest.value = calls.value + 1, jnp.maximum(largest.value, x.max())
    return nn.Dense(3)(x)


def test_collections_and_rngs_of_any_name_work_and_counters_are_not_averaged():
  tx = optax.sgd(0.1)
  state = start(Counting(), tx, ema=True)
  images, labels = batch()
  seen = []
  for _ in range(3):
    state, sums = train_step(state, images, labels, apply=Counting().apply, tx=tx, ema_decay=0.5)
    seen.append(float(sums.loss))
  assert len(set(seen)) == 3
  averages = state.variables()['tally']
  assert int(averages['calls']) == int(state.model_state['tally']['calls']) == 3
  assert averages['calls'].dtype == jnp.int32
  assert 0 < float(averages['largest']) < float(state.model_state['tally']['largest'])


def test_the_first_bad_step_is_remembered():
  tx = optax.sgd(0.1)
  state = start(Linear(), tx)
  images, labels = batch()
  total = step.Sums.zero()
  for t in range(4):
    broken = images.at[0, 0, 0, 0].set(jnp.inf) if t == 2 else images
    state, sums = train_step(state, broken, labels, apply=Linear().apply, tx=tx)
    total = total + sums
  assert int(total.bad_step) == 2


def test_evaluation_counts_no_padding():
  tx = optax.sgd(0.1)
  state = start(Linear(), tx)
  images, labels = batch(6)
  whole = step.eval_step(state.variables(), images, labels, jnp.ones(6, bool),
                         apply=Linear().apply)
  padded = step.eval_step(state.variables(), jnp.pad(images, ((0, 2), (0, 0), (0, 0), (0, 0))),
                          jnp.pad(labels, (0, 2)), jnp.arange(8) < 6, apply=Linear().apply)
  assert int(padded.count) == 6 and int(padded.correct) == int(whole.correct)
  assert float(padded.loss) == pytest.approx(float(whole.loss), rel=1e-6)


def test_sharpness_aware_steps_drop_the_same_units_and_keep_the_first_statistics():
  rule = SAM(base=SGD(learning_rate=0.5, momentum=0), rho=0.3)
  tx = rule.build(Horizon(10, 1))
  state = start(Normed(), tx)
  images, labels = batch()
  new, sums = train_step(state, images, labels, apply=Normed().apply, tx=tx)

  def loss(params):
    logits, found = Normed().apply({'params': params, **state.model_state}, images, train=True,
                                   rngs=state.rngs(), mutable=['batch_stats'])
    return jnp.mean(step.cross_entropy(logits, jax.nn.one_hot(labels, 3))), found

  (mean, statistics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
  above = jax.tree.map(lambda p, g: p + 0.3 * g / optax.tree.norm(grads), state.params, grads)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params,
                          jax.grad(loss, has_aux=True)(above)[0])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, new.params, expected)
  jax.tree.map(close, new.model_state, dict(statistics))
  assert float(sums.loss) == pytest.approx(8 * float(mean), rel=1e-5)


@pytest.mark.parametrize('devices', [2, 4])
def test_a_step_on_several_devices_is_the_step_on_one(devices):
  """Loss, parameters and BatchNorm statistics: those of the whole batch."""
  tx = optax.sgd(0.5)
  state = start(Normed(), tx, ema=True)
  images, labels = batch(8)
  go = jax.jit(lambda state, images, labels: train_step(
      state, images, labels, apply=Normed().apply, tx=tx, ema_decay=0.9))
  mesh = jax.make_mesh((devices,), ('data',), devices=jax.devices()[:devices],
                       axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  alone = go(state, images, labels)
  shared = go(jax.device_put(state, whole), jax.device_put(images, split),
              jax.device_put(labels, split))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), alone, shared)


def test_no_step_compiles_twice():
  tx = optax.adam(1e-3)
  images, labels = batch()
  traced = []

  @jax.jit
  def go(state, images, labels):
    traced.append(1)
    return train_step(state, images, labels, apply=Normed().apply, tx=tx)

  state = start(Normed(), tx)
  for _ in range(3):
    state, _ = go(state, images, labels)
  assert len(traced) == 1
