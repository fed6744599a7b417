"""What a `model` section is, and how one becomes a Flax module that fits images and classes."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmnist_jax import machine, settings
from fmnist_jax.errors import ConfigError, UserError, told


class Compute(NamedTuple):
  """How a module computes; `ops.Dense(64, **compute._asdict())` passes it on to a layer of `ops`.

  Attributes:
    dtype: of operands and activations; parameters, statistics and logits are float32.
    implementation: of products, convolutions and pools, see `ops`.
  """
  dtype: Any = jnp.float32
  implementation: str = 'native'


class Model(settings.Section):
  """A dataclass of settings that builds a Flax module.

  A Flax module can also stand for itself: its fields then are its settings.

  Attributes:
    takes_bytes: whether the module takes uint8 images too, and scales them itself, which moves a
      quarter of the memory.
    cached_examples: how many images to evaluate together on a CPU, whose cache holds what a network
      makes of so many; 0: whole batches.
  """
  takes_bytes: ClassVar[bool] = False
  cached_examples: ClassVar[int] = 0

  @abc.abstractmethod
  def build(self, num_classes: int, compute: Compute) -> nn.Module:
    """The module, called as `module(images_BxHxWxC, train=bool)`, returning logits [B, K].

    Images are float32 in [0, 1]. Settings declared as continuous may be traced arrays.

    Args:
      num_classes: K.
      compute: how; a module made of other layers than those of `ops` may take what it needs of it.
    """

  def check(self, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError for images (H, W, C) that the model cannot take; here there are none."""


Model.register(nn.Module)


def build(model: Any, num_classes: int, compute: Compute) -> nn.Module:
  """The Flax module of a `model` section."""
  return model if isinstance(model, nn.Module) else model.build(num_classes, compute)


def check_fits(model: Any, image_shape: tuple[int, int, int], num_classes: int) -> Any:
  """Builds a model for images of a shape, without computing anything.

  Returns:
    Its parameters, as `jax.ShapeDtypeStruct`s.

  Raises:
    ConfigError: when it does not fit them, is no module that this library can train, or is too
      large to train here.
  """
  name = settings.kind_name(type(model))
  try:
    if not isinstance(model, nn.Module):
      model.check(image_shape)
    module = build(model, num_classes, Compute())
    accepts = inspect.signature(type(module).__call__).parameters.values()
  except UserError:
    raise
  except Exception as error:
    raise ConfigError(f'The model {name} cannot be built: {told(error)}.') from error
  if not any(p.name == 'train' or p.kind is p.VAR_KEYWORD for p in accepts):
    raise ConfigError(f'The model {name} is called without train=; its __call__ must take '
                      '(images, *, train), train being whether to drop out and the like.')

  def start(images: jax.Array, values: dict[str, jax.Array]) -> Any:
    # As when it is compiled: continuous settings are arrays, and it begins with one image.
    module = build(settings.replace(model, values), num_classes, Compute())
    key = jax.random.key(0)
    variables = module.init(key, images[:1], train=False)
    others = {kind: values for kind, values in variables.items() if kind != 'params'}
    trained, after = module.apply(variables, images, train=True,
                                  rngs={'params': key, 'dropout': key}, mutable=list(others))
    return variables, (module.apply(variables, images, train=False), trained), others, dict(after)

  variables, outputs, *states = _traced(name, start, (2, *image_shape), {
      key: jax.ShapeDtypeStruct((), jnp.float32) for key in settings.continuous(model)})
  if len({str(jax.tree_util.tree_flatten_with_path(state)) for state in states}) > 1:
    raise ConfigError(f'The model {name} has other variables beside its parameters after a '
                      'training step than before it; make all of them with train=False too, of '
                      'shapes that do not depend on how many images there are.')
  params = dict(variables).get('params', {})
  if not jax.tree.leaves(params):
    raise ConfigError(f'The model {name} has no parameters: there is nothing to train.')
  others = {str(leaf.dtype) for leaf in jax.tree.leaves(params) if leaf.dtype != jnp.float32}
  if others:
    raise ConfigError(f'The model {name} has parameters of type {", ".join(sorted(others))}; all '
                      'must be float32 (param_dtype), whatever it computes with.')
  if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(states)):
    raise ConfigError(f'The model {name} has variables that are keys; keep numbers '
                      '(jax.random.key_data), or draw with self.make_rng(NAME).')
  for logits in outputs:
    shape = getattr(logits, 'shape', None)
    if shape != (2, num_classes) or not jnp.issubdtype(logits.dtype, jnp.floating):
      found = f'{logits.dtype} {list(shape)}' if shape is not None else type(logits).__name__
      raise ConfigError(f'The model {name} gives {found} for two images; it must give floating '
                        f'point logits [2, {num_classes}], one for each class.')
  size = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))
  memory = machine.memory()
  # Weights, their gradient, and as much again for the step that changes them.
  if 4 * size > memory:
    raise ConfigError(f'The model has {size // 4:,} weights, too many for training in the '
                      f'{memory / 2**30:.0f} GiB of this machine; make its layers narrower.')
  return params


def _traced(name: str, function: Callable, shape: tuple[int, ...], values: Any) -> Any:
  try:
    return jax.eval_shape(function, jax.ShapeDtypeStruct(shape, jnp.float32), values)
  except OverflowError as error:  # Sizes that have more than 64 bits.
    raise ConfigError(f'The model is larger than any machine; make its layers narrower ({error}).'
                      ) from error
  except Exception as error:
    if 'overflow' in str(error).lower() or 'too large' in str(error).lower():
      raise ConfigError('The model is larger than any machine; make its layers narrower '
                        f'({told(error)}).') from error
    raise ConfigError(f'The model {name} does not work for images of shape {list(shape[1:])}: '
                      f'{told(error)}.') from error
