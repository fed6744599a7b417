"""From layers, one an operation of jax, to fewer that compute the same."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from fmnist_jax.graph import tracing
from fmnist_jax.graph.layers import ACTIVATIONS, Layer

# Layers that compute what an affine layer after them does, and what it multiplies and adds to.
_FOLDING = {'conv': ('kernel', 'bias'), 'dense': ('kernel', 'bias'), 'affine': ('scale', 'shift')}


def simplified(layers: Sequence[Layer], result: int) -> list[Layer]:
  """Activations recognised, affine layers folded into those before, what is not needed left out.

  Args:
    layers: of `tracing.trace`.
    result: which of their results is wanted; that of the last layer in what is returned.
  """
  for stage in (_recognised, _needed, _folded, _without_identities, _needed):
    layers, result = stage(layers, result)
  return [dataclasses.replace(layer, arrays={
      name: np.ascontiguousarray(np.broadcast_to(
          array, layer.shape[-1:] if layer.kind == 'affine' else array.shape), np.float32)
      for name, array in layer.arrays.items()}) for layer in layers]


def _moved(layer: Layer, where: dict[int, int]) -> Layer:
  return dataclasses.replace(layer, inputs=tuple(where[index] for index in layer.inputs))


def _recognised(layers: Sequence[Layer], result: int) -> tuple[list[Layer], int]:
  """One layer in place of each run of layers that an activation becomes when it is traced."""
  found: list[Layer] = []
  where, at = {0: 0}, 0
  while at < len(layers):
    for kind, template in _templates():
      run = layers[at:at + len(template)]
      start = _start(template, run, at)
      inside = range(at + 1, at + len(template))
      if start is not None and not (inside and (result in inside or any(
          index in inside for layer in layers[at + len(run):] for index in layer.inputs))):
        found.append(Layer(kind, (where[start],), {}, {}, run[-1].shape))
        at += len(run)
        break
    else:
      found.append(_moved(layers[at], where))
      at += 1
    where[at] = len(found)
  return found, where[result]


@functools.cache
def _templates() -> list[tuple[str, list[Layer]]]:
  """The layers that each activation becomes, longest first."""
  found = [(kind, tracing.trace(function, (1,))[0]) for kind, function in ACTIVATIONS.items()]
  return sorted(found, key=lambda entry: -len(entry[1]))


def _start(template: Sequence[Layer], run: Sequence[Layer], before: int) -> int | None:
  """Which result a run of layers, after `before` others, makes its own of as the template does.

  None where it is no such run.
  """
  if list(map(_what, template)) != list(map(_what, run)):
    return None
  start = run[0].inputs[0]
  index = {0: start} | {number + 1: before + number + 1 for number in range(len(template))}
  if any(_moved(pattern, index).inputs != layer.inputs for pattern, layer in zip(template, run)):
    return None
  return start


def _what(layer: Layer) -> tuple:
  arrays = {name: array.tolist() for name, array in layer.arrays.items() if array.size == 1}
  return layer.kind, len(layer.inputs), layer.settings, arrays, len(layer.arrays)


def _folded(layers: Sequence[Layer], result: int) -> tuple[list[Layer], int]:
  """Affine layers become part of the layer before, where nothing else reads that."""
  read = collections.Counter([index for layer in layers for index in layer.inputs] + [result])
  found: list[Layer] = []
  where = {0: 0}
  for number, layer in enumerate(layers, 1):
    before = layer.inputs[0]
    at = where[before] - 1
    if layer.kind == 'affine' and before and found[at].kind in _FOLDING and (
        read[before] == 1):
      scale, shift = layer.arrays['scale'], layer.arrays['shift']
      factor, offset = _FOLDING[found[at].kind]
      arrays = found[at].arrays
      found[at] = dataclasses.replace(found[at], arrays={
          factor: arrays[factor] * scale, offset: arrays[offset] * scale + shift})
      where[number] = where[before]
    else:
      found.append(_moved(layer, where))
      where[number] = len(found)
  return found, where[result]


def _without_identities(layers: Sequence[Layer], result: int) -> tuple[list[Layer], int]:
  """Affine layers that change nothing are left out."""
  return _only(lambda _, layer: layer.kind != 'affine' or bool(
      (layer.arrays['scale'].astype(np.float32) != 1).any() or layer.arrays['shift'].any()),
               layers, result)


def _needed(layers: Sequence[Layer], result: int) -> tuple[list[Layer], int]:
  """Only layers that the result depends on."""
  needed = {result}
  for number in range(len(layers), 0, -1):
    if number in needed:
      needed.update(layers[number - 1].inputs)
  return _only(lambda number, _: number in needed, layers, result)


def _only(wanted: Callable[[int, Layer], bool], layers: Sequence[Layer],
          result: int) -> tuple[list[Layer], int]:
  """The wanted layers, of their numbers from 1; who read another reads what that one did."""
  found: list[Layer] = []
  where = {0: 0}
  for number, layer in enumerate(layers, 1):
    if wanted(number, layer):
      found.append(_moved(layer, where))
      where[number] = len(found)
    else:
      where[number] = where[layer.inputs[0]]
  return found, where[result]
