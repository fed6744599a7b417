"""Muon: the momentum of a kernel, made orthogonal."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmnist_jax.errors import ConfigError
from fmnist_jax.freezing import fits, name_of
from fmnist_jax.optimizers.descent import Optimizer, stepped
from fmnist_jax.optimizers.schedules import Horizon
from fmnist_jax.settings import is_on, setting

# Of the polynomial that is applied five times (Jordan et al.): it takes every singular value from
# about 0.002 to 1 into 0.7 to 1.2, sooner than one that would end at 1 exactly.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


@dataclasses.dataclass
class Muon(Optimizer):
  """Muon for kernels (Jordan et al., kellerjordan.github.io/posts/muon, 2024), Adam for the rest.

  A kernel is a variable of that name with two or more axes, taken as a matrix from all that a unit
  sees to the units: [H * W * C, features] of a convolution. Its step is the momentum with its
  singular values made about equal, longer by sqrt(outputs / inputs) where there are more outputs.
  Biases, norms and embeddings, and the kernels that `adam` names, take steps of Adam.
  """
  learning_rate: float = setting(0.02, 'peak learning rate of kernels', low=0, continuous=True)
  momentum: float = setting(0.95, 'decay of the velocity of kernels', low=0, high=1, open_high=True,
                            continuous=True)
  nesterov: bool = setting(True, 'look ahead along the velocity')
  weight_decay: float = setting(0.0, 'times the learning rate, taken from the weights each step',
                                low=0, continuous=True)
  adam: tuple[str, ...] = setting((), 'kernels that Adam trains, such as those of the last layer: '
                                  'patterns over names of layers, as train.freeze has them')
  adam_learning_rate: float = setting(1e-3, 'peak learning rate of what Adam trains', low=0,
                                      continuous=True)
  b1: float = setting(0.9, 'of Adam: decay of the mean of gradients', low=0, high=1, open_high=True,
                      continuous=True)
  b2: float = setting(0.999, 'of Adam: decay of the mean of squares', low=0, high=1, open_high=True,
                      continuous=True)
  eps: float = setting(1e-8, 'of Adam: added to the root in the denominator', low=0,
                       continuous=True)
  clip_norm: float = setting(0.0, 'largest global norm of the gradient; 0: no clipping', low=0,
                             continuous=True)

  def build(self, horizon: Horizon) -> optax.GradientTransformation:
    """See `UpdateRule`."""
    trace = (optax.trace(self.momentum, nesterov=self.nesterov) if is_on(self.momentum)
             else optax.identity())
    shape = self.schedule.build(horizon)
    kernels = optax.chain(trace, *stepped(optax.stateless(_orthogonal_steps), self.weight_decay,
                                          self.rate(horizon)))
    others = optax.chain(*stepped(optax.scale_by_adam(self.b1, self.b2, self.eps),
                                  self.weight_decay,
                                  lambda step: self.adam_learning_rate * shape(step)))
    clip = [optax.clip_by_global_norm(self.clip_norm)] * is_on(self.clip_norm)
    return optax.chain(*clip, optax.partition({True: kernels, False: others}, self._is_own))

  def _is_own(self, params: Any) -> Any:
    """True for what Muon itself trains."""
    kernels = [name_of(path) for path, leaf in jax.tree.leaves_with_path(params)
               if _is_kernel(path, leaf)]
    for pattern in self.adam:
      if not any(fits(name, (pattern,)) for name in kernels):
        raise ConfigError(f'adam of Muon has {pattern!r}, which fits no kernel that is trained; '
                          f'there are {", ".join(kernels) or "none"}.')
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _is_kernel(path, leaf) and not fits(name_of(path), self.adam), params)


def _is_kernel(path: Any, leaf: jax.Array) -> bool:
  return leaf.ndim > 1 and name_of(path).rpartition('/')[2] == 'kernel'


def _orthogonal_steps(updates: Any, _: Any) -> Any:
  def step(kernel: jax.Array) -> jax.Array:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    inputs, outputs = matrix.shape
    return (max(1, outputs / inputs) ** 0.5 * orthogonalized(matrix)).reshape(kernel.shape)
  return jax.tree.map(step, updates)


def orthogonalized(matrix: jax.Array) -> jax.Array:
  """A matrix with its singular values made about 1, by Newton and Schulz's iteration.

  The iteration multiplies X by a polynomial in its Gram matrix X X^T, which such polynomials
  commute with: so only the small square matrix is iterated, and X is multiplied once, at the end.
  Five iterations so cost less than two otherwise.

  Args:
    matrix: float32 [M, N].

  Returns:
    float32 [M, N]; of a matrix of zeros, zeros.
  """
  rows, columns = matrix.shape
  wide = matrix if rows <= columns else matrix.T
  wide = wide / (jnp.linalg.norm(wide) + 1e-7)
  # Rounded to fewer bits, as accelerators do, what is left of tiny singular values would grow.
  product = lambda a, b: jnp.matmul(a, b, precision='highest')
  first, second, third = _COEFFICIENTS
  gram = product(wide, wide.T)
  one = total = jnp.eye(len(gram), dtype=wide.dtype)
  for _ in range(_ITERATIONS):
    factor = first * one + second * gram + third * product(gram, gram)
    total = product(factor, total)
    gram = product(product(factor, gram), factor)
  wide = product(total, wide)
  return wide if rows <= columns else wide.T
