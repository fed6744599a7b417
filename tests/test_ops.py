"""Operations against jax.lax, by value and by gradient, and under the transformations in use."""

import functools
import logging
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmnist_jax import ops
from fmnist_jax.errors import BackendError
from fmnist_jax.ops import build, onednn

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32
NO_ONEDNN = build.problem()
CPU_FORMS = ['matmul'] if NO_ONEDNN else ['matmul', 'onednn']
FORMS = ['native', *CPU_FORMS]
SWEEP = settings(max_examples=8, deadline=None, derandomize=True,
                 phases=[Phase.explicit, Phase.generate])


def draw(seed, shape, dtype=FLOAT32):
  return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def compare(f, reference, *args, dtype=FLOAT32):
  """Asserts that f agrees with the reference in value and in the gradient of a weighted sum.

  The value is asked for twice: an operation may have another form when no gradient is wanted.
  """
  def both(weights, *args):
    def value_and_gradients(f):
      scalar = lambda *a: (lambda y: (jnp.sum(y.astype(FLOAT32) * weights), y))(f(*a))
      return (*jax.grad(scalar, tuple(range(len(args))), has_aux=True)(*args), f(*args))
    return value_and_gradients(f), value_and_gradients(reference)
  weights = draw(99, jax.eval_shape(reference, *args).shape)
  got, expected = jax.jit(both)(weights, *args)
  assert got[1].dtype == dtype
  assert_close(got, expected, dtype)


def assert_close(actual, expected, dtype=FLOAT32):
  """Equal to the rounding of `dtype`, relative to the largest entry."""
  tolerance = 3e-2 if dtype == BFLOAT16 else 2e-5
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.shape == e.shape and a.dtype == e.dtype
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    assert np.max(np.abs(a - e), initial=0) <= tolerance * (1 + np.max(np.abs(e), initial=0))


def reference_conv(x, kernel, padding, strides=(1, 1), **kwargs):
  return jax.lax.conv_general_dilated(x, kernel, strides, padding,
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **kwargs)


paddings = st.one_of(st.sampled_from(['SAME', 'VALID']),
                     st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2))


@SWEEP
@given(batch=st.integers(1, 5), size=st.tuples(*[st.integers(5, 9)] * 2),
       channels=st.integers(1, 4), features=st.integers(1, 5),
       kernel=st.tuples(*[st.integers(1, 5)] * 2), padding=paddings,
       strides=st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]),
       implementation=st.sampled_from(CPU_FORMS), dtype=st.sampled_from([FLOAT32, BFLOAT16]))
def test_convolution_agrees_with_lax(batch, size, channels, features, kernel, padding, strides,
                                     implementation, dtype):
  x, w = draw(0, (batch, *size, channels)), draw(1, (*kernel, channels, features))
  compare(lambda x, w: ops.conv2d(x, w, padding=padding, strides=strides, dtype=dtype,
                                  implementation=implementation),
          lambda x, w: reference_conv(x, w, padding, strides).astype(dtype), x, w, dtype=dtype)


@pytest.mark.parametrize('implementation', CPU_FORMS)
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
@pytest.mark.parametrize('options', [
    {'groups': 2}, {'dilation': (2, 1)}, {'groups': 4, 'strides': (2, 2)},
    {'groups': 2, 'dilation': (2, 2), 'padding': ((1, 2), (0, 3))}])
