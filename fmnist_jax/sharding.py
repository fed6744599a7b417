"""The mesh and the two ways arrays lie on it: split by example, or whole on every device."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fmnist_jax import machine
from fmnist_jax.errors import ConfigError

DATA_AXIS = 'data'
MEMBER_AXIS = 'member'


def make_mesh(batch_size: int, devices: int = 0) -> Mesh:
  """A one-axis mesh over the devices that share each batch.

  Args:
    batch_size: examples a step, over all devices.
    devices: how many devices to use; 0 for all of them.

  Returns:
    A mesh with the axis 'data'. A batch that does not divide by the devices uses the largest
    number of them that does, and logs it.

  Raises:
    ConfigError: when more devices are asked for than there are.
  """
  available = choose_devices(devices)
  wanted = len(available)
  count = max(n for n in range(1, wanted + 1) if batch_size % n == 0)
  if jax.process_count() > 1 and count < jax.device_count():
    raise ConfigError(f'With several processes all of their {jax.device_count()} devices take '
                      f'part, but train.devices is {devices} and data.batch_size {batch_size}; '
                      'leave the first at 0 and choose a batch that divides by the devices.')
  if count < wanted:
    logging.warning('A batch of %d does not divide by %d devices: using %d.', batch_size, wanted,
                    count)
  return jax.make_mesh((count,), (DATA_AXIS,), devices=available[:count],
                       axis_types=(AxisType.Auto,))


def choose_devices(devices: int = 0) -> list[jax.Device]:
  """The first `devices` devices, or all for 0; raises ConfigError where there are not so many."""
  available = jax.devices()
  if devices > len(available):
    raise ConfigError(f'train.devices is {devices}, but jax sees {len(available)} '
                      f'{available[0].platform} device(s); ask for at most that many, or 0 for '
                      'all.')
  return available[:devices or None]


def make_member_mesh(members: int, devices: int = 0) -> Mesh:
  """A mesh over at most `members` devices that divide the members of a population among them.

  Its axes are 'member' and, of size 1, 'data': every member's batches are whole.
  """
  chosen = choose_devices(devices)[:members]
  return jax.make_mesh((len(chosen), 1), (MEMBER_AXIS, DATA_AXIS), devices=chosen,
                       axis_types=(AxisType.Auto, AxisType.Auto))


def by_member(mesh: Mesh) -> NamedSharding:
  """Split along the first axis, the members of a population."""
  return NamedSharding(mesh, PartitionSpec(MEMBER_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Split along `axis`, the examples of a batch."""
  return NamedSharding(mesh, PartitionSpec(*([None] * axis), DATA_AXIS))


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Places host arrays, the same in every process, on the mesh."""
  def place(array: Any) -> jax.Array:
    array = np.asarray(array)
    if jax.process_count() == 1:
      return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
  return jax.tree.map(place, tree)


def own_examples(mesh: Mesh, size: int) -> np.ndarray:
  """Which examples of a batch of `size` lie on this process's devices, in increasing order."""
  parts = by_example(mesh).addressable_devices_indices_map((size,)).values()
  return np.unique(np.concatenate([np.arange(size)[part] for part in parts]))


def put_own(tree: Any, mesh: Mesh, own: np.ndarray, size: int) -> Any:
  """Places batches of `size`, of which each process has its own examples alone.

  Args:
    tree: of host arrays [steps, len(own), ...].
    mesh: where to place them, as [steps, size, ...], split by example.
    own: `own_examples(mesh, size)`.
    size: examples a batch.
  """
  split = by_example(mesh, axis=1)
  if len(own) == size:
    return put(tree, split)
  def place(array: np.ndarray) -> jax.Array:
    def part(index: Any) -> np.ndarray:
      return array[:, np.searchsorted(own, np.arange(size)[index[1]])]
    return jax.make_array_from_callback((len(array), size, *array.shape[2:]), split, part)
  return jax.tree.map(place, tree)


def platform(mesh: Mesh) -> str:
  """'cpu', 'gpu' or 'tpu': what the mesh's devices are."""
  return mesh.devices.flat[0].platform


def padded(count: int, multiple: int) -> int:
  """The smallest multiple of `multiple` that is at least `count`."""
  return math.ceil(count / multiple) * multiple


def device_name(mesh: Mesh) -> str:
  """The devices in words, e.g. '4 x cpu (AMD EPYC 7B13)'."""
  device = mesh.devices.flat[0]
  name = device.device_kind
  if device.platform == 'cpu':
    name = machine.cpu_name()
  return f'{mesh.size} x {device.platform} ({name})'
