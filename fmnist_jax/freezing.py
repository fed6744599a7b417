"""Layers that training leaves as they are, chosen by patterns over the names of variables.

The name of a variable is its path in its collection, such as 'Conv_0/kernel'. A pattern, as of a
shell, that fits a variable or a layer around it freezes it: 'Conv_0', 'Conv_*', '*/bias'.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from fmnist_jax import ops, step
from fmnist_jax.errors import ConfigError

_map = jax.tree_util.tree_map_with_path


def name_of(path: Sequence[Any]) -> str:
  """'Conv_0/kernel', of a path in a tree."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def fits(name: str, patterns: Sequence[str]) -> bool:
  """Whether a pattern fits the variable of this name, or a layer around it."""
  return any(fnmatch.fnmatchcase(around, pattern) for pattern in patterns
             for around in itertools.accumulate(name.split('/'), '{}/{}'.format))


class Freezing:
  """What is frozen, and what that means for optimiser, module and state.

  No gradient of a frozen parameter is computed, no optimiser state is kept for it, and weight decay
  and moving averages leave its bits alone. Variables of other collections, such as statistics, are
  frozen with their layer: a BatchNorm whose statistics are frozen normalises by them, in training
  too, as one of Keras does with `trainable=False`.
  """

  def __init__(self, patterns: Sequence[str]):
    """Args: `patterns` as `train.freeze` has them; with none, nothing is frozen."""
    self._patterns = tuple(patterns)

  def __call__(self, name: str) -> bool:
    """Whether the variable of this name is frozen."""
    return fits(name, self._patterns)

  def trained(self, params: Any) -> list[Any]:
    """The leaves of the parameters that are not frozen."""
    return [leaf for path, leaf in jax.tree.leaves_with_path(params) if not self(name_of(path))]

  def check(self, params: Any) -> None:
    """Raises ConfigError for a pattern that fits no parameter, and when none is left to train."""
    names = [name_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    layers = ', '.join(dict.fromkeys(name.rpartition('/')[0] or name for name in names))
    for pattern in self._patterns:
      if not any(map(Freezing((pattern,)), names)):
        raise ConfigError(f'train.freeze has {pattern!r}, which fits no layer of the model; its '
                          f'layers are {layers}.')
    if not self.trained(params):
      raise ConfigError(f'train.freeze freezes all layers of the model ({layers}): nothing is left '
                        'to train.')

  def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` of the parameters that are trained; it neither sees nor keeps anything of the others."""
    if not self._patterns:
      return tx
    chosen = optax.partition(
        {False: tx, True: optax.set_to_zero()},
        lambda params: _map(lambda path, _: self(name_of(path)), params))

    def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any = None,
               **extra: Any) -> tuple[Any, Any]:
      def trained(some: Any, i: Any) -> Any:
        """`grad_fn` of parameters that lack the frozen ones."""
        lacks = lambda leaf: isinstance(leaf, optax.MaskedNode)
        whole = jax.tree.map(lambda old, own: old if lacks(own) else own, params, some)
        return jax.tree.map(lambda slope, own: own if lacks(own) else slope, grad_fn(whole, i),
                            some)
      return chosen.update(updates, state, params, grad_fn=trained, **extra)

    return optax.GradientTransformationExtraArgs(chosen.init, update)

  def apply(self, module: nn.Module) -> step.Apply:
    """`module.apply` for training."""
    if not self._patterns:
      return module.apply

    def as_saved(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
      layer = context.module
      if (not isinstance(layer, (nn.BatchNorm, ops.BatchNorm)) or layer.use_running_average
          or context.method_name != '__call__' or not all(
              self('/'.join((*layer.path, name))) for name in layer.variables['batch_stats'])):
        return call(*args, **kwargs)
      if layer.use_running_average is None:  # It is told when it is called.
        return call(args[0], **{**kwargs, 'use_running_average': True})
      return layer.clone(parent=layer.scope, use_running_average=True)(*args, **kwargs)

    def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
      params = _map(lambda path, leaf: jax.lax.stop_gradient(leaf) if self(
          name_of(path)) else leaf, variables['params'])
      with nn.intercept_methods(as_saved):
        return module.apply({**variables, 'params': params}, *args, **kwargs)

    return apply

  def kept(self, before: step.TrainState, after: step.TrainState) -> step.TrainState:
    """The state after a step, with what is frozen as it was before it, bit for bit."""
    if not self._patterns:
      return after

    def keep(old: Any, new: Any, above: int) -> Any:
      return _map(lambda path, a, b: a if self(name_of(path[above:])) else b, old, new)

    ema = after.ema and {'params': keep(before.ema['params'], after.ema['params'], 0),
                         'model_state': keep(before.ema['model_state'], after.ema['model_state'],
                                             1)}
    return after.replace(params=keep(before.params, after.params, 0), ema=ema,
                         model_state=keep(before.model_state, after.model_state, 1))