def test_groups_and_dilation_agree_with_lax(options, dtype, implementation):
  options = {'padding': 'SAME', 'groups': 1, 'dilation': (1, 1), 'strides': (1, 1), **options}
  x, w = draw(0, (3, 9, 8, 4)), draw(1, (3, 3, 4 // options['groups'], 8))
  compare(lambda x, w: ops.conv2d(x, w, implementation=implementation, dtype=dtype, **options),
          lambda x, w: reference_conv(
              x, w, options['padding'], options['strides'], rhs_dilation=options['dilation'],
              feature_group_count=options['groups']).astype(dtype), x, w, dtype=dtype)


@pytest.mark.skipif(NO_ONEDNN is not None, reason='of oneDNN')
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
@pytest.mark.parametrize('batch', [1, 6, 64, 70])
@pytest.mark.parametrize('size, taps, options', [
    (7, 3, {}), (14, 3, {'strides': (2, 2)}), (14, 1, {'strides': (2, 2)}), (5, 5, {}),
    (8, 3, {'padding': 'VALID'}), (9, 3, {'padding': ((1, 0), (2, 0))}),
    (7, 3, {'padding': ((0, 2), (0, 2)), 'dilation': (2, 2)}), (9, 2, {'strides': (3, 3)}),
    (4, 1, {'padding': ((0, 0), (2, 1))}), (28, 3, {'strides': (2, 2)})])
def test_images_of_short_rows_do_not_mix_in_the_gradient_of_weights(size, taps, options, batch,
                                                                    dtype):
  """Of small whole numbers, whose sums are exact; memory is used again by every size."""
  options = {'padding': 'SAME', 'strides': (1, 1), 'dilation': (1, 1), **options}
  whole = lambda seed, shape: np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)
  x, w = whole(0, (batch, size, size, 5)), whole(1, (taps, taps, 5, 4))
  bias = np.zeros(4, np.float32)
  ours = lambda w, bias: ops.conv2d(x, w, bias=bias, dtype=dtype, implementation='onednn',
                                    **options)
  theirs = lambda w, bias: bias.reshape(1, 1, 1, 4) + reference_conv(
      x, w, options['padding'], options['strides'], rhs_dilation=options['dilation'])
  y, pull = jax.vjp(ours, w, bias)
  dy = whole(2, y.shape)
  for got, expected in zip(pull(dy.astype(dtype)), jax.vjp(theirs, w, bias)[1](dy)):
    np.testing.assert_array_equal(got, expected)


@SWEEP
@given(size=st.tuples(*[st.integers(5, 9)] * 2), window=st.tuples(*[st.integers(1, 3)] * 2),
       strides=st.one_of(st.none(), st.tuples(*[st.integers(1, 3)] * 2)),
       padding=st.sampled_from(['SAME', 'VALID', ((1, 0), (0, 1))]),
       kind=st.sampled_from(['max', 'average']), dtype=st.sampled_from([FLOAT32, BFLOAT16]),
       implementation=st.sampled_from(CPU_FORMS), ties=st.booleans())
def test_pools_agree_with_native(size, window, strides, padding, kind, dtype, implementation,
                                 ties):
  x = draw(0, (3, *size, 2), dtype)
  if ties:  # Few distinct values: the first of equals wins in both.
    x = (np.round(x.astype(np.float32)) + 0.0).astype(dtype)  # Without -0.
  if padding not in ('SAME', 'VALID') and 1 in window:
    window = (2, 2)  # A window of padding alone has no gradient to compare.
  pool = {'max': ops.max_pool, 'average': ops.avg_pool}[kind]
  compare(*(lambda x, i=form: pool(x, window, strides, padding, implementation=i)
            for form in (implementation, 'native')), x, dtype=dtype)


@pytest.mark.parametrize('implementation', FORMS)
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
def test_the_first_of_equals_gets_the_gradient(implementation, dtype):
  x = jnp.array([[-1., 3., 0., 0.], [3., 3., 0., 0.]], dtype)[None, :, :, None]
  grad = jax.grad(lambda x: ops.max_pool(x, (2, 2), implementation=implementation).sum())(x)
  np.testing.assert_array_equal(grad[0, :, :, 0], [[0, 1, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize('implementation', FORMS)
def test_average_by_hand(implementation):
  x = jnp.arange(16.).reshape(1, 4, 4, 1)
  got = ops.avg_pool(x, (2, 2), implementation=implementation)
  np.testing.assert_array_equal(got[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
  padded = ops.avg_pool(x, (2, 2), (2, 2), ((1, 1), (1, 1)), implementation=implementation)
  assert padded[0, 0, 0, 0] == 0.0 and padded[0, 2, 2, 0] == 15.0 / 4


def block_reference(x, kernel, bias, window, padding, limit, dtype):
  y = nn.relu(reference_conv(x, kernel, padding) + bias[None, None, None]).astype(dtype)
  y = nn.max_pool(y, window, window)
  return y if limit is None else y[:, :limit[0], :limit[1]]


@SWEEP
@given(size=st.tuples(*[st.integers(7, 12)] * 2), channels=st.integers(1, 3),
       kernel=st.tuples(*[st.integers(1, 4)] * 2), padding=paddings,
       window=st.sampled_from([(2, 2), (1, 1), (2, 3), (3, 3)]),
       limit=st.sampled_from([None, (1, 2), (2, 1)]),
       implementation=st.sampled_from(FORMS),
       dtype=st.sampled_from([FLOAT32, BFLOAT16]))
def test_block_agrees_with_its_parts(size, channels, kernel, padding, window, limit,
                                     implementation, dtype):
  # Small whole numbers are exact in bfloat16, ties included.
  x = np.round(draw(0, (3, *size, channels)))
  w = np.round(draw(1, (*kernel, channels, 4)))
  bias = np.array([0., 1., -2., 3.], np.float32)
  compare(lambda *a: ops.conv_relu_max_pool(*a, window=window, padding=padding, limit=limit,
                                            dtype=dtype, implementation=implementation),
          lambda *a: block_reference(*a, window, padding, limit, dtype), x, w, bias, dtype=dtype)


def batch_norm_reference(x, scale, bias, residual=None, *, window, relu, dtype):
  x = x.astype(FLOAT32)
  mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
  along = lambda vector: vector[None, None, None]
  y = (x - along(mean)) * along(scale / jnp.sqrt(variance + 1e-5)) + along(bias)
  y = y if residual is None else y + residual
  return nn.max_pool(nn.relu(y) if relu else y, window, window).astype(dtype)


@SWEEP
@given(size=st.tuples(*[st.integers(4, 9)] * 2),
       window=st.sampled_from([(2, 2), (1, 1), (2, 3), (3, 3)]), relu=st.booleans(),
       channels=st.sampled_from([5, 16, 21]), implementation=st.sampled_from(FORMS),
       dtype=st.sampled_from([FLOAT32, BFLOAT16]))
def test_batch_norm_agrees_with_its_parts(size, window, relu, channels, implementation, dtype):
  if implementation == 'native' or not relu:
    dtype = FLOAT32  # Where it rounds before it pools, which makes ties.
  x = draw(0, (4, *size, channels)) * 3 + 1
  # Some channels are turned upside down.
  scale, bias = draw(2, (channels,)) * 2, draw(1, (channels,))
  def block(*args):
    return ops.batch_norm(*args, window=window, relu=relu, implementation=implementation,
                          dtype=dtype)[0]
  compare(block, lambda *a: batch_norm_reference(*a, window=window, relu=relu, dtype=dtype),
          x, scale, bias, dtype=dtype)


@pytest.mark.parametrize('implementation', FORMS)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
def test_a_residual_is_added_before_rectifying(relu, dtype, implementation):
  x, scale, bias = draw(0, (4, 5, 6, 18)), draw(1, (18,)), draw(2, (18,))
  # So large that rounding changes no sign.
  residual = 9 * np.sign(draw(3, x.shape))
  compare(lambda x, s, b, r: ops.batch_norm(x, s, b, residual=r, relu=relu, dtype=dtype,
                                            implementation=implementation)[0],
          lambda *a: batch_norm_reference(*a, window=(1, 1), relu=relu, dtype=dtype),
          x, scale, bias, residual, dtype=dtype)
  kernel, residual = draw(4, (3, 3, 18, 7)), 99 * np.sign(draw(5, (4, 3, 3, 7)))
  reference = lambda x, w, b, r: reference_conv(x, w, 'SAME', (2, 2)) + b[None, None, None] + r
  compare(lambda x, w, b, r: ops.conv2d(x, w, bias=b, residual=r, relu=relu, strides=(2, 2),
                                        padding='SAME', dtype=dtype,
                                        implementation=implementation),
          lambda *a: (nn.relu(reference(*a)) if relu else reference(*a)).astype(dtype),
          x, kernel, draw(6, (7,)), residual, dtype=dtype)


@pytest.mark.parametrize('implementation', FORMS)
@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_batch_norm_keeps_the_statistics_of_flax(implementation, strides, padding):
  x, kernel = draw(0, (6, 7, 8, 2)) * 2 + 1, draw(1, (3, 3, 2, 3))
  def ours(running, x, variables=None, residual=None, window=(1, 1), **kwargs):
    module = ops.ConvBatchNorm(implementation, running, padding=padding, window=window,
                               strides=strides)
    if variables is None:
      return module.init(jax.random.key(0), x, kernel)
    return module.apply(variables, x, kernel, residual, **kwargs)
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
  y = reference_conv(x, kernel, padding, strides)
  variables = ours(False, x)
  assert jax.tree.structure(variables) == jax.tree.structure(theirs.init(jax.random.key(0), y))
  got, new = ours(False, x, variables, mutable=['batch_stats'])
  expected, expected_new = theirs.apply(variables, y, mutable=['batch_stats'])
  assert_close((got, new), (nn.relu(expected), expected_new))
  # One channel is turned upside down.
  params = {'scale': np.array([1., -2., .5], np.float32), 'bias': draw(2, (3,))}
  merged = {'params': params, **new}
  expected = nn.BatchNorm(use_running_average=True).apply(merged, y)
  residual = draw(3, y.shape)
  assert_close(ours(True, x, merged, residual), nn.relu(expected + residual))
  if strides == (1, 1):
    assert_close(ours(True, x, merged, window=(2, 2)),
                 nn.max_pool(nn.relu(expected), (2, 2), (2, 2)))


@pytest.mark.parametrize('implementation', FORMS)
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
def test_batch_norm_without_a_convolution_is_that_of_flax(implementation, dtype):
  x, residual = draw(0, (6, 4, 6, 3)) * 2 + 1, draw(3, (6, 4, 6, 3))
  variables = {'params': {'scale': np.array([1., -2., .5], np.float32), 'bias': draw(2, (3,))},
               'batch_stats': {'mean': draw(4, (3,)), 'var': np.float32([1, 2, 3])}}
  for running in (False, True):
    module = ops.BatchNorm(implementation, running, window=(2, 2), dtype=dtype)
    assert (jax.tree.map(jnp.shape, module.init(jax.random.key(0), x))
            == jax.tree.map(jnp.shape, variables))
    got, new = module.apply(variables, x.astype(dtype), residual, mutable=['batch_stats'])
    expected, expected_new = nn.BatchNorm(running, momentum=0.9).apply(
        variables, x.astype(dtype), mutable=['batch_stats'])
    expected = nn.max_pool(nn.relu(expected + residual), (2, 2), (2, 2))
    assert got.dtype == dtype
    assert_close((got.astype(FLOAT32), new), (expected, expected_new), dtype)


@pytest.mark.parametrize('implementation', FORMS)
def test_a_pool_leaves_out_neither_residual_nor_strides_nor_a_missing_relu(implementation):
  x, scale, bias = draw(0, (4, 6, 6, 3)), draw(1, (3,)), draw(2, (3,))
  compare(lambda *a: ops.batch_norm(*a[:3], residual=a[3], relu=True, window=(2, 2),
                                    implementation=implementation)[0],
          lambda *a: batch_norm_reference(*a, window=(2, 2), relu=True, dtype=FLOAT32),
          x, scale, bias, 9 * np.sign(draw(3, x.shape)))
  kernel, x = draw(4, (3, 3, 3, 5)), draw(5, (4, 8, 8, 3))
  for relu, strides in ((False, (1, 1)), (True, (2, 2))):
    module = ops.ConvBatchNorm(implementation, True, relu=relu, window=(2, 2), strides=strides)
    y = reference_conv(x, kernel, 'SAME', strides)
    residual = 9 * draw(6, y.shape)
    for added in (None, residual):
      expected = nn.BatchNorm(use_running_average=True).apply(
          module.init(jax.random.key(0), x, kernel), y)
      expected = expected if added is None else expected + added
      expected = nn.max_pool(nn.relu(expected) if relu else expected, (2, 2), (2, 2))
      assert_close(module.apply(module.init(jax.random.key(0), x, kernel), x, kernel, added),
                   expected)


def test_useful_size_reads_no_more_than_is_needed():
  assert ops.useful_size((5, 5), 3, (2, 2)) == (12, 12)
  assert ops.useful_size((12, 12), 3, (2, 2)) == (26, 26)


def test_bytes_are_scaled_and_rounded_as_by_the_compiler():
  bytes_ = jnp.arange(256, dtype=jnp.uint8)
  expected = (bytes_.astype(jnp.float32) * jnp.float32(1 / 255)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(ops.pixels(bytes_, jnp.bfloat16).view(jnp.uint16),
                                expected.view(jnp.uint16))


@pytest.mark.parametrize('implementation', FORMS)
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
def test_dense_agrees_with_a_product(implementation, dtype):
  x, w, bias = draw(0, (2, 3, 7)), draw(1, (7, 5)), draw(2, (5,))
  for biases in ((bias,), ()):
    compare(lambda *a: ops.dense(*a, dtype=dtype, implementation=implementation),
            lambda x, w, *b: (jnp.einsum('abi,io->abo', x, w, precision='highest')
                              + sum(b_[None, None] for b_ in b)).astype(dtype),
            x, w, *biases, dtype=dtype)


class Network(nn.Module):
  """Every layer once."""
  implementation: str
  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x):
    common = {'implementation': self.implementation, 'dtype': self.dtype}
    x = ops.ConvReluMaxPool(4, (3, 3), window=(2, 2), padding='VALID', **common)(x)
    x = nn.relu(ops.Conv(6, (3, 3), padding='SAME', **common)(x))
    x = ops.max_pool(x, (2, 2), implementation=self.implementation)
    x = ops.avg_pool(x, (2, 2), implementation=self.implementation)
    return ops.Dense(5, **common)(x.reshape(x.shape[0], -1))


class FlaxNetwork(nn.Module):
  """The same of Flax's own layers."""

  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), padding='VALID', name='ConvReluMaxPool_0')(x)),
                    (2, 2), (2, 2))
    x = nn.relu(nn.Conv(6, (3, 3), name='Conv_0')(x))
    x = nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (2, 2), (2, 2))
    return nn.Dense(5, name='Dense_0')(x.reshape(x.shape[0], -1))


def test_parameters_are_those_of_flax():
  x = draw(0, (2, 14, 14, 1))
  expected = jax.jit(FlaxNetwork().init)(jax.random.key(3), x)
  reference = FlaxNetwork().apply(expected, x)
  for implementation in FORMS:
    for dtype in (FLOAT32, BFLOAT16):
      got = jax.jit(Network(implementation, dtype).init)(jax.random.key(3), x)
      jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert_close(jax.jit(Network(implementation).apply)(expected, x), reference)


def loss(network, params, x):
  return jnp.sum(network.apply(params, x).astype(FLOAT32) ** 2)


@functools.cache
def small_problem(implementation):
  x = draw(0, (8, 14, 14, 1))
  network = Network(implementation)
  params = jax.jit(network.init)(jax.random.key(3), x)
  return network, params, x, jax.jit(jax.grad(functools.partial(loss, network)))(params, x)


@pytest.mark.parametrize('implementation', CPU_FORMS)
def test_members_of_a_population_get_their_own_gradients(implementation):
  network, params, x, gradients = small_problem(implementation)
  factors = jnp.array([1.0, 0.5, -2.0])
  scaled = lambda f: jax.tree.map(lambda p: p * f, params)
  members = jax.vmap(scaled)(factors)
  got = jax.jit(jax.vmap(jax.grad(functools.partial(loss, network)), (0, None)))(members, x)
  assert_close(jax.tree.map(lambda g: g[0], got), gradients)
  alone = jax.jit(jax.grad(functools.partial(loss, network)))(scaled(0.5), x)
  assert_close(jax.tree.map(lambda g: g[1], got), alone)


@pytest.mark.parametrize('implementation', CPU_FORMS)
def test_in_a_loop_as_alone(implementation):
  network, params, x, _ = small_problem(implementation)
  grad = jax.jit(jax.grad(functools.partial(loss, network)))
  step = lambda p: jax.tree.map(lambda p, g: p - 1e-3 * g, p, grad(p, x))
  alone = step(step(params))
  assert_close(jax.jit(lambda p: jax.lax.scan(lambda p, _: (step(p), None), p, length=2)[0])(
      params), alone)
  assert_close(jax.jit(lambda p: jax.lax.fori_loop(0, 2, lambda _, p: step(p), p))(params), alone)


@pytest.mark.parametrize('implementation', CPU_FORMS)
def test_a_sharded_batch_gives_the_same_gradients(implementation):
  network, params, x, gradients = small_problem(implementation)
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  place = lambda spec: NamedSharding(mesh, spec)
  sharded = jax.device_put(x, place(PartitionSpec('data')))
  step = jax.jit(jax.grad(functools.partial(loss, network)), out_shardings=place(PartitionSpec()))
  assert_close(step(jax.device_put(params, place(PartitionSpec())), sharded), gradients)


@pytest.mark.parametrize('implementation', CPU_FORMS)
def test_batch_norm_sharded_and_vectorised(implementation):
  """Statistics are of the whole batch however it is split; members keep their own."""
  x, scale, bias = draw(0, (8, 6, 6, 3)), draw(1, (3,)), draw(2, (3,))
  def total(x, scale, bias):
    y, mean, variance = ops.batch_norm(x, scale, bias, window=(2, 2), relu=True,
                                       implementation=implementation)
    return jnp.sum(y ** 2), (mean, variance)
  f = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
  alone = jax.jit(f)(x, scale, bias)
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  assert_close(jax.jit(f)(sharded, scale, bias), alone)
  members = jax.jit(jax.vmap(f))(jnp.stack([x, -2 * x]), jnp.stack([scale, -scale]),
                                 jnp.stack([bias, bias]))
  assert_close(jax.tree.map(lambda a: a[0], members), alone)
  assert_close(jax.tree.map(lambda a: a[1], members), jax.jit(f)(-2 * x, -scale, bias))


def test_defaults():
  assert ops.default_implementation('cpu') == ('matmul' if NO_ONEDNN else 'onednn')
  assert ops.default_implementation('cpu', devices=4) == 'matmul'
  assert {ops.default_implementation(p) for p in ('gpu', 'tpu')} == {'native'}
  assert ops.default_precision('gpu') == 'float32' and ops.default_precision('tpu') == 'bfloat16'
  assert ops.default_precision('cpu') in ('bfloat16', 'float32')


# oneDNN alone.

needs_onednn = pytest.mark.skipif(bool(NO_ONEDNN), reason=f'oneDNN cannot be had: {NO_ONEDNN}')


def test_without_onednn_one_sentence_says_what_to_do(monkeypatch, caplog):
  monkeypatch.setattr(build, 'problem', lambda: 'there is no C++ compiler: install g++')
  with caplog.at_level(logging.WARNING, logger='absl'):
    assert ops.default_implementation('cpu') == 'matmul'
  assert 'as slow as oneDNN\'s: there is no C++ compiler: install g++.' in caplog.text
  with pytest.raises(BackendError, match=r'install g\+\+\); or set train.operations=matmul'):
    ops.conv2d(draw(0, (1, 4, 4, 1)), draw(1, (3, 3, 1, 1)), padding='SAME',
               implementation='onednn')


@needs_onednn
@pytest.mark.parametrize(('strides', 'padding'), [((2, 2), ((1, 0), (0, 1))), ((3, 3), 'SAME')])
def test_pixels_that_no_window_reaches_get_no_gradient(strides, padding):
  compare(*(lambda x, i=form: ops.max_pool(x, (2, 2), strides, padding, implementation=i)
            for form in ('onednn', 'native')), draw(0, (3, 4, 4, 2)))


@needs_onednn
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_passes_through_as_in_lax(value, dtype):
  x, w = draw(0, (2, 6, 6, 16)), draw(1, (3, 3, 16, 16))
  x[1, 2, 3, 4] = value
  x = jnp.asarray(x, dtype)
  conv = lambda i: ops.conv2d(x, w, padding='SAME', dtype=dtype, implementation=i)
  rectified = lambda i: ops.conv2d(x, w, padding='SAME', relu=True, dtype=dtype, implementation=i)
  block = lambda i: ops.conv_relu_max_pool(x, w, jnp.zeros(16), window=(2, 2), padding='SAME',
                                           dtype=dtype, implementation=i)
  pool = lambda i: ops.max_pool(x, (2, 2), implementation=i)
  mean = lambda i: ops.avg_pool(x, (2, 2), implementation=i)
  norm = lambda i: ops.batch_norm(x, jnp.ones(16), jnp.zeros(16), implementation=i)[0]
  for f in (conv, rectified, block, pool, mean, norm):
    got, expected = np.asarray(f('onednn'), np.float32), np.asarray(f('native'), np.float32)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))


