"""Files for JAX: a whole program (StableHLO), and the weights alone (safetensors)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import export

from fmnist_jax import models, ops
from fmnist_jax.errors import ExportError, told

PLATFORMS = ('cpu', 'cuda', 'tpu')


def program(model: Any, variables: Any, image_shape: tuple[int, int, int],
            num_classes: int) -> bytes:
  """`jax.export`'s form of bytes in, probabilities out, for any number of images.

  `jax.export.deserialize(...).call(images)` takes uint8 [N, H, W, C] and gives float32 [N, K], on
  each of `PLATFORMS`. Operations are XLA's own, in float32; the weights are inside. Equal arguments
  give equal bytes.

  Args:
    model: a config's `model` section.
    variables: of its module.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    ExportError: when jax cannot, saying why.
  """
  module = models.build(model, num_classes, models.Compute())
  variables = jax.device_get(variables)

  # One by one, since a module may ask for the number of images, which is unknown.
  @jax.vmap
  def probabilities(image: jax.Array) -> jax.Array:
    return jax.nn.softmax(module.apply(variables, ops.pixels(image[None]), train=False)[0])

  count, = export.symbolic_shape('N')
  images = jax.ShapeDtypeStruct((count, *image_shape), jnp.uint8)
  try:
    with _without_paths(), jax.default_matmul_precision('float32'):
      return bytes(export.export(jax.jit(probabilities), platforms=PLATFORMS)(images).serialize())
  except Exception as error:  # Of a model of somebody's own.
    raise ExportError(f'jax.export does not take the model: {told(error)}.') from error


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
  """Names of this machine's files do not become part of programs."""
  before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    yield
  finally:
    jax.config.update('jax_traceback_in_locations_limit', before)


def call(file: bytes, images: np.ndarray, batch: int) -> np.ndarray:
  """What such a program says of images, so many at a time: float32 [N, K]."""
  function = jax.jit(export.deserialize(bytearray(file)).call)
  return np.concatenate([function(images[start:start + batch])
                         for start in range(0, len(images), batch)])


def weights(variables: Any, metadata: Mapping[str, Any]) -> bytes:
  """All variables of a module by their Flax names, as in 'params/Conv_0/kernel'.

  Equal arguments give equal bytes.

  Args:
    variables: 'params' and what else the module has, such as 'batch_stats'.
    metadata: JSON values; they are one entry, 'fmnist_jax', since the format keeps no order.
  """
  flat = traverse_util.flatten_dict(jax.device_get(variables), sep='/')
  arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
  return safetensors.numpy.save(arrays, {'fmnist_jax': json.dumps(metadata)})
