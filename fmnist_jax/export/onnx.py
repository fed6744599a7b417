"""A network as an ONNX model: bytes of images in, probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fmnist_jax.errors import ExportError
from fmnist_jax.graph import Graph, Layer

# Of 2023: what runtimes of today take, the first with GELU.
OPSET, IR_VERSION = 20, 9
INPUT, SCALED, OUTPUT = 'images', 'scaled', 'probabilities'
_MOST_BYTES = 2**31 - 2**20  # What a file of the format holds, and room for all but the arrays.

_PLAIN = {'add': 'Add', 'multiply': 'Mul', 'relu': 'Relu', 'tanh': 'Tanh', 'sigmoid': 'Sigmoid'}


def build(network: Graph, metadata: Mapping[str, str]) -> bytes:
  """The file of a model that takes `images`, uint8 [N, H, W, C], N being any number.

  It gives `probabilities`, float32 [N, K]. Equal arguments give equal bytes.

  Args:
    network: what to compute.
    metadata: to be said in the file.

  Raises:
    ExportError: when it is larger than such a file can be.
  """
  size = sum(array.nbytes for layer in network.layers for array in layer.arrays.values())
  if size > _MOST_BYTES:
    raise ExportError(f'The model has {size / 2**30:.1f} GiB of weights, and an ONNX file holds '
                      'two; make its layers narrower.')
  writer = _Writer()
  x = writer.node('Cast', [INPUT], to=onnx.TensorProto.FLOAT)
  x = writer.node('Mul', [x, writer.array(np.array(1 / 255, np.float32))], SCALED)
  results, shapes = [writer.channels_first(x, network.image_shape)], [network.image_shape]
  for layer in network.layers:
    inputs = [results[index] for index in layer.inputs]
    results.append(writer.layer(layer, inputs, shapes[layer.inputs[0]]))
    shapes.append(layer.shape)
  writer.node('Softmax', [results[-1]], OUTPUT, axis=1)
  value = helper.make_tensor_value_info
  graph = helper.make_graph(
      writer.nodes, 'fmnist_jax',
      [value(INPUT, onnx.TensorProto.UINT8, ['N', *network.image_shape])],
      [value(OUTPUT, onnx.TensorProto.FLOAT, ['N', len(network.class_names)])], writer.arrays)
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)],
                            ir_version=IR_VERSION, producer_name='fmnist_jax')
  helper.set_model_props(model, dict(metadata))
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString(deterministic=True)


class _Writer:
  """Collects nodes and arrays.

  Images are [N, C, H, W] here, as ONNX has them.

  Attributes:
    nodes: so far.
    arrays: so far.
  """

  def __init__(self) -> None:
    self.nodes: list[onnx.NodeProto] = []
    self.arrays: list[onnx.TensorProto] = []

  def node(self, kind: str, inputs: Sequence[str], name: str = '', **attributes: Any) -> str:
    """Adds a node; returns the name of its result."""
    name = name or f'{kind}_{len(self.nodes)}'
    self.nodes.append(helper.make_node(kind, inputs, [name], name=f'node_{name}', **attributes))
    return name

  def array(self, array: np.ndarray) -> str:
    """Adds an array; returns its name."""
    name = f'array_{len(self.arrays)}'
    self.arrays.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name

  def channels_first(self, x: str, shape: Sequence[int]) -> str:
    """A result as this class has it, from the order of a `Layer`."""
    return self.node('Transpose', [x], perm=[0, 3, 1, 2]) if len(shape) == 3 else x

  def channels_last(self, x: str, shape: Sequence[int]) -> str:
    """The other way."""
    return self.node('Transpose', [x], perm=[0, 2, 3, 1]) if len(shape) == 3 else x

  def layer(self, layer: Layer, inputs: Sequence[str], shape: Sequence[int]) -> str:
    """Adds a layer, whose first input has this shape; returns the name of its result."""
    x, settings, arrays = inputs[0], layer.settings, layer.arrays
    if layer.kind in _PLAIN:
      return self.node(_PLAIN[layer.kind], inputs)
    match layer.kind:
      case 'conv':
        weights = [self.array(arrays['kernel'].transpose(3, 2, 0, 1)), self.array(arrays['bias'])]
        return self.node('Conv', [x, *weights], strides=settings['strides'],
                         pads=_pads(settings['padding']), dilations=settings['dilation'],
                         group=settings['groups'])
      case 'dense':
        return self.node('Gemm', [x, self.array(arrays['kernel']), self.array(arrays['bias'])])
      case 'max_pool' | 'avg_pool' as kind:
        how: dict[str, Any] = {} if kind == 'max_pool' else {'count_include_pad': 1}
        return self.node('MaxPool' if kind == 'max_pool' else 'AveragePool', [x],
                         kernel_shape=settings['window'], strides=settings['strides'],
                         pads=_pads(settings['padding']), **how)
      case 'affine':
        spread = (-1, 1, 1) if len(shape) == 3 else (-1,)
        x = self.node('Mul', [x, self.array(arrays['scale'].reshape(spread))])
        return self.node('Add', [x, self.array(arrays['shift'].reshape(spread))])
      case 'gelu':
        return self.node('Gelu', [x], approximate='tanh')
      case 'silu':
        return self.node('Mul', [x, self.node('Sigmoid', [x])])
      case 'flatten' | 'reshape':
        wanted = self.array(np.array([-1, *layer.shape], np.int64))
        x = self.node('Reshape', [self.channels_last(x, shape), wanted])
        return self.channels_first(x, layer.shape)
    raise AssertionError(layer.kind)


def _pads(padding: Sequence[Sequence[int]]) -> list[int]:
  (top, bottom), (left, right) = padding
  return [top, left, bottom, right]
