"""Test-time augmentation: what a model is shown of each image, and what it then says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ('flip', 'shift')


def views(kinds: Sequence[str]) -> np.ndarray:
  """The views of an image: mirrored (0 or 1), pixels down, pixels right; int32 [V, 3].

  Args:
    kinds: 'flip': also as in a mirror; 'shift': also by one pixel up, down, left and right; each of
      the one with each of the other.
  """
  moves = [(0, 0), *[(-1, 0), (1, 0), (0, -1), (0, 1)] * ('shift' in kinds)]
  return np.array([(mirrored, *move) for mirrored in range(1 + ('flip' in kinds))
                   for move in moves], np.int32)


def told(kinds: Sequence[str]) -> str:
  """In words: 'mean over 10 views (flip, shift)'."""
  return f'mean over {len(views(kinds))} views ({", ".join(kinds)})'


def mean_over(kinds: Sequence[str], predict: Callable[[jax.Array], jax.Array],
              images: jax.Array) -> jax.Array:
  """What `predict` says of images [B, H, W, C], the mean over the views of each.

  Probabilities are averaged, as those of an ensemble are, and not logits: of a view that a model is
  sure of, a mean of logits would make more. What moves in from outside is 0.
  """
  seen = jnp.asarray(views(kinds))
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))

  def view(i: int | jax.Array) -> jax.Array:
    mirrored, down, right = seen[i]
    moved = jax.lax.dynamic_slice(padded, (0, 1 - down, 1 - right, 0), images.shape)
    return jnp.where(mirrored == 1, moved[:, :, ::-1], moved)

  # One after another, so that more views need no more memory and no longer program.
  total = jax.lax.fori_loop(1, len(seen), lambda i, total: total + predict(view(i)),
                            predict(view(0)))
  return total / len(seen)