@needs_onednn
def test_nothing_in_gives_nothing_out():
  for x, kernel in ((np.zeros((0, 5, 5, 3)), np.ones((3, 3, 3, 4))),
                    (np.zeros((2, 2, 2, 3)), np.ones((3, 3, 3, 4)))):
    f = lambda x, k: ops.conv2d(x, k, padding='VALID', implementation='onednn').sum()
    for got in jax.grad(f, (0, 1))(x.astype(np.float32), kernel.astype(np.float32)):
      assert not np.any(got)
  empty = jnp.zeros((0, 4, 4, 2))
  assert ops.max_pool(empty, (2, 2), implementation='onednn').shape == (0, 2, 2, 2)
  y, mean, _ = ops.batch_norm(empty, jnp.ones(2), jnp.zeros(2), window=(2, 2),
                              implementation='onednn')
  assert y.shape == (0, 2, 2, 2) and not np.any(mean)


@needs_onednn
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
@pytest.mark.parametrize('shape', [(5, 7), (3, 2, 4, 33), (1, 1)])
def test_dropout_draws_the_bits_of_jax(shape, dtype):
  key, x = jax.random.key(3), draw(0, shape, dtype)
  words = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
  bits = jnp.concatenate([words & 0xFFFF, words >> 16], -1)[..., :shape[-1]]
  below, scale = jnp.uint32(40_000), jnp.float32(1.5)
  expected = lambda x: jnp.where(bits < below, x * scale.astype(dtype), jnp.zeros((), dtype))
  compare(lambda x: onednn.dropout(x, jax.random.key_data(key), below, scale), expected, x,
          dtype=dtype)


