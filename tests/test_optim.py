"""Schedules and optimisers against formulas and NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax.errors import ConfigError
from fmnist_jax.freezing import Freezing
from fmnist_jax.optimizers import Horizon, muon

PARAMS = {'kernel': jnp.arange(6.0).reshape(2, 3) - 2.5, 'bias': jnp.array([1.0, -2.0, 0.5])}
GRADS = {'kernel': jnp.full((2, 3), 0.3), 'bias': jnp.array([0.1, -0.2, 0.4])}


def shape(schedule, steps_per_epoch=10, epochs=10):
  function = schedule.build(Horizon(steps_per_epoch, epochs))
  return np.array([float(function(jnp.asarray(t))) for t in range(steps_per_epoch * epochs + 1)])


def test_constant_warms_up_linearly_to_the_peak():
  values = shape(config_lib.Constant(warmup_epochs=0.5))
  np.testing.assert_allclose(values[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
  np.testing.assert_array_equal(values[5:], 1.0)


def test_cosine_is_the_formula():
  values = shape(config_lib.Cosine(warmup_epochs=2, final=0.1))
  np.testing.assert_allclose(values[:20], np.arange(1, 21) / 20, rtol=1e-6)
  t = np.arange(81) / 80
  np.testing.assert_allclose(values[20:], 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * t)), atol=1e-6)


def test_one_cycle_rises_and_falls():
  values = shape(config_lib.OneCycle(rise=0.3))
  assert values[0] == pytest.approx(1 / 25)
  assert values.argmax() == 30 and values[30] == pytest.approx(1.0)
  assert values[-1] == pytest.approx(1e-4, rel=1e-2)
  assert (np.diff(values[:31]) > 0).all() and (np.diff(values[30:]) < 0).all()


def test_step_drops_at_the_end_of_the_epochs_named():
  values = shape(config_lib.Step(epochs=(3.0, 5.0), factor=0.1, warmup_epochs=1.0))
  assert values[9] == pytest.approx(1.0) and values[29] == pytest.approx(1.0)
  assert values[30] == pytest.approx(0.1) and values[49] == pytest.approx(0.1)
  assert values[50] == pytest.approx(0.01)


@pytest.mark.parametrize('schedule', [
    config_lib.Constant(warmup_epochs=2.0), config_lib.OneCycle(rise=0.2),
    config_lib.Step(epochs=(3.0, 5.0), factor=0.3, warmup_epochs=1.0),
    config_lib.Cosine(warmup_epochs=1.0, final=0.2)])
def test_lengths_shares_and_factors_of_schedules_may_be_traced(schedule):
  whole = config_lib.Config(optim=config_lib.SGD(schedule=schedule))
  own = {name: value for name, value in config_lib.continuous(whole).items()
         if name.startswith('optim.schedule.')}
  assert own
  steps = jnp.arange(100)
  values = lambda schedule: jax.vmap(schedule.build(Horizon(10, 10)))(steps)
  traced = lambda own: values(config_lib.replace(whole, own).optim.schedule)
  stacked = {name: jnp.array([value, 0.5 * value], jnp.float32) for name, value in own.items()}
  found = jax.vmap(traced)(stacked)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  close(found[0], values(schedule))
  close(found[0], shape(schedule)[:100])
  halved = config_lib.replace(whole, {name: 0.5 * value for name, value in own.items()})
  close(found[1], shape(halved.optim.schedule)[:100])
  assert not np.allclose(found[1], found[0])


def update(config, steps=3):
  tx = optax.with_extra_args_support(config.build(Horizon(10, 10)))
  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(steps):
    updates, state = tx.update(GRADS, state, params, grad_fn=lambda params, _: params)
    params = optax.apply_updates(params, updates)
  return params


def numpy_adamw(param, grad, decay, steps, lr=0.01, b1=0.9, b2=0.999, eps=1e-8):
  param, grad = np.asarray(param, np.float64), np.asarray(grad, np.float64)
  m = v = 0.0
  for t in range(1, steps + 1):
    m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
    param = param - lr * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * param)
  return param


def test_adamw_decays_kernels_and_not_biases():
  found = update(config_lib.AdamW(learning_rate=0.01, weight_decay=0.5))
  expected = numpy_adamw(PARAMS['kernel'], GRADS['kernel'], 0.5, 3)
  np.testing.assert_allclose(found['kernel'], expected, rtol=1e-5)
  np.testing.assert_allclose(found['bias'], numpy_adamw(PARAMS['bias'], GRADS['bias'], 0.0, 3),
                             rtol=1e-5)


def test_adam_decays_nothing():
  found = update(config_lib.Adam(learning_rate=0.01))
  np.testing.assert_allclose(found['kernel'], numpy_adamw(PARAMS['kernel'], GRADS['kernel'], 0, 3),
                             rtol=1e-5)


def test_sgd_with_nesterov_momentum():
  found = update(config_lib.SGD(learning_rate=0.1, momentum=0.9))
  param, grad, velocity = np.float64(PARAMS['bias']), np.float64(GRADS['bias']), 0.0
  for _ in range(3):
    velocity = 0.9 * velocity + grad
    param = param - 0.1 * (grad + 0.9 * velocity)
  np.testing.assert_allclose(found['bias'], param, rtol=1e-5)


def test_clipping_bounds_the_global_norm():
  found = update(config_lib.SGD(learning_rate=1.0, momentum=0.0, clip_norm=0.01), steps=1)
  moved = jax.tree.map(lambda a, b: a - b, PARAMS, found)
  assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-4)


LAYERS = {
    'Conv_0': {'kernel': np.random.default_rng(0).normal(size=(3, 3, 2, 8)).astype(np.float32)},
    'Dense_0': {'kernel': np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32),
                'bias': np.ones(4, np.float32)},
    'tokens': np.ones((1, 5, 3), np.float32)}


def slopes(seed):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), LAYERS)


@pytest.mark.parametrize('shape', [(288, 64), (10, 128), (32, 32)])
@pytest.mark.parametrize('condition', [1.0, 1e2, 1e4])
def test_orthogonalized_is_the_published_iteration(shape, condition):
  """Of Jordan et al., in float64, on the matrix itself."""
  random = np.random.default_rng(0)
  left, _, right = np.linalg.svd(random.normal(size=shape), full_matrices=False)
  size = min(shape)
  matrix = left * np.logspace(0, -np.log10(condition), size) @ right
  x = matrix / np.linalg.norm(matrix)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  found = muon.orthogonalized(jnp.asarray(matrix, jnp.float32))
  np.testing.assert_allclose(found, x, atol=2e-3)
  values = np.linalg.svd(np.asarray(found))[1]
  assert values.max() < 1.25
  assert condition > 100 or values.min() > 0.65
  assert not np.asarray(muon.orthogonalized(jnp.zeros(shape))).any()


def test_muon_makes_steps_of_kernels_orthogonal_and_leaves_the_rest_to_adam():
  config = config_lib.Muon(learning_rate=0.5, momentum=0.8, weight_decay=0.1,
                           adam_learning_rate=0.01)
  tx = config.build(Horizon(10, 10))
  params, state, velocity = LAYERS, tx.init(LAYERS), 0.0
  for seed in range(3):
    grads = slopes(seed)
    updates, state = tx.update(grads, state, params)
    gradient = grads['Conv_0']['kernel'].reshape(18, 8)
    velocity = 0.8 * velocity + gradient
    step = -0.5 * (np.asarray(muon.orthogonalized(gradient + 0.8 * velocity))
                   + 0.1 * params['Conv_0']['kernel'].reshape(18, 8))
    np.testing.assert_allclose(updates['Conv_0']['kernel'].reshape(18, 8), step, atol=1e-4)
    params = optax.apply_updates(params, updates)
  adam = config_lib.AdamW(learning_rate=0.01, weight_decay=0.1).build(Horizon(10, 10))
  expected, state = LAYERS, adam.init(LAYERS)
  for seed in range(3):
    updates, state = adam.update(slopes(seed), state, expected)
    expected = optax.apply_updates(expected, updates)
  np.testing.assert_allclose(params['Dense_0']['bias'], expected['Dense_0']['bias'], rtol=1e-6)
  np.testing.assert_allclose(params['tokens'], expected['tokens'], rtol=1e-6)
  assert np.abs(params['Dense_0']['kernel'] - expected['Dense_0']['kernel']).max() > 0.1
  # A kernel that is named takes Adam's steps too.
  tx = dataclasses.replace(config, adam=('Dense_*',)).build(Horizon(10, 10))
  named, state = LAYERS, tx.init(LAYERS)
  for seed in range(3):
    updates, state = tx.update(slopes(seed), state, named)
    named = optax.apply_updates(named, updates)
  np.testing.assert_allclose(named['Dense_0']['kernel'], expected['Dense_0']['kernel'], rtol=1e-6)
  np.testing.assert_allclose(named['Conv_0']['kernel'], params['Conv_0']['kernel'], rtol=1e-6)


def test_muon_steps_are_longer_where_there_are_more_outputs():
  tx = config_lib.Muon(learning_rate=1.0, momentum=0.0).build(Horizon(10, 10))
  grads = {'kernel': jnp.eye(4, 16)}
  updates, _ = tx.update(grads, tx.init(grads), grads)
  values = np.linalg.svd(-np.asarray(updates['kernel']))[1]
  assert (values > 1.3).all() and (values < 2.5).all()  # sqrt(16 / 4) = 2, 0.7 to 1.2 times.


def test_muon_refuses_a_pattern_that_fits_no_kernel():
  with pytest.raises(ConfigError, match=r"'Dens'.*no kernel .*Conv_0/kernel, Dense_0/kernel"):
    config_lib.Muon(adam=('Dens',)).build(Horizon(10, 10)).init(LAYERS)


def test_muon_leaves_frozen_layers_alone():
  tx = Freezing(('Conv_0',)).optimizer(config_lib.Muon(weight_decay=0.1).build(Horizon(10, 10)))
  state = tx.init(LAYERS)
  updates, _ = tx.update(slopes(0), state, LAYERS)
  assert not np.asarray(updates['Conv_0']['kernel']).any()
  assert np.asarray(updates['Dense_0']['kernel']).all()
  assert not [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3, 3, 2, 8)]


def test_biases_may_step_further_than_kernels():
  plain, faster = (update(config_lib.SGD(learning_rate=0.01, weight_decay=0.1, bias_rate=rate))
                   for rate in (0.0, 8.0))
  np.testing.assert_array_equal(faster['kernel'], plain['kernel'])
  np.testing.assert_allclose(faster['bias'] - PARAMS['bias'], 8 * (plain['bias'] - PARAMS['bias']),
                             rtol=1e-5)
  same = update(config_lib.AdamW(bias_rate=1.0))
  jax.tree.map(np.testing.assert_array_equal, same, update(config_lib.AdamW()))


def test_lookahead_is_the_published_algorithm():
  """Slow weights follow after every third step, and at the end of an epoch of eight."""
  base = config_lib.SGD(learning_rate=0.1, momentum=0.9, nesterov=False)
  rule = config_lib.Lookahead(base=base, period=3, slow_step=0.3)
  tx = rule.build(Horizon(8, 2))
  params, state = PARAMS, tx.init(PARAMS)
  fast = slow = np.float64(PARAMS['bias'])
  velocity = 0.0
  for t in range(1, 17):
    grads = jax.tree.map(lambda leaf: leaf - 1.0, params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    velocity = 0.9 * velocity + fast - 1.0
    fast = fast - 0.1 * velocity
    if t in (3, 6, 8, 11, 14, 16):
      slow = slow + 0.3 * (fast - slow)
      fast = slow
    np.testing.assert_allclose(params['bias'], fast, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.slow['bias'], slow, rtol=1e-5, atol=1e-6)
  assert rule.rate(Horizon(8, 2))(0) == base.learning_rate


def test_sam_takes_the_gradient_where_the_loss_is_worst_near_by():
  curve = {'kernel': jnp.arange(1.0, 7.0).reshape(2, 3), 'bias': jnp.array([0.5, 3.0, 1.0])}
  loss = lambda params: sum(0.5 * jnp.sum(curve[name] * params[name]**2) for name in curve)
  grad_fn = lambda params, _: jax.grad(loss)(params)
  base = config_lib.SGD(learning_rate=0.1, momentum=0.0)
  tx = config_lib.SAM(base=base, rho=0.2).build(Horizon(10, 10))
  updates, _ = tx.update(jax.grad(loss)(PARAMS), tx.init(PARAMS), PARAMS, grad_fn=grad_fn)
  slopes = {name: np.float64(curve[name]) * np.float64(PARAMS[name]) for name in curve}
  norm = np.sqrt(sum((slope**2).sum() for slope in slopes.values()))
  for name, slope in slopes.items():
    above = np.float64(PARAMS[name]) + 0.2 * slope / norm
    np.testing.assert_allclose(updates[name], -0.1 * np.float64(curve[name]) * above, rtol=1e-5)
  # optax's own agrees, and may stand in `optim` as well.
  theirs = optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.2)),
                             opaque_mode=True)
  expected, _ = theirs.update(jax.grad(loss)(PARAMS), theirs.init(PARAMS), PARAMS, grad_fn=grad_fn)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
  # Where there is no slope there is nowhere to go, and nothing is divided by.
  flat = jax.tree.map(jnp.zeros_like, PARAMS)
  still, _ = tx.update(flat, tx.init(flat), flat, grad_fn=grad_fn)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(still))


def test_wrappers_wrap_each_other_and_leave_frozen_layers_alone():
  rule = config_lib.Lookahead(base=config_lib.SAM(base=config_lib.Muon(weight_decay=0.1)))
  tx = Freezing(('Conv_0',)).optimizer(rule.build(Horizon(10, 10)))
  asked = []
  def grad_fn(params, i):
    asked.append(params)
    return slopes(i)
  state = tx.init(LAYERS)
  updates, after = tx.update(slopes(1), state, LAYERS, grad_fn=grad_fn)
  assert not np.asarray(updates['Conv_0']['kernel']).any()
  assert np.asarray(updates['Dense_0']['kernel']).all()
  above, = asked
  np.testing.assert_array_equal(above['Conv_0']['kernel'], LAYERS['Conv_0']['kernel'])
  moved = jax.tree.map(lambda a, b: a - b, above, LAYERS)
  assert float(optax.tree.norm(moved)) == pytest.approx(0.05, rel=1e-3)
  assert not [leaf for leaf in jax.tree.leaves(after) if leaf.shape == (3, 3, 2, 8)]


@pytest.mark.parametrize('config', [
    config_lib.Lookahead(base=config_lib.AdamW(bias_rate=2.0)),
    config_lib.SAM(base=config_lib.Lookahead()),
    config_lib.Muon(weight_decay=0.1, clip_norm=0.1, schedule=config_lib.OneCycle()),
    config_lib.AdamW(clip_norm=0.1, schedule=config_lib.OneCycle()),
    config_lib.SGD(weight_decay=0.1, clip_norm=0.1, schedule=config_lib.Step()),
    config_lib.Adam(schedule=config_lib.Cosine(warmup_epochs=1))])
def test_settings_may_be_traced(config):
  whole = config_lib.Config(optim=config)
  values = {name: value for name, value in config_lib.continuous(whole).items()
            if name.startswith('optim.')}

  @jax.jit
  def traced(values):
    return update(config_lib.replace(whole, values).optim)

  expected = update(config)
  found = traced({name: jnp.float32(value) for name, value in values.items()})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), expected, found)


@pytest.mark.parametrize('schedule', [
    config_lib.Constant(warmup_epochs=1e308), config_lib.Cosine(warmup_epochs=1e308),
    config_lib.Step(epochs=(1.0, 1e308), warmup_epochs=0.0), config_lib.OneCycle(rise=1 - 1e-16)])
def test_schedules_longer_than_the_run(schedule):
  values = [float(schedule.build(Horizon(10, 3))(step)) for step in range(40)]
  assert all(0 <= value <= 1 for value in values)
