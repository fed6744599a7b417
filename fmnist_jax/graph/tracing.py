"""From operations of jax to layers: a function's program is run on what stands for layers' results.

What does not depend on images is computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fmnist_jax.graph.layers import Layer

_BATCH = 2  # Images that a function is traced with.


def trace(function: Callable, shape: tuple[int, ...]) -> tuple[list[Layer], int]:
  """The layers that a function is made of, and which of them gives its result.

  A layer has jax's operation for its kind, such as lax.exp, where none of ours stands for it alone.
  Scale and shift may be one number for all channels. Arrays are float64, to compute with.

  Args:
    function: of an array float32 [N, *shape].
    shape: of an example.

  Returns:
    The layers and the number of the last, counted from 1; 0 where it depends on no layer.
  """
  closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((_BATCH, *shape), jnp.float32))
  tracer = _Tracer(shape)
  result, = tracer.run(closed.jaxpr, closed.consts, [_Value(0, (_BATCH, *shape))])
  return tracer.layers, result.index if isinstance(result, _Value) else 0


@dataclasses.dataclass(frozen=True, order=True)
class _Value:
  """The result of a layer, or the images, as an operation sees it: [N, ...], maybe broadcast."""
  index: int
  shape: tuple[int, ...]


# Operations that wrap others, and what they call these.
_WRAPPERS = {'jit': 'jaxpr', 'pjit': 'jaxpr', 'closed_call': 'call_jaxpr', 'checkpoint': 'jaxpr',
             'remat2': 'jaxpr', 'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr'}


class _Tracer:
  """Runs a program of jax on results of layers and on arrays.

  Attributes:
    layers: found so far.
  """

  def __init__(self, shape: tuple[int, ...]):
    """Args: `shape` of an image."""
    self.layers: list[Layer] = []
    self._image_shape = shape

  def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The results, `_Value`s or arrays."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs)))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]
    for equation in jaxpr.eqns:
      results = self._results(equation, [read(atom) for atom in equation.invars])
      known.update(zip(equation.outvars, results))
    return [read(atom) for atom in jaxpr.outvars]

  def add(self, kind: str, inputs: Sequence[_Value], shape: Sequence[int],
          settings: dict[str, Any] | None = None, **arrays: Any) -> _Value:
    """Adds a layer whose result has this shape, [N, ...]."""
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    self.layers.append(Layer(kind, tuple(value.index for value in inputs), settings or {}, arrays,
                             tuple(map(int, shape[1:]))))
    return _Value(len(self.layers), tuple(shape))

  def value(self, index: int) -> _Value:
    """A result by its number."""
    shape = self.layers[index - 1].shape if index else self._image_shape
    return _Value(index, (_BATCH, *shape))

  def shape(self, value: _Value) -> tuple[int, ...]:
    """Of one example's result, before it was broadcast."""
    return self.value(value.index).shape[1:]

  def _results(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if name in _WRAPPERS:
      inner = params[_WRAPPERS[name]]
      return self.run(getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), inputs)
    values = [value for value in inputs if isinstance(value, _Value)]
    if not values:
      found = equation.primitive.bind(*inputs, **params)
      return found if equation.primitive.multiple_results else [found]
    shape, result = equation.outvars[0].aval.shape, None
    if name in _OPERATIONS and (name in _OF_TWO or all(
        self.shape(value) == value.shape[1:] for value in values)):
      result = _OPERATIONS[name](self, params, shape, *inputs)
    if result is None:
      constants = {f'input{at}': value for at, value in enumerate(inputs)
                   if not isinstance(value, _Value)
                   and jnp.issubdtype(jnp.result_type(value), jnp.number)}
      result = self.add(f'lax.{name}', values, shape, {'params': str(params)}, **constants)
    return [_Value(result.index, variable.aval.shape) for variable in equation.outvars]


def _affine(tracer: _Tracer, value: _Value, shape: Sequence[int], scale: Any,
            shift: Any) -> _Value | None:
  """A layer of these factors and offsets; None where they differ within a channel."""
  if tuple(shape[1:]) != tracer.shape(value):
    return None
  numbers = {}
  for name, array in (('scale', scale), ('shift', shift)):
    array = np.asarray(array, np.float64)
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    if not (rows == rows[0]).all():
      return None
    numbers[name] = rows[0, 0] if (rows == rows[0, 0]).all() else rows[0]
  return tracer.add('affine', [value], shape, **numbers)


