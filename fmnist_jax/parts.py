"""Whether the parts of a config fit together: each is traced on shapes, nothing is computed.

What somebody's own part does wrong is so told in one sentence, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmnist_jax import config as config_lib
from fmnist_jax import models, settings
from fmnist_jax.data import Place
from fmnist_jax.errors import ConfigError, UserError, told
from fmnist_jax.freezing import Freezing
from fmnist_jax.optimizers import Horizon


def check(config: config_lib.Config, image_shape: tuple[int, int, int], num_classes: int,
          horizon: Horizon) -> None:
  """Traces model, augmentations, loss and optimiser with batches of their shapes.

  Raises:
    ConfigError: naming the part, what is wrong with it, and the line of it where something raised.
  """
  params = models.check_fits(config.model, image_shape, num_classes)
  freezing = Freezing(config.train.freeze)
  freezing.check(params)
  batch = config.data.batch_size
  # As when they are compiled: continuous settings are arrays.
  values = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in config_lib.continuous(config)}
  key = jax.eval_shape(lambda: jax.random.key(0, impl='threefry2x32'))
  images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
  targets = jax.ShapeDtypeStruct((batch, num_classes), jnp.float32)
  number: Any = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  place = Place(key, number(), number(batch))

  for i, entry in enumerate(config.data.augment):
    name = f'The augmentation {settings.kind_name(type(entry))}'
    found = _traced(name, lambda values, place, *args, i=i: config_lib.replace(
        config, values).data.augment[i].at(place)(*args), values, place, key, images, targets)
    if not (isinstance(found, (tuple, list)) and [getattr(x, 'shape', None) for x in found] == [
        images.shape, targets.shape] and found[0].dtype in (jnp.uint8, jnp.float32)):
      raise ConfigError(f'{name} gives {_shown(found)} for {_shown((images, targets))}; it must '
                        'give images, uint8 or float32, and targets of these shapes.')
    images, targets = found

  name = f'The loss {settings.kind_name(type(config.loss))}'
  loss = _traced(name, lambda values, *args: config_lib.replace(
      config, values).loss.weighed(np.ones(num_classes, int))(*args),
                 values, jax.ShapeDtypeStruct(targets.shape, jnp.float32), targets)
  if getattr(loss, 'shape', None) != (batch,) or not jnp.issubdtype(loss.dtype, jnp.floating):
    raise ConfigError(f'{name} gives {_shown(loss)} for logits and targets {[*targets.shape]}; it '
                      f'must give the loss of each example, floating point [{batch}].')

  def advance(values: Any, params: Any) -> Any:
    tx = freezing.optimizer(config_lib.replace(config, values).optim.build(horizon))
    state = tx.init(params)
    updates, after = optax.with_extra_args_support(tx).update(
        params, state, params, grad_fn=lambda params, _: params)
    return (params, state), (optax.apply_updates(params, updates), after)

  inside = [settings.kind_name(type(one)) for _, _, one in settings.sections(config.optim)
            if isinstance(one, config_lib.Schedule)]
  schedule = f'The schedule {inside[-1]}' if inside else 'The learning rate'
  rate = _traced(schedule,
                 lambda values, step: jnp.asarray(config_lib.replace(
                     config, values).optim.rate(horizon)(step)),
                 values, jax.ShapeDtypeStruct((), jnp.int32))
  if rate.shape:
    raise ConfigError(f'{schedule} gives {_shown(rate)} for a step; it must give a '
                      'number.')
  name = f'The optimiser {settings.kind_name(type(config.optim))}'
  before, after = _traced(name, advance, values, params)
  if _types(before) != _types(after):
    raise ConfigError(f'{name} changes shape or type of the parameters, or of its own state, in a '
                      'step; both must stay what they are.')


def _traced(name: str, function: Callable, *args: Any) -> Any:
  try:
    return jax.eval_shape(function, *args)
  except UserError:
    raise
  except Exception as error:
    raise ConfigError(f'{name} does not work: {told(error)}.') from error


def _types(tree: Any) -> list[Any]:
  return [(path, leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(tree)]


def _shown(value: Any) -> str:
  """Types and shapes in words: 'float32 [32, 10]'."""
  if isinstance(value, (tuple, list)):
    return f'({", ".join(map(_shown, value))})'
  return f'{value.dtype} {[*value.shape]}' if hasattr(value, 'shape') else type(value).__name__