@needs_onednn
def test_bfloat16_is_computed_as_float32_where_the_processor_has_no_other(monkeypatch):
  monkeypatch.setattr(build, 'convolves_bfloat16', lambda: False)
  x, kernel, residual = (draw(i, shape, BFLOAT16) for i, shape in enumerate(
      [(2, 6, 6, 8), (3, 3, 8, 16), (2, 6, 6, 16)]))
  wide = lambda *args: reference_conv(*(arg.astype(FLOAT32) for arg in args[:2]), 'SAME')
  compare(lambda x, kernel, residual: ops.conv2d(
      x, kernel.astype(FLOAT32), padding='SAME', implementation='onednn', residual=residual,
      dtype=BFLOAT16), lambda x, kernel, residual: (wide(x, kernel) + residual).astype(BFLOAT16),
          x, kernel, residual, dtype=BFLOAT16)
  # Kernels are rounded: 1 + 2^-9 is no bfloat16.
  nothing = ops.conv2d(jnp.array([1, -1], BFLOAT16).reshape(1, 1, 1, 2),
                       jnp.array([1 + 2**-9, 1]).reshape(1, 1, 2, 1), padding='SAME',
                       implementation='onednn', dtype=BFLOAT16)
  assert not nothing.any()


@needs_onednn
def test_what_the_processor_convolves_is_asked_with_the_handlers_loaded():
  asked = subprocess.run(
      [sys.executable, '-c', 'from fmnist_jax.ops import build\n'
       'print(build.convolves_bfloat16())'], capture_output=True, text=True, check=True).stdout
  assert asked.strip() == str(build.convolves_bfloat16())  # Loaded here: see NO_ONEDNN.