def _add(tracer: _Tracer, params: Any, shape: Sequence[int], x: Any, y: Any) -> _Value | None:
  if isinstance(x, _Value) and isinstance(y, _Value):
    return _of_two('add', tracer, shape, x, y)
  value, constant = (x, y) if isinstance(x, _Value) else (y, x)
  return _affine(tracer, value, shape, 1, constant)


def _subtract(tracer: _Tracer, params: Any, shape: Sequence[int], x: Any, y: Any) -> _Value | None:
  if not isinstance(y, _Value):
    return _affine(tracer, x, shape, 1, -np.asarray(y, np.float64))
  if not isinstance(x, _Value):
    return _affine(tracer, y, shape, -1, x)
  negative = _affine(tracer, y, y.shape, -1, 0)
  return negative and _add(tracer, params, shape, x, negative)


def _multiply(tracer: _Tracer, params: Any, shape: Sequence[int], x: Any, y: Any) -> _Value | None:
  if isinstance(x, _Value) and isinstance(y, _Value):
    return _of_two('multiply', tracer, shape, x, y)
  value, constant = (x, y) if isinstance(x, _Value) else (y, x)
  return _affine(tracer, value, shape, constant, 0)


def _divide(tracer: _Tracer, params: Any, shape: Sequence[int], x: Any, y: Any) -> _Value | None:
  if isinstance(y, _Value) or not np.all(y):
    return None
  return _affine(tracer, x, shape, 1 / np.asarray(y, np.float64), 0)


def _of_two(kind: str, tracer: _Tracer, shape: Sequence[int], x: _Value,
            y: _Value) -> _Value | None:
  """A layer of two results, the order of which does not matter; None where both are broadcast."""
  if tuple(shape[1:]) not in (tracer.shape(x), tracer.shape(y)):
    return None
  return tracer.add(kind, sorted((x, y)), shape)


def _power(tracer: _Tracer, params: Any, shape: Sequence[int], x: _Value) -> _Value | None:
  if params['y'] not in (2, 3):
    return None
  square = tracer.add('multiply', [x, x], shape)
  return square if params['y'] == 2 else tracer.add('multiply', [x, square], shape)


def _convolution(tracer: _Tracer, params: Any, shape: Sequence[int], x: Any,
                 kernel: Any) -> _Value | None:
  order = params['dimension_numbers']
  if (isinstance(kernel, _Value) or len(shape) != 4 or order.lhs_spec != (0, 3, 1, 2)
      or order.out_spec != order.lhs_spec or set(params['lhs_dilation']) != {1}
      or params['batch_group_count'] != 1):
    return None
  outputs, inputs, *space = order.rhs_spec
  return _conv(tracer, x, shape, np.transpose(kernel, (*space, inputs, outputs)),
               strides=params['window_strides'], padding=params['padding'],
               dilation=params['rhs_dilation'], groups=params['feature_group_count'])


def _conv(tracer: _Tracer, x: _Value, shape: Sequence[int], kernel: np.ndarray, *,
          strides: Any = (1, 1), padding: Any = ((0, 0), (0, 0)), dilation: Any = (1, 1),
          groups: int = 1) -> _Value:
  return tracer.add('conv', [x], shape, {
      'strides': _whole(strides), 'padding': [_whole(pair) for pair in padding],
      'dilation': _whole(dilation), 'groups': int(groups)}, kernel=kernel,
                    bias=np.zeros(kernel.shape[-1]))


def _product(tracer: _Tracer, params: Any, shape: Sequence[int], x: Any, y: Any) -> _Value | None:
  (left, right), batch = params['dimension_numbers']
  if (isinstance(y, _Value) or any(map(len, batch)) or np.ndim(y) != 2 or len(left) != 1
      or left[0] != len(x.shape) - 1 or len(shape) not in (2, 4)):
    return None
  kernel = np.asarray(y) if right[0] == 0 else np.transpose(y)
  if len(shape) == 4:  # Of each pixel.
    return _conv(tracer, x, shape, kernel[None, None])
  return tracer.add('dense', [x], shape, kernel=kernel, bias=np.zeros(kernel.shape[-1]))


