"""One's own data: a .npz of images and labels."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np

from fmnist_jax import readback
from fmnist_jax.data import splits
from fmnist_jax.errors import DataError

_ADVICE = 'save it with numpy.savez(FILE, images=uint8 [N, H, W], labels=integers [N])'
# Also the names Keras gives them.
_NAMES = {'images': 'x_train', 'labels': 'y_train', 'test_images': 'x_test',
          'test_labels': 'y_test'}


@dataclasses.dataclass(frozen=True)
class Own:
  """A user's data set: images uint8 [N, H, W, C], labels int32 [N]."""
  images: np.ndarray
  labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  class_names: tuple[str, ...]
  sha256: dict[str, str]


def read(path: str) -> Own:
  """Reads a .npz file.

  Its arrays: `images` uint8 [N, H, W] or [N, H, W, C]; `labels` integers [N], 0 to K - 1;
  optionally `test_images`, `test_labels` and `class_names` [K]. `x_train`, `y_train`, `x_test`,
  `y_test` will do as well. Without test arrays a tenth of the examples, the same every time and
  class-balanced, is set aside.

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
      arrays = readback.arrays(file, [*_NAMES, *_NAMES.values(), 'class_names'])
    except OSError as error:
      raise DataError(f'{path} cannot be read: {error.strerror or error}; fetch it again.'
                      ) from error
    except ValueError as error:
      raise DataError(f'{path} is not a sound .npz file ({error}); {_ADVICE}.') from error
  return _checked(path, arrays, digest)


def _checked(path: str, arrays: dict[str, np.ndarray], digest: str) -> Own:
  found = {}
  for name, other in _NAMES.items():
    if name in arrays or other in arrays:
      found[name] = arrays[name if name in arrays else other]
  for name in ('images', 'labels'):
    if name not in found:
      raise DataError(f'{path} has no array {name!r} (it has {", ".join(arrays) or "none"} of '
                      f'those looked for); '
                      f'{_ADVICE}.')
  if ('test_images' in found) != ('test_labels' in found):
    raise DataError(f'{path} has one of test_images and test_labels, but not the other; give both '
                    'or neither.')
  images, labels = _pair(path, found['images'], found['labels'], '')
  if 'test_images' in found:
    test_images, test_labels = _pair(path, found['test_images'], found['test_labels'], 'test_')
    if test_images.shape[1:] != images.shape[1:]:
      raise DataError(f'{path}: test_images are {test_images.shape[1:]}, but images are '
                      f'{images.shape[1:]}; make them alike.')
  else:
    held = splits.balanced(labels, max(len(labels) // 10, 1), splits.TEST)
    test_images, test_labels = images[held], labels[held]
    kept = np.setdiff1d(np.arange(len(labels)), held)
    images, labels = images[kept], labels[kept]
  names = _class_names(path, arrays.get('class_names'), labels, test_labels)
  return Own(images, labels, test_images, test_labels, names, {os.path.basename(path): digest})


def _pair(path: str, images: np.ndarray, labels: np.ndarray, prefix: str) -> tuple[np.ndarray,
                                                                                   np.ndarray]:
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise DataError(f'{path}: {prefix}images are {images.dtype} {list(images.shape)}; they must be '
                    'uint8 [N, H, W] or [N, H, W, C], 0 to 255.')
  if labels.ndim == 2 and labels.shape[1] == 1:  # As in Keras's CIFAR.
    labels = labels[:, 0]
  if labels.dtype.kind not in 'iu' or labels.ndim != 1:
    raise DataError(f'{path}: {prefix}labels are {labels.dtype} {list(labels.shape)}; they must be '
                    'integers [N].')
  if len(images) != len(labels):
    raise DataError(f'{path}: there are {len(images):,} {prefix}images, but {len(labels):,} '
                    f'{prefix}labels; give one label an image.')
  if not images.size:
    raise DataError(f'{path}: {prefix}images is empty, {list(images.shape)}; give it some.')
  if labels.min() < 0 or labels.max() >= 1000:
    raise DataError(f'{path}: {prefix}labels go from {labels.min()} to {labels.max()}; they must '
                    'count the classes from 0, and be below 1,000.')
  return images[..., None] if images.ndim == 3 else images, labels.astype(np.int32)


def _class_names(path: str, names: np.ndarray | None, labels: np.ndarray,
                 test_labels: np.ndarray) -> tuple[str, ...]:
  present = np.unique(labels)
  classes = int(max(labels.max(), test_labels.max())) + 1
  if names is not None:
    if names.ndim != 1 or names.dtype.kind not in 'US' or len(names) < classes:
      raise DataError(f'{path}: class_names is {names.dtype} {list(names.shape)}; it must hold one '
                      f'string for each of the {classes} classes.')
    classes = len(names)
  if classes < 2:
    raise DataError(f'{path}: every label is 0; there must be two classes at least.')
  absent = np.setdiff1d(np.arange(classes), present)
  if absent.size:
    raise DataError(f'{path}: class {absent[0]} has no training example, although labels count up '
                    f'to {classes - 1}; number the classes without a gap.')
  if names is None:
    return tuple(str(i) for i in range(classes))
  # Half characters, which numpy allows, can be neither printed nor drawn.
  return tuple(name.decode('utf-8', 'replace') if isinstance(name, bytes)
               else name.encode('utf-8', 'replace').decode() for name in names.tolist())
