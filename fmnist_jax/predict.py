"""The command line: `python -m fmnist_jax.predict --workdir=runs/cnn shoe.jpg photos/`."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fmnist_jax import command
from fmnist_jax.errors import DataError, UserError
from fmnist_jax.interrupt import Interrupt

AT_ONCE = 1000  # images
LARGEST_INPUT = 2**30  # bytes, of standard input


class Answer(NamedTuple):
  """What the model says of one image."""
  name: str
  probabilities: Any  # float32 [K]


def main(interrupt: Interrupt, argv: Sequence[str] | None = None) -> None:
  """The command line."""
  del interrupt  # There is nothing to save: a signal ends it on the spot.
  parser = command.Parser(
      prog='python -m fmnist_jax.predict',
      description='Says what pictures show. A photograph is prepared as Fashion-MNIST was made of '
      'photographs; a picture of the model\'s own size is taken as it is.')
  parser.add_argument('files', nargs='+', metavar='FILE', help='PNG, JPEG, BMP or WebP; a folder '
                      'of them; a .npz with an array images; - for standard input')
  parser.add_argument('--workdir', required=True, help='directory of the run')
  parser.add_argument('--checkpoint', default='best', metavar='best|latest|STEP',
                      help='which checkpoint (default: best)')
  parser.add_argument('--format', choices=tuple(WRITERS), default='table',
                      help='what is printed (default: table)')
  parser.add_argument('--config', metavar='FILE', help='the config file of the run, where it '
                      'defines a model or another part of your own')
  command.add_import_argument(parser)
  args = parser.parse_args(argv)
  from fmnist_jax import config_file, machine
  from fmnist_jax.storage import workdir
  from fmnist_jax.trained_model import load_run
  config_file.import_parts(args.imports + [args.config] * bool(args.config))
  train = workdir.read_config(args.workdir).train
  machine.setup(deterministic=train.deterministic, compile_cache=train.compile_cache)
  run = load_run(args.workdir, args.checkpoint)
  failed: list[DataError] = []
  WRITERS[args.format](answers(run, args.files, failed), run.class_names)
  if failed:
    error = UserError(f'{len(failed)} of the files could not be read.')
    error.told = True  # One by one.
    raise error


def answers(run: Any, files: Sequence[str], failed: list[DataError]) -> Iterator[Answer]:
  """What a `TrainedModel` says of each image, in order; files that are none are told on stderr.

  Args:
    run: the model.
    files: as on the command line.
    failed: gets the error of each file that could not be read.
  """
  import numpy as np
  waiting = _images(run.image_shape, files, failed)
  while some := list(itertools.islice(waiting, AT_ONCE)):
    for (name, _), row in zip(some, run.predict(np.stack([image for _, image in some]))):
      yield Answer(name, row)


def _images(shape: tuple[int, int, int], files: Sequence[str],
            failed: list[DataError]) -> Iterator[tuple[str, Any]]:
  for file in files:
    try:
      yield from _of_file(shape, file, failed)
    except DataError as error:
      _tell(error, failed)


def _tell(error: DataError, failed: list[DataError]) -> None:
  sys.stdout.flush()
  print(f'error: {command.one_line(str(error))}', file=sys.stderr)
  failed.append(error)


def _of_file(shape: tuple[int, int, int], file: str,
             failed: list[DataError]) -> Iterator[tuple[str, Any]]:
  """(name, uint8 [H, W, C]) of all images in a file, folder or standard input."""
  from fmnist_jax import photograph
  if file == '-':
    content = sys.stdin.buffer.read(LARGEST_INPUT + 1)
    if len(content) > LARGEST_INPUT:
      raise DataError(f'Standard input holds more than {LARGEST_INPUT:,} bytes; name a file.')
    stream = io.BytesIO(content)
    if content.startswith(b'PK'):
      yield from _of_npz(shape, stream, 'standard input')
    else:
      yield file, photograph.read(stream, shape, 'standard input')
  elif os.path.isdir(file):
    found = sorted(path for path in pathlib.Path(file).rglob('*')
                   if path.suffix.lower() in photograph.SUFFIXES and path.is_file())
    if not found:
      raise DataError(f'{file} holds no pictures ({", ".join(photograph.SUFFIXES)}).')
    for path in found:
      try:
        yield str(path), photograph.read(str(path), shape)
      except DataError as error:
        _tell(error, failed)
  elif file.endswith('.npz'):
    from fmnist_jax.storage import readback
    try:
      stream = readback.open_regular(file)
    except (OSError, ValueError) as error:
      raise DataError(f'{file} cannot be read: {getattr(error, "strerror", None) or error}.'
                      ) from error
    with stream:
      yield from _of_npz(shape, stream, file)
  else:
    yield file, photograph.read(file, shape)


def _of_npz(shape: tuple[int, int, int], stream: Any, name: str) -> Iterator[tuple[str, Any]]:
  from fmnist_jax.storage import readback
  from fmnist_jax.trained_model import check_images
  try:
    found = readback.arrays(stream, ('images', 'x_test'))
    if not found:
      raise ValueError('it has no array images')
    images = check_images(next(iter(found.values())), shape)
  except (ValueError, DataError) as error:
    raise DataError(f'{name} is no .npz of images for this model ({str(error).rstrip(".")}).'
                    ) from error
  yield from ((f'{name}[{number}]', image) for number, image in enumerate(images))


# What is printed.

def _table(found: Iterator[Answer], class_names: Sequence[str]) -> None:
  for name, row in found:
    best, *others = (int(k) for k in row.argsort(kind='stable')[::-1][:3])
    rest = ', '.join(f'{class_names[k]} {row[k]:.1%}' for k in others)
    print(f'{command.one_line(name)}: {class_names[best]} {row[best]:.1%}  ({rest})')


def _json(found: Iterator[Answer], class_names: Sequence[str]) -> None:
  print(json.dumps([
      {'file': name, 'class': class_names[int(row.argmax())], 'label': int(row.argmax()),
       'probabilities': dict(zip(class_names, map(float, row)))} for name, row in found], indent=1))


def _csv(found: Iterator[Answer], class_names: Sequence[str]) -> None:
  out = csv.writer(sys.stdout)
  out.writerow(['file', 'class', 'probability', *class_names])
  for name, row in found:
    best = int(row.argmax())
    out.writerow([name, class_names[best], float(row[best]), *map(float, row)])


WRITERS = {'table': _table, 'json': _json, 'csv': _csv}


if __name__ == '__main__':
  command.run(main)
