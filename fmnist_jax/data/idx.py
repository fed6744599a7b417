"""The IDX format of MNIST and Fashion-MNIST, read as if the file came from an enemy.

An IDX file is a magic number (two zero bytes, a type code, the number of axes), each axis's
length as a big-endian 32-bit integer, then the values in C order; usually packed with gzip.
Memory stays within what the header claims, within `max_bytes`, and within what the file really
holds: a header that claims a gigabyte in a file of twenty bytes costs twenty bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np

from fmnist_jax.errors import DataError
from fmnist_jax.storage import readback

_UINT8 = 0x08
# What arrays of ours hold: bytes, and labels of more classes than those can tell apart.
KINDS = {np.dtype(np.uint8): _UINT8, np.dtype('>i4'): 0x0C}
_MAX_AXES = 4
_PIECE = 1 << 16
_GZIP_MAGIC = b'\x1f\x8b'


def header(shape: tuple[int, ...], dtype: Any = np.uint8) -> bytes:
  """The bytes that open the IDX file of an array of this shape and a dtype of `KINDS`.

  Images [N, H, W, 1] are grey ones, [N, H, W].
  """
  axes = shape[:3] if shape[3:] == (1,) else shape
  return struct.pack(f'>BBBB{len(axes)}I', 0, 0, KINDS[np.dtype(dtype)], len(axes), *axes)


def labels_array(labels: np.ndarray) -> np.ndarray:
  """Labels [N] as a file holds them: bytes, where those will do."""
  return labels.astype(np.uint8 if labels.max() < 256 else '>i4')


def sha256(array: np.ndarray) -> str:
  """The SHA-256 of the unpacked IDX file that holds this array, of a dtype of `KINDS`, in hex."""
  digest = hashlib.sha256(header(array.shape, array.dtype))
  digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()


def read(path: str | os.PathLike, *, max_bytes: int = 1 << 30) -> np.ndarray:
  """Reads an IDX file of unsigned bytes, packed with gzip or not.

  Args:
    path: the file.
    max_bytes: the most the header may claim.

  Returns:
    The array: uint8, writable, of the shape the header names.

  Raises:
    DataError: when the file is missing, no IDX file of bytes, truncated, damaged, longer than its
      header says, or larger than `max_bytes`.
  """
  path = os.fspath(path)
  try:
    with readback.open_regular(path) as file:
      return parse(file, path, max_bytes=max_bytes)
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
    raise DataError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}; '
                    'check the file and its permissions.') from error


def parse(file: BinaryIO, path: str, *, max_bytes: int) -> np.ndarray:
  """As `read`, of a file that is open. `path` is for errors."""
  magic = file.read(2)
  file.seek(0)
  stream: Any = gzip.GzipFile(fileobj=file) if magic == _GZIP_MAGIC else file
  content = bytearray()

  def fill(size: int) -> bool:
    """Reads until `content` holds at least `size` bytes; False when the file ends before."""
    try:
      while len(content) < size:
        piece = stream.read1(_PIECE)
        if not piece:
          return False
        content.extend(piece)
      return True
    except EOFError as error:
      raise DataError(f'{path} is truncated: its gzip stream breaks off; fetch it again.'
                      ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
      raise DataError(f'{path} is damaged (gzip: {error}); fetch it again.') from error

  if not fill(4):
    raise DataError(f'{path} ends after {len(content)} bytes and is no IDX file; fetch it again.')
  zeros, kind, axes = struct.unpack('>HBB', content[:4])
  if zeros or not 1 <= axes <= _MAX_AXES:
    raise DataError(f'{path} is no IDX file (it starts with {bytes(content[:4]).hex()}); '
                    'fetch it again.')
  if kind != _UINT8:
    raise DataError(f'{path} holds IDX values of type 0x{kind:02x}; only unsigned bytes (0x08) '
                    'are read.')
  start = 4 + 4 * axes
  if not fill(start):
    raise DataError(f'{path} is truncated within its header; fetch it again.')
  shape = struct.unpack(f'>{axes}I', content[4:start])
  size = math.prod(shape)
  if not size:
    raise DataError(f'{path} is empty: its header says {_times(shape)}; fetch it again.')
  if size > max_bytes:
    raise DataError(f'{path} claims {_times(shape)} bytes, more than the {max_bytes:,} '
                    'allowed; fetch it again.')
  if not fill(start + size):
    raise DataError(f'{path} is truncated: {len(content) - start:,} of the {size:,} bytes its '
                    f'header promises ({_times(shape)}) are there; fetch it again.')
  # One more read also makes gzip check its checksum.
  if fill(start + size + 1):
    raise DataError(f'{path} goes on after the {size:,} bytes its header promises '
                    f'({_times(shape)}); fetch it again.')
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _times(shape: tuple[int, ...]) -> str:
  return ' x '.join(f'{n:,}' for n in shape)