_BITS = """
import os, sys
if sys.argv[1] == '1':
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import hashlib, jax, jax.numpy as jnp, numpy as np
from fmnist_jax import ops
key = jax.random.key(0)
x, w, b = (jax.random.normal(key, s) for s in ((96, 12, 12, 8), (3, 3, 8, 16), (16,)))
def f(x, w, b):
  y = ops.conv_relu_max_pool(x, w, b, window=(2, 2), padding='SAME', dtype=jnp.bfloat16,
                             implementation='onednn')
  y, m, v = ops.batch_norm(y, b, b, window=(2, 2), relu=True, implementation='onednn')
  y, n, v = ops.batch_norm(y, b, b, residual=y, relu=True, implementation='onednn')
  return jnp.sum(y.astype(jnp.float32) ** 2) + 0 * (m + n).sum()
found = jax.jit(jax.grad(f, (0, 1, 2)))(x, w, b)
print(hashlib.sha256(b''.join(np.asarray(one).tobytes() for one in found)).hexdigest())
"""


def in_a_process_of_its_own(program, *args):
  """What a Python program prints, on one device."""
  return subprocess.run(
      [sys.executable, '-c', program, *args], text=True, capture_output=True, check=True,
      env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1]), 'XLA_FLAGS': ''}
  ).stdout


