"""Every shipped config is built and stepped."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, sharding, step
from fmnist_jax.programs import Programs, hyper_arrays
from fmnist_jax.train import resolve

FILES = sorted(path for path in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py')
               if path.stem != '__init__')
SHAPES = {'fashion_mnist': (28, 28, 1), 'synthetic': (28, 28, 1), 'cifar10': (32, 32, 3)}
PARAMETERS = {'mlp': 101_770, 'mlp_regularized': 101_770, 'ann': 109_386, 'cnn': 225_034}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_config_is_valid_explained_and_trains(path):
  config = config_file.load(str(path))
  head = path.read_text().split('"""')[1]
  assert f'python -m fmnist_jax.main --config=configs/{path.stem}.py' in head
  stated = r'\d\d\.\d % on the test images of .* \d+ s from start to report'
  assert bool(re.search(stated, head.replace('\n', ' '))) != ('Not measured' in head), (
      'its header states accuracy and time, or says that they are not known')
  # A few examples: what is tested is that the parts fit together and learn.
  config = config_lib.validate(config_lib.replace(config, {'data.batch_size': 16}))
  config = resolve(config, 'cpu', True)
  mesh = sharding.make_mesh(16, 1)
  shape = SHAPES[config.data.name]
  programs = Programs(config, mesh, shape, 10, train_examples=64)
  whole = sharding.replicated(mesh)
  random = np.random.default_rng(0)
  images = sharding.put(random.integers(0, 256, (64, *shape), np.uint8), whole)
  labels = sharding.put(random.integers(0, 10, 64).astype(np.int32), whole)
  hyper = sharding.put(hyper_arrays(config), whole)
  state = jax.jit(programs.init)(jnp.int32(0), hyper)
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert count == PARAMETERS.get(path.stem, count)
  assert f'{count:,} parameters' in head.replace('\n', ' '), 'its header states the parameters'
  order = jax.jit(programs.order)(state.key, jnp.int32(0))
  new, sums = jax.jit(programs.train)(state, step.Sums.zero(), hyper, images, labels, order,
                                      jnp.int32(0), jnp.int32(4))
  assert int(new.step) == 4 and int(sums.count) == 64 and int(sums.bad_step) == -1
  assert 1.5 < float(sums.loss) / 64 < 20
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, new.params)
  # While shifts are 0, a channel's scale between ReLU and a depthwise convolution is undone by the
  # BatchNorm after that.
  undone = re.compile(r"\['InvertedResidual_\d+'\]\['BatchNorm_0'\]\['scale'\]")
  still = [name for path, learned in jax.tree_util.tree_leaves_with_path(changed)
           if not learned and not undone.fullmatch(name := jax.tree_util.keystr(path))]
  assert not still, 'every parameter learns'
