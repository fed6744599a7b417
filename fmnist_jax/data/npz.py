"""One's own data: a .npz of images and labels."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from fmnist_jax.data.dataset import Dataset
from fmnist_jax.errors import DataError
from fmnist_jax.storage import readback

_ADVICE = 'save it with numpy.savez(FILE, images=uint8 [N, H, W], labels=integers [N])'
# Also the names Keras gives them.
_NAMES = {'images': 'x_train', 'labels': 'y_train', 'test_images': 'x_test',
          'test_labels': 'y_test', 'class_names': 'class_names'}


def read(path: str) -> Dataset:
  """Reads a .npz file.

  Its arrays: `images` uint8 [N, H, W] or [N, H, W, C]; `labels` integers [N], 0 to K - 1;
  optionally `test_images`, `test_labels` and `class_names` [K]. `x_train`, `y_train`, `x_test`,
  `y_test` will do as well. See `Dataset.of_arrays`.

  Raises:
    DataError: for whatever is wrong with it.
  """
  try:
    file = readback.open_regular(os.path.expanduser(path))
  except (OSError, ValueError) as error:  # ValueError: a NUL or half a character in the path.
    raise DataError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}; name a '
                    '.npz file in data.name.') from error
  with file:
    try:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
      file.seek(0)
      arrays = readback.arrays(file, [*_NAMES, *_NAMES.values()])
    except OSError as error:
      raise DataError(f'{path} cannot be read: {error.strerror or error}; fetch it again.'
                      ) from error
    except ValueError as error:
      raise DataError(f'{path} is not a sound .npz file ({error}); {_ADVICE}.') from error
  found: dict[str, Any] = {
      name: arrays[name if name in arrays else other] for name, other in _NAMES.items()
      if name in arrays or other in arrays}
  for name in ('images', 'labels'):
    if name not in found:
      raise DataError(f'{path} has no array {name!r} (it has {", ".join(arrays) or "none"} of '
                      f'those looked for); {_ADVICE}.')
  return Dataset.of_arrays(path, **found, sha256={os.path.basename(path): digest})
