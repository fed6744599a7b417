"""The command line: `python -m fmnist_jax.predict --workdir=runs/cnn shoe.jpg photos/`."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fmnist_jax import command
from fmnist_jax.errors import DataError, UserError
from fmnist_jax.interrupt import Interrupt

AT_ONCE = 100  # images
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
      description='Says what pictures show. A photograph is prepared as those were that the model '
      'was trained on, by default as Fashion-MNIST was made of photographs; a picture of the '
      'model\'s own size is taken as it is.')
  parser.add_argument('files', nargs='+', metavar='FILE', help='PNG, JPEG, BMP or WebP; a folder '
                      'of them; a .npz with an array images; - for standard input')
  command.add_run_arguments(parser)
  parser.add_argument('--format', choices=tuple(WRITERS), default='table',
                      help='what is printed (default: table)')
  args = parser.parse_intermixed_args(argv)
  command.prepare_run(args)
  from fmnist_jax.trained_model import load_run
  run = load_run(args.workdir, args.checkpoint)
  if run.image_shape[2] not in (1, 3):
    raise DataError(f'The model of {args.workdir} takes images of {run.image_shape[2]} channels; '
                    'pictures have 1 or 3.')
  if run.config.evaluate.tta:
    from fmnist_jax import views
    print(f'What is said of each image is the {views.told(run.config.evaluate.tta)}, as the run '
          'has it in evaluate.tta.', file=sys.stderr)
  failed: list[str] = []
  WRITERS[args.format](answers(run, args.files, failed), run.class_names)
  if failed:
    error = UserError(f'{len(failed)} of the files could not be read.')
    error.told = True  # One by one.
    raise error


def answers(run: Any, files: Sequence[str], failed: list[str]) -> Iterator[Answer]:
  """What a `TrainedModel` says of each image, in order; files that are none are told on stderr.

  Args:
    run: the model.
    files: as on the command line.
    failed: gets the error of each file that could not be read.
  """
  import numpy as np
  for some in _alike(_images(run, files, failed)):
    for (name, _), row in zip(some, run.predict(np.stack([image for _, image in some]))):
      yield Answer(name, row)
    sys.stdout.flush()


def _alike(images: Iterator[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
  """Neighbours of one dtype, bytes or fractions, at most AT_ONCE together."""
  some: list[tuple[str, Any]] = []
  for name, image in images:
    if some and (len(some) == AT_ONCE or image.dtype != some[0][1].dtype):
      yield some
      some = []
    some.append((name, image))
  if some:
    yield some


def _images(run: Any, files: Sequence[str], failed: list[str]) -> Iterator[tuple[str, Any]]:
  for file in files:
    try:
      yield from _of_file(run, file, failed)
    except DataError as error:
      _tell(error, failed)


def _tell(error: DataError, failed: list[str]) -> None:
  sys.stdout.flush()
  print(f'error: {command.one_line(str(error))}', file=sys.stderr)
  failed.append(str(error))  # Not the error, which holds on to the picture.


def _of_file(run: Any, file: str, failed: list[str]) -> Iterator[tuple[str, Any]]:
  """(name, uint8 [H, W, C]) of all images in a file, folder or standard input."""
  from fmnist_jax import photograph
  def read(stream: Any, name: str) -> Any:
    return photograph.read(stream, run.image_shape, name, run.config.data.preparation())
  if file == '-':
    if sys.stdin is None:
      raise DataError('There is no standard input.')
    content = sys.stdin.buffer.read(LARGEST_INPUT + 1)
    if len(content) > LARGEST_INPUT:
      raise DataError(f'Standard input holds more than {LARGEST_INPUT:,} bytes; name a file.')
    stream = io.BytesIO(content)
    if content.startswith(b'PK'):
      yield from _of_npz(run.image_shape, stream, 'standard input')
    else:
      yield file, read(stream, 'standard input')
  elif os.path.isdir(file):
    def unreadable(error: OSError) -> None:
      _tell(DataError(f'{error.filename} cannot be read: {error.strerror}.'), failed)
    found = [os.path.join(folder, name) for folder, _, names in os.walk(file, onerror=unreadable)
             for name in names if name.lower().endswith(photograph.SUFFIXES)]
    if not found:
      raise DataError(f'{file} holds no pictures ({", ".join(photograph.SUFFIXES)}).')
    for path in sorted(found):
      try:
        with _opened(path) as opened:
          image = read(opened, path)
      except DataError as error:
        _tell(error, failed)
        continue
      yield path, image
  else:
    with _opened(file) as opened:
      if file.endswith('.npz'):
        yield from _of_npz(run.image_shape, opened, file)
      else:
        yield file, read(opened, file)


def _opened(file: str) -> Any:
  from fmnist_jax.storage import readback
  try:
    return readback.open_regular(file)
  except (OSError, ValueError) as error:
    raise DataError(f'{file} cannot be read: {getattr(error, "strerror", None) or error}.'
                    ) from error


def _of_npz(shape: tuple[int, int, int], stream: Any, name: str) -> Iterator[tuple[str, Any]]:
  from fmnist_jax.storage import readback
  from fmnist_jax.trained_model import check_images
  try:
    found = readback.arrays(stream, ('images',))
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
    best, *others = (int(k) for k in (-row).argsort(kind='stable')[:3])
    rest = ', '.join(f'{class_names[k]} {row[k]:.1%}' for k in others)
    print(f'{command.one_line(name)}: {class_names[best]} {row[best]:.1%}  ({rest})')


def _json(found: Iterator[Answer], class_names: Sequence[str]) -> None:
  print(json.dumps([
      {'file': name, 'class': class_names[int(row.argmax())], 'label': int(row.argmax()),
       'probabilities': dict(zip(class_names, map(float, row)))} for name, row in found], indent=1))


def _csv(found: Iterator[Answer], class_names: Sequence[str]) -> None:
  out = csv.writer(sys.stdout, lineterminator='\n')
  out.writerow(['file', 'class', 'probability', *class_names])
  for name, row in found:
    best = int(row.argmax())
    out.writerow([command.one_line(name), class_names[best], float(row[best]), *map(float, row)])


WRITERS = {'table': _table, 'json': _json, 'csv': _csv}


if __name__ == '__main__':
  command.run(main)
