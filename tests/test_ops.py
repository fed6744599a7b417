"""Operations against jax.lax, by value and by gradient, and under the transformations in use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmnist_jax import ops

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32
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
       dtype=st.sampled_from([FLOAT32, BFLOAT16]))
def test_convolution_agrees_with_lax(batch, size, channels, features, kernel, padding, strides,
                                     dtype):
  x, w = draw(0, (batch, *size, channels)), draw(1, (*kernel, channels, features))
  compare(lambda x, w: ops.conv2d(x, w, padding=padding, strides=strides, dtype=dtype,
                                  implementation='matmul'),
          lambda x, w: reference_conv(x, w, padding, strides).astype(dtype), x, w, dtype=dtype)


@pytest.mark.parametrize('options', [{'groups': 2}, {'dilation': (2, 1)}])
def test_what_products_do_not_cover_is_native(options):
  x = draw(0, (3, 8, 8, 4))
  w = draw(1, (3, 3, 4 // options.get('groups', 1), 6))
  got = ops.conv2d(x, w, padding='SAME', implementation='matmul', **options)
  assert_close(got, reference_conv(x, w, 'SAME', rhs_dilation=options.get('dilation', (1, 1)),
                                   feature_group_count=options.get('groups', 1)))


@SWEEP
@given(size=st.tuples(*[st.integers(5, 9)] * 2), window=st.tuples(*[st.integers(1, 3)] * 2),
       strides=st.one_of(st.none(), st.tuples(*[st.integers(1, 3)] * 2)),
       padding=st.sampled_from(['SAME', 'VALID', ((1, 0), (0, 1))]),
       kind=st.sampled_from(['max', 'average']), dtype=st.sampled_from([FLOAT32, BFLOAT16]),
       ties=st.booleans())
def test_pools_agree_with_native(size, window, strides, padding, kind, dtype, ties):
  x = draw(0, (3, *size, 2), dtype)
  if ties:  # Few distinct values: the first of equals wins in both.
    x = (np.round(x.astype(np.float32)) + 0.0).astype(dtype)  # Without -0.
  if padding not in ('SAME', 'VALID') and 1 in window:
    window = (2, 2)  # A window of padding alone has no gradient to compare.
  pool = {'max': ops.max_pool, 'average': ops.avg_pool}[kind]
  compare(*(lambda x, i=implementation: pool(x, window, strides, padding, implementation=i)
            for implementation in ('matmul', 'native')), x, dtype=dtype)


@pytest.mark.parametrize('implementation', ['matmul', 'native'])
@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
def test_the_first_of_equals_gets_the_gradient(implementation, dtype):
  x = jnp.array([[-1., 3., 0., 0.], [3., 3., 0., 0.]], dtype)[None, :, :, None]
  grad = jax.grad(lambda x: ops.max_pool(x, (2, 2), implementation=implementation).sum())(x)
  np.testing.assert_array_equal(grad[0, :, :, 0], [[0, 1, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize('implementation', ['matmul', 'native'])
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
       implementation=st.sampled_from(['matmul', 'native']),
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


def batch_norm_reference(x, scale, bias, window, dtype):
  x = x.astype(FLOAT32)
  mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
  along = lambda vector: vector[None, None, None]
  y = (x - along(mean)) * along(scale / jnp.sqrt(variance + 1e-5)) + along(bias)
  return nn.max_pool(nn.relu(y), window, window).astype(dtype)


@SWEEP
@given(size=st.tuples(*[st.integers(4, 9)] * 2),
       window=st.sampled_from([(2, 2), (1, 1), (2, 3), (3, 3)]),
       implementation=st.sampled_from(['matmul', 'native']),
       layout=st.sampled_from(['NHWC', 'CHWN']), dtype=st.sampled_from([FLOAT32, BFLOAT16]))
def test_batch_norm_block_agrees_with_its_parts(size, window, implementation, layout, dtype):
  x = draw(0, (4, *size, 5)) * 3 + 1
  # One channel is turned upside down.
  scale, bias = np.array([1., -2., .5, 2., 3.], np.float32), draw(1, (5,))
  def block(x, scale, bias):
    y, _, _ = ops.batch_norm_relu_max_pool(
        ops.to_layout(x, layout), scale, bias, window=window, implementation=implementation,
        dtype=dtype, layout=layout)
    return ops.to_layout(y, 'NHWC', layout)
  compare(block, lambda *a: batch_norm_reference(*a, window, dtype), x, scale, bias, dtype=dtype)


@pytest.mark.parametrize('implementation', ['matmul', 'native'])
@pytest.mark.parametrize('layout', ['NHWC', 'CHWN'])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_batch_norm_keeps_the_statistics_of_flax(implementation, layout, padding):
  x, kernel = draw(0, (6, 7, 8, 2)) * 2 + 1, draw(1, (3, 3, 2, 3))
  def ours(window, running, x, variables=None, **kwargs):
    module = ops.ConvBatchNormReluMaxPool(window, implementation, running, padding, layout=layout)
    x = ops.to_layout(x, layout)
    if variables is None:
      return module.init(jax.random.key(0), x, kernel)
    return module.apply(variables, x, kernel, **kwargs)
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
  y = ops.conv2d(x, kernel, padding=padding, implementation='native')
  variables = ours((1, 1), False, x)
  assert jax.tree.structure(variables) == jax.tree.structure(theirs.init(jax.random.key(0), y))
  got, new = ours((1, 1), False, x, variables, mutable=['batch_stats'])
  expected, expected_new = theirs.apply(variables, y, mutable=['batch_stats'])
  assert_close((ops.to_layout(got, 'NHWC', layout), new), (nn.relu(expected), expected_new))
  # One channel is turned upside down.
  params = {'scale': np.array([1., -2., .5], np.float32), 'bias': draw(2, (3,))}
  merged = {'params': params, **new}
  expected = nn.relu(nn.BatchNorm(use_running_average=True).apply(merged, y))
  for window in ((1, 1), (2, 2)):
    got = ops.to_layout(ours(window, True, x, merged), 'NHWC', layout)
    assert_close(got, nn.max_pool(expected, window, window))


@pytest.mark.parametrize('implementation', ['matmul', 'native'])
def test_layouts_agree(implementation):
  x, w, bias = draw(0, (3, 8, 8, 2)), draw(1, (3, 3, 2, 4)), draw(2, (4,))
  for f in (lambda x, layout: ops.conv2d(x, w, padding='SAME', implementation=implementation,
                                         layout=layout),
            lambda x, layout: ops.max_pool(x, (2, 2), implementation=implementation,
                                           layout=layout),
            lambda x, layout: ops.avg_pool(x, (2, 2), implementation=implementation,
                                           layout=layout),
            lambda x, layout: ops.conv_relu_max_pool(
                x, w, bias, window=(2, 2), padding='VALID', implementation=implementation,
                layout=layout)):
    other = ops.to_layout(f(ops.to_layout(x, 'CHWN'), 'CHWN'), 'NHWC', 'CHWN')
    assert_close(other, f(x, 'NHWC'))


@pytest.mark.parametrize('shape', [(5, 4, 6, 1), (3, 2, 2, 3), (2, 3, 3, 1)])
def test_bytes_change_their_layout_like_anything_else(shape):
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  np.testing.assert_array_equal(ops.to_layout(images, 'CHWN'), images.transpose(3, 1, 2, 0))


@pytest.mark.parametrize('dtype', [FLOAT32, BFLOAT16])
@pytest.mark.parametrize('layout', ['NHWC', 'CHWN'])
@pytest.mark.parametrize('implementation', ['matmul', 'native'])
def test_dense_flattens_images(implementation, layout, dtype):
  x, kernel, bias = draw(0, (6, 3, 2, 4)), draw(1, (24, 5)), draw(2, (5,))
  compare(lambda x, *a: ops.dense(ops.to_layout(x, layout), *a, implementation=implementation,
                                  dtype=dtype, layout=layout),
          lambda x, kernel, bias: (x.reshape(6, -1) @ kernel + bias[None]).astype(dtype),
          x, kernel, bias, dtype=dtype)


def test_useful_size_reads_no_more_than_is_needed():
  assert ops.useful_size((5, 5), 3, (2, 2)) == (12, 12)
  assert ops.useful_size((12, 12), 3, (2, 2)) == (26, 26)


@pytest.mark.parametrize('implementation', ['matmul', 'native'])
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
  for implementation in ('matmul', 'native'):
    for dtype in (FLOAT32, BFLOAT16):
      got = jax.jit(Network(implementation, dtype).init)(jax.random.key(3), x)
      jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert_close(jax.jit(Network(implementation).apply)(expected, x), reference)


def loss(network, params, x):
  return jnp.sum(network.apply(params, x).astype(FLOAT32) ** 2)


@functools.cache
def small_problem():
  x = draw(0, (8, 14, 14, 1))
  network = Network('matmul')
  params = jax.jit(network.init)(jax.random.key(3), x)
  return network, params, x, jax.jit(jax.grad(functools.partial(loss, network)))(params, x)


def test_members_of_a_population_get_their_own_gradients():
  network, params, x, gradients = small_problem()
  factors = jnp.array([1.0, 0.5, -2.0])
  scaled = lambda f: jax.tree.map(lambda p: p * f, params)
  members = jax.vmap(scaled)(factors)
  got = jax.jit(jax.vmap(jax.grad(functools.partial(loss, network)), (0, None)))(members, x)
  assert_close(jax.tree.map(lambda g: g[0], got), gradients)
  alone = jax.jit(jax.grad(functools.partial(loss, network)))(scaled(0.5), x)
  assert_close(jax.tree.map(lambda g: g[1], got), alone)


def test_in_a_loop_as_alone():
  network, params, x, _ = small_problem()
  grad = jax.jit(jax.grad(functools.partial(loss, network)))
  step = lambda p: jax.tree.map(lambda p, g: p - 1e-3 * g, p, grad(p, x))
  alone = step(step(params))
  assert_close(jax.jit(lambda p: jax.lax.scan(lambda p, _: (step(p), None), p, length=2)[0])(
      params), alone)
  assert_close(jax.jit(lambda p: jax.lax.fori_loop(0, 2, lambda _, p: step(p), p))(params), alone)


def test_a_sharded_batch_gives_the_same_gradients():
  network, params, x, gradients = small_problem()
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  place = lambda spec: NamedSharding(mesh, spec)
  sharded = jax.device_put(x, place(PartitionSpec('data')))
  step = jax.jit(jax.grad(functools.partial(loss, network)), out_shardings=place(PartitionSpec()))
  assert_close(step(jax.device_put(params, place(PartitionSpec())), sharded), gradients)


def test_batch_norm_sharded_and_vectorised():
  """Statistics are of the whole batch however it is split; members keep their own."""
  x, scale, bias = draw(0, (8, 6, 6, 3)), draw(1, (3,)), draw(2, (3,))
  def total(x, scale, bias):
    y, mean, variance = ops.batch_norm_relu_max_pool(x, scale, bias, window=(2, 2),
                                                     implementation='matmul')
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
  assert ops.default_implementation('cpu') == 'matmul'
  assert {ops.default_implementation(p) for p in ('gpu', 'tpu')} == {'native'}
  assert ops.default_precision('gpu') == 'float32' and ops.default_precision('tpu') == 'bfloat16'
  assert ops.default_precision('cpu') in ('bfloat16', 'float32')