@pytest.mark.slow
@needs_onednn
def test_bits_are_the_same_in_every_process_and_for_any_number_of_threads():
  assert len({in_a_process_of_its_own(_BITS, cores) for cores in ('1', 'all', 'all')}) == 1


_MEMORY = """
import os, pathlib
import jax, numpy as np
from fmnist_jax import ops
def resident():
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE')
x, w = np.ones((16, 8, 8, 4), np.float32), np.ones((3, 3, 4, 8), np.float32)
f = jax.jit(lambda x, w: jax.lax.fori_loop(0, 500, lambda _, w: w - 1e-9 * jax.grad(
    lambda w: ops.max_pool(ops.conv2d(x, w, padding='SAME', implementation='onednn'), (2, 2),
                           implementation='onednn').sum())(w), w))
for calls in (4, 20):
  before = resident()
  for _ in range(calls):
    w = jax.block_until_ready(f(x, w))
print(resident() - before)
"""


@needs_onednn
def test_memory_does_not_grow():
  # In 10,000 steps; one array of a step that is lost would make 40 times as much.
  assert int(in_a_process_of_its_own(_MEMORY)) < 2**22


# Building.

@needs_onednn
@pytest.mark.parametrize('damage', [lambda p: p.write_bytes(p.read_bytes()[:-100]),
                                    lambda p: p.write_bytes(b'not ours'),
                                    lambda p: p.with_suffix('.sha256').unlink()])
