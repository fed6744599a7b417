"""A trained network as a short list of layers, for whoever computes it without jax.

It is traced, so a model of one's own that is made of the same operations has one as ours do:
`tracing` goes from operations of jax to layers, `simplifying` from these to fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fmnist_jax import models, settings
from fmnist_jax.errors import ExportError
from fmnist_jax.graph import simplifying, tracing
from fmnist_jax.graph.layers import KINDS, Graph, Layer

__all__ = ['Graph', 'Layer', 'trace']


def trace(model: Any, variables: Any, image_shape: tuple[int, int, int],
          class_names: Sequence[str]) -> Graph:
  """The network that a model is, in float32, when it does not train.

  Args:
    model: a config's `model` section.
    variables: of its module.
    image_shape: (H, W, C).
    class_names: K names.

  Raises:
    ExportError: naming the operation that no layer stands for.
  """
  name = f'The model {settings.kind_name(type(model))}'
  module = models.build(model, len(class_names), models.Compute())
  variables = jax.device_get(variables)
  layers, result = tracing.trace(
      lambda images: module.apply(variables, images, train=False), image_shape)
  if not result:
    raise ExportError(f'{name} gives the same for all images; there is nothing to export.')
  layers = simplifying.simplified(layers, result)
  for layer in layers:
    if layer.kind not in KINDS:
      raise ExportError(
          f'{name} has an operation that no layer of an export stands for ({layer.kind}, with '
          f'{"x".join(map(str, layer.shape)) or "one number"} as the result for an image); what '
          'can be exported is made of convolutions, dense layers, pools, BatchNorm, sums, products '
          'and the activations relu, gelu, silu, tanh and sigmoid.')
  return Graph(tuple(image_shape), tuple(class_names), tuple(layers))
