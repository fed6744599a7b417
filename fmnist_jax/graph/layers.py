"""What a network is described with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Layer:
  """One operation on images [N, H, W, C] or rows [N, F].

  What `settings` and `arrays` hold, by `kind`:

  - conv: strides [2], padding [[top, bottom], [left, right]], dilation [2], groups; kernel
    [h, w, I / groups, O], bias [O]. Cross-correlation, padded with zeros.
  - dense: kernel [I, O], bias [O].
  - max_pool, avg_pool: window [2], strides [2], padding [[top, bottom], [left, right]], which never
    is the largest, and counts as zeros in a mean.
  - affine: scale [C], shift [C], of the last axis.
  - add, multiply: nothing; two inputs, of which one may have size 1 where the other has more.
  - relu, gelu (its tanh form), silu, tanh, sigmoid: nothing.
  - flatten: nothing; to rows, in the order height, width, channel.
  - reshape: shape, of one example.

  Attributes:
    kind: which operation.
    inputs: the results it takes: 0 is the images, float32 in [0, 1], i the result of layer i - 1.
    settings: JSON values.
    arrays: float32.
    shape: of one example's result.
  """
  kind: str
  inputs: tuple[int, ...]
  settings: dict[str, Any]
  arrays: dict[str, np.ndarray]
  shape: tuple[int, ...]

  @property
  def products(self) -> int:
    """Multiply-adds for one image, of the layers that have many."""
    kernel = self.arrays['kernel'].size if 'kernel' in self.arrays else 0
    return kernel * int(np.prod(self.shape[:-1]))


@dataclasses.dataclass(frozen=True)
class Graph:
  """A network.

  Attributes:
    image_shape: (H, W, C) of what it takes.
    class_names: K names, of its outputs.
    layers: in an order in which they can be computed; the last result is the logits, [N, K].
  """
  image_shape: tuple[int, ...]
  class_names: tuple[str, ...]
  layers: tuple[Layer, ...]


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'silu': jax.nn.silu, 'tanh': jnp.tanh,
    'sigmoid': jax.nn.sigmoid}
KINDS = ('conv', 'dense', 'max_pool', 'avg_pool', 'affine', 'add', 'multiply', *ACTIVATIONS,
         'flatten', 'reshape')
