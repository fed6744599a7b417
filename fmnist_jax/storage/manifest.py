"""A list of a directory's files with their sizes and SHA-256, so that damage is seen before use.

`manifest.json` holds {"contents": {format, step, files, versions}, "sha256": digest of contents},
in one canonical form, so that no bit of the manifest itself can change unseen either.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import stat
from typing import Any

from fmnist_jax.errors import CheckpointError
from fmnist_jax.storage import files, readback

FORMAT = 1
NAME = 'manifest.json'
_FORM = {'format': range(FORMAT, FORMAT + 1), 'step': int,
         'files': {str: {'size': int, 'sha256': str}}, 'versions': {str: str}}
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')


class NewerFormatError(CheckpointError):
  """Not damage: falling back to an older checkpoint would hide it."""


def write(directory: pathlib.Path, step: int) -> None:
  """Forces every file below `directory` to the disk and lists them in its manifest.json.

  Args:
    directory: complete but for the manifest.
    step: which checkpoint this is.

  Raises:
    OSError: when the disk fails.
  """
  listed = {}
  for name, path in sorted(_files(directory).items()):
    with open(path, 'rb') as file:
      os.fsync(file.fileno())
      listed[name] = {'size': os.fstat(file.fileno()).st_size,
                      'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}
  contents = {'format': FORMAT, 'step': step, 'files': listed, 'versions': {
      name: importlib.metadata.version(name) for name in _PACKAGES}}
  with open(directory / NAME, 'xb') as file:
    file.write(seal(contents))
    file.flush()
    os.fsync(file.fileno())
  for parent, _, _ in os.walk(directory, topdown=False):
    files.fsync_directory(parent)


def verify(directory: pathlib.Path) -> dict[str, Any]:
  """Checks that a directory holds what its manifest lists, all of it, and nothing else.

  Returns:
    The contents of the manifest.

  Raises:
    CheckpointError: naming the file that is missing, damaged or too much; `NewerFormatError` for
      a manifest of a newer version of this library.
    OSError: when a file cannot be read.
  """
  contents = _read(directory)
  found = _files(directory)
  for name, entry in contents['files'].items():
    if name not in found:
      problem = 'is missing'
    elif not stat.S_ISREG(found[name].lstat().st_mode):
      problem = 'is not a regular file'
    elif found[name].stat().st_size != entry['size']:
      problem = f'has {found[name].stat().st_size} bytes instead of {entry["size"]}'
    elif _sha256(found[name]) != entry['sha256']:
      problem = 'has changed since it was written'
    else:
      continue
    raise CheckpointError(f'The checkpoint {directory} is damaged: its file {name} {problem}.')
  extra = sorted(found.keys() - contents['files'].keys())
  if extra:
    raise CheckpointError(f'The checkpoint {directory} is damaged: it holds {extra[0]}, which does '
                          'not belong to it.')
  return contents


def seal(contents: dict[str, Any]) -> bytes:
  """What manifest.json must be, byte for byte, to hold `contents`."""
  return files.canonical({'contents': contents, 'sha256': files.digest(contents)})


def _read(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / NAME
  problem = 'is not as it was written'
  try:
    if not stat.S_ISREG(path.lstat().st_mode):
      raise ValueError
    text = readback.content(path)
    contents = json.loads(text)['contents']
    if text != seal(contents):
      raise ValueError
    if type(contents['format']) is int and contents['format'] > FORMAT:
      raise NewerFormatError(f'The checkpoint {directory} was written by a newer fmnist_jax '
                             f'(format {contents["format"]}, this one reads {FORMAT}); upgrade '
                             'fmnist_jax.')
    if readback.problem(contents, _FORM):  # Whoever wrote a wrong manifest can seal it too.
      raise ValueError
    return contents
  except FileNotFoundError:
    problem = 'is missing'
  except (ValueError, KeyError, TypeError, RecursionError):
    pass
  raise CheckpointError(f'The checkpoint {directory} is damaged: its {NAME} {problem}.')


def _files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """Everything below `directory` that is not a directory, but for the manifest."""
  found = {}
  for parent, directories, names in os.walk(directory):
    links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
    for name in names + links:
      path = pathlib.Path(parent, name)
      found[path.relative_to(directory).as_posix()] = path
  found.pop(NAME, None)
  return found


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
