"""Reading back what a run saved, as if it came from an enemy: JSON of a known form, plain arrays.

A file that is read here is a regular one, its arrays are numbers and no pickles, which could
execute code, and they claim no more memory than the file can hold.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from fmnist_jax import machine
from fmnist_jax.errors import is_tame

# The forms of JSON values. A type is itself, float any finite number; a range is a whole number
# in it; a tuple lists alternatives; [form] is a list; {name: form} is an object that has at least
# these fields, {str: form} one whose fields all have that form.
Form = Any

LARGEST_JSON = 2**28  # bytes
LONGEST_HEADER = 2**16  # bytes, of an array

_COUNT = range(2**31)
_DATA = {'name': str, 'synthetic': bool, 'sha256': {str: str}, 'class_names': [str],
         'image_shape': [range(1, 2**31)], 'train_examples': range(1, 2**31)}
_SECONDS = {'data': float, 'compile': float, 'train': float}
# Of weights that a run started from: `transfer.Source.described`.
SOURCE = {'workdir': str, 'step': _COUNT, 'sha256': str, 'taken': [str], 'fresh': [str],
          'left': [str]}
_MEMBER = {'epoch': _COUNT, 'best_epoch': _COUNT, 'best_step': _COUNT, 'best_value': (float, None),
           'best_validation_accuracy': (float, None), 'finished': bool, 'seconds': _SECONDS,
           'lost_epoch': (_COUNT, None), 'init_from': (SOURCE, None)}
# What checkpoints hold beside their arrays: `trainer.Progress`, `vectorized.GroupProgress`.
PROGRESS = {**_MEMBER, 'data': _DATA}
GROUP_PROGRESS = {'members': [{**_MEMBER, 'data': {}}], 'bad_steps': [range(-1, 2**31)],
                  'data': _DATA, 'epoch': _COUNT, 'seconds': _SECONDS,
                  'init_from': (SOURCE, None)}
# results.json
RESULTS = {
    'dataset': str, 'synthetic': bool, 'split': str, 'examples': range(1, 2**31),
    'accuracy': float, 'loss': float, 'macro_f1': float, 'expected_calibration_error': float,
    'confusion_matrix': [[_COUNT]],
    'per_class': [{'name': str, 'precision': float, 'recall': float, 'f1': float,
                   'support': _COUNT}],
    'parameters': range(2**63), 'best_epoch': range(1, 2**31),
    'best_validation_accuracy': (float, None), 'epochs': range(1, 2**31), 'seed': _COUNT,
    'seconds': {**_SECONDS, 'evaluate': float}, 'data_sha256': {str: str}, 'versions': {str: str},
    'device': str}
# plan.json and, of what is read again, population.json.
PLAN = {'seeds': _COUNT, 'vary': {str: [float]}, 'init_from_sha256': (str, None), 'mode': str}
POPULATION = {'groups': [{'settings': {str: float}, 'members': [str]}]}
_EPOCH = {'epoch': _COUNT, 'step': _COUNT, 'clean_train_loss': float, 'clean_train_accuracy': float}
_VALIDATED = {'validation_loss': float, 'validation_accuracy': float}


def problem(value: Any, form: Form, name: str = '') -> str | None:
  """What keeps a value from being of a form, in words such as 'per_class[2].f1 is missing'."""
  what = name or 'the whole'
  if isinstance(form, tuple):
    found = [problem(value, one, name) for one in form]
    return None if None in found else found[0]
  if isinstance(form, list):
    if not isinstance(value, list):
      return f'{what} is no list'
    entries = ((entry, form[0], f'{name}[{i}]') for i, entry in enumerate(value))
  elif isinstance(form, dict):
    if not isinstance(value, dict):
      return f'{what} is no object'
    if str in form:
      form = dict.fromkeys(value, form[str])
    missing = [key for key in form if key not in value]
    if missing:
      return f'{name}{"." if name else ""}{missing[0]} is missing'
    entries = ((value[key], one, f'{name}{"." if name else ""}{repr(key)[1:-1][:80]}')
               for key, one in form.items())
  else:
    return None if _is_plain(value, form) else f'{what} is no {_WORDS.get(form, "such number")}'
  return next(filter(None, (problem(*entry) for entry in entries)), None)


_WORDS: dict[Any, str] = {str: 'printable string', bool: 'true or false', float: 'number',
                          None: 'null', dict: 'object'}


def _is_plain(value: Any, form: Form) -> bool:
  if form is dict:
    return isinstance(value, dict)
  if isinstance(form, range):
    return type(value) is int and value in form
  if form is float:
    # Integers of hundreds of digits are no floats, and 1e999 is read as infinity.
    return type(value) in (int, float) and abs(value) < 1e300
  if form is str:  # What is read is printed: no control characters, for a terminal to obey.
    return type(value) is str and is_tame(value)
  return value is None if form is None else type(value) is form


def history_problem(records: Sequence[Mapping[str, Any]]) -> str | None:
  """What keeps records from being metrics.jsonl of epochs 1, 2, 3 ...; see `problem`.

  Those of a group hold the records of all its members, each for as long as it trained.
  """
  if records and 'members' in records[0]:
    for number, record in enumerate(records, 1):
      if found := problem(record, {'step': _COUNT, 'members': {str: {}}}):
        return f'line {number}: {found}'
    members = {name: [record['members'][name] for record in records if name in record['members']]
               for name in records[0]['members']}
    return next((f'{name}, {found}' for name, those in members.items()
                 if (found := history_problem(those))), None)
  for number, record in enumerate(records, 1):
    validated = {name: form for name, form in _VALIDATED.items()
                 if _VALIDATED.keys() & records[0].keys()}
    found = problem(record, {**_EPOCH, **validated}) or problem(record, {str: float})
    if found is None and record['epoch'] != number:
      found = f'epoch {number} should be there, not {record["epoch"]}'
    if found:
      return f'line {number}: {found}'
  return None


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
  """Opens a file to read; raises OSError for what is none, such as a pipe, without waiting."""
  # Without O_NONBLOCK, opening a named pipe waits for a writer for ever.
  file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb')
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise OSError(0, 'it is not a regular file', os.fspath(path))
  return file


def content(path: str | os.PathLike[str]) -> bytes:
  """All of a file of JSON; raises OSError for one that is none, or larger than any of ours."""
  with open_regular(path) as file:
    if os.fstat(file.fileno()).st_size > LARGEST_JSON:
      raise OSError(0, f'it is larger than {LARGEST_JSON:,} bytes', os.fspath(path))
    return file.read(LARGEST_JSON)


def arrays(file: BinaryIO, wanted: Collection[str], *,
           packed: bool = True) -> dict[str, np.ndarray]:
  """Those of the `wanted` arrays that a .npz file has.

  Memory stays within what the headers claim, and they may claim no more than the file holds
  unpacked, and together than half of the machine's memory.

  Args:
    file: to read.
    wanted: names.
    packed: whether arrays may be compressed, 1,000 to one at worst; what this library writes is
      not.

  Raises:
    ValueError: in one line, for whatever is wrong with it; pickled objects, too, are refused.
  """
  try:
    found, left = {}, machine.memory() // 2
    whole = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
      for name in wanted:
        if f'{name}.npy' not in archive.NameToInfo:
          continue
        info = archive.getinfo(f'{name}.npy')
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[:1 + packed]:
          raise ValueError(f'{name} is packed in another way than numpy does')
        with archive.open(info) as member:
          shape, dtype = array_header(member)
        size = math.prod(shape) * dtype.itemsize
        # Deflate packs at most 1,032 to one.
        if size > info.file_size or info.file_size > 1032 * min(info.compress_size, whole) + 1032:
          raise ValueError(f'{name} claims {size:,} bytes, which are not there')
        left -= size
        if left < 0:
          raise ValueError(f'{name} claims {size:,} bytes, more than there is memory for')
        with archive.open(info) as member:
          found[name] = np.lib.format.read_array(member, allow_pickle=False)
          if member.read(1):
            raise ValueError(f'{name} goes on after its array')
    return found
  except Exception as error:  # zipfile and numpy raise what they please.
    text = ' '.join(str(error).split())[:200].rstrip('.')
    raise ValueError(text or type(error).__name__) from error


def array_header(member: Any) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and type of the array that a .npy file holds, read up to its first number.

  Raises:
    ValueError: for a header that is none, or of what is no array of numbers.
  """
  version = np.lib.format.read_magic(member)
  read, size = {(1, 0): (np.lib.format.read_array_header_1_0, 2),
                (2, 0): (np.lib.format.read_array_header_2_0, 4)}.get(version, (None, 0))
  if read is None:
    raise ValueError(f'its arrays are of version {version} of the .npy format')
  length = member.read(size)
  if int.from_bytes(length, 'little') > LONGEST_HEADER:
    raise ValueError('the header of an array is longer than any')
  shape, _, dtype = read(io.BytesIO(length + member.read(int.from_bytes(length, 'little'))))
  if dtype.hasobject:
    raise ValueError('it holds pickled objects, which could execute code')
  if any(length < 0 for length in shape):
    raise ValueError('an array has a negative length')
  return shape, dtype