def _pool(kind: str, tracer: _Tracer, params: Any, shape: Sequence[int],
          x: _Value) -> _Value | None:
  if (len(shape) != 4 or any(params[name][axis] != 1 for axis in (0, 3)
                             for name in ('window_dimensions', 'window_strides'))
      or any(params['padding'][axis] != (0, 0) for axis in (0, 3))
      or {*params['base_dilation'], *params['window_dilation']} != {1}):
    return None
  return _pooled(kind, tracer, x, shape, params['window_dimensions'][1:3],
                 params['window_strides'][1:3], params['padding'][1:3])


def _pooled(kind: str, tracer: _Tracer, x: _Value, shape: Sequence[int], window: Any, strides: Any,
            padding: Any = ((0, 0), (0, 0)), then: Sequence[int] = ()) -> _Value:
  """A pool, for a mean the sum in its stead, reshaped to `then`."""
  y = tracer.add(kind, [x], shape, {'window': _whole(window), 'strides': _whole(strides),
                                    'padding': [_whole(pair) for pair in padding]})
  y = (_reshape(tracer, {}, then, y) if then else None) or y
  return y if kind == 'max_pool' else tracer.add('affine', [y], y.shape, scale=np.prod(window),
                                                 shift=0)


def _reduce(kind: str, tracer: _Tracer, params: Any, shape: Sequence[int],
            x: _Value) -> _Value | None:
  if len(x.shape) != 4 or not {1, 2} >= set(params['axes']):
    return None
  window = [x.shape[axis] if axis in params['axes'] else 1 for axis in (1, 2)]
  between = [1 if axis in params['axes'] else side for axis, side in enumerate(x.shape)]
  return _pooled(kind, tracer, x, between, window, window, then=shape)


def _reshape(tracer: _Tracer, params: Any, shape: Sequence[int], x: _Value) -> _Value | None:
  if shape[0] != x.shape[0]:
    return None
  if tuple(shape[1:]) == tracer.shape(x):
    return _Value(x.index, tuple(shape))
  before = tracer.layers[x.index - 1] if x.index else None
  if before and before.kind in ('flatten', 'reshape'):
    return _reshape(tracer, params, shape, tracer.value(before.inputs[0]))
  if before and before.kind == 'affine' and all(
      array.ndim == 0 for array in before.arrays.values()):
    y = _reshape(tracer, params, shape, tracer.value(before.inputs[0]))
    return y and _affine(tracer, y, shape, before.arrays['scale'], before.arrays['shift'])
  if len(shape) == 2:
    return tracer.add('flatten', [x], shape)
  return tracer.add('reshape', [x], shape, {'shape': _whole(shape[1:])})


def _broadcast(tracer: _Tracer, params: Any, shape: Sequence[int], x: _Value) -> _Value | None:
  axes = params['broadcast_dimensions']
  if axes[0] != 0 or shape[0] != x.shape[0]:
    return None
  kept = [1] * len(shape)
  for axis, side in zip(axes, x.shape):
    kept[axis] = side
  y = _reshape(tracer, params, kept, x)
  return y and _Value(y.index, tuple(shape))


def _converted(tracer: _Tracer, params: Any, shape: Sequence[int], x: _Value) -> _Value | None:
  return x if params['new_dtype'] == jnp.float32 else None


def _whole(numbers: Sequence[Any]) -> list[int]:
  return [int(number) for number in numbers]


_OF_TWO = ('add', 'sub', 'mul')  # Alone may read what is broadcast.
_OPERATIONS: dict[str, Callable[..., _Value | None]] = {
    'add': _add, 'sub': _subtract, 'mul': _multiply, 'div': _divide, 'integer_pow': _power,
    'square': lambda tracer, _, shape, x: tracer.add('multiply', [x, x], shape),
    'neg': lambda tracer, _, shape, x: _affine(tracer, x, shape, -1, 0),
    'conv_general_dilated': _convolution, 'dot_general': _product,
    'reduce_window_max': functools.partial(_pool, 'max_pool'),
    'reduce_window_sum': functools.partial(_pool, 'avg_pool'),
    'reduce_max': functools.partial(_reduce, 'max_pool'),
    'reduce_sum': functools.partial(_reduce, 'avg_pool'),
    'reshape': _reshape, 'squeeze': _reshape, 'expand_dims': _reshape,
    'broadcast_in_dim': _broadcast, 'convert_element_type': _converted,
    'copy': lambda tracer, _, shape, x: x}