def test_a_binary_that_is_not_whole_is_made_anew(tmp_path, monkeypatch, damage):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  made = []
  def compiler(command, **_):
    made.append(command)
    pathlib.Path(command[command.index('-o') + 1]).write_bytes(b'native code' * 100)
    return subprocess.CompletedProcess(command, 0, '', '')
  monkeypatch.setattr(build.subprocess, 'run', compiler)
  path = build.compiled(pathlib.Path('libdnnl.so.3'))
  assert build.compiled(pathlib.Path('libdnnl.so.3')) == path and len(made) == 1
  damage(path)
  build.compiled(pathlib.Path('libdnnl.so.3'))
  assert len(made) == 2 and path.read_bytes() == b'native code' * 100
  assert {entry.name for entry in path.parent.iterdir()} == {
      '.lock', path.name, path.with_suffix('.sha256').name}


@needs_onednn
def test_handlers_that_compute_wrongly_are_not_used(monkeypatch):
  monkeypatch.setattr(build, '_known_answer', lambda dtype: np.zeros(4))
  with pytest.raises(build.Unavailable, match='compute wrongly'):
    build.check()


@needs_onednn
def test_what_keeps_it_from_being_built_is_told(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(build.shutil, 'which', lambda _: None)
  monkeypatch.setattr(build.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(build.Unavailable, match=r'there is no C\+\+ compiler: install g\+\+, or pip'):
    build.compiled(pathlib.Path('x'))
  monkeypatch.undo()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('CXX', 'false')
  with pytest.raises(build.Unavailable, match='false failed'):
    build.compiled(pathlib.Path('x'))
  (tmp_path / 'fmnist_jax' / 'onednn').chmod(0o777)
  with pytest.raises(build.Unavailable, match='others can write there'):
    build.compiled(pathlib.Path('x'))
  monkeypatch.setattr(build, '_HEADERS', 'no-such-package')
  with pytest.raises(build.Unavailable, match='not installed: pip install'):
    build.compiled(pathlib.Path('x'))
