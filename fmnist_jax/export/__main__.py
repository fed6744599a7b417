"""The command line: `python -m fmnist_jax.export --workdir=runs/cnn --output=exported`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmnist_jax import command
from fmnist_jax.interrupt import Interrupt


def main(interrupt: Interrupt, argv: Sequence[str] | None = None) -> None:
  """The command line."""
  del interrupt  # There is nothing to save: a signal ends it on the spot.
  parser = command.Parser(
      prog='python -m fmnist_jax.export',
      description='Writes a trained model for other programs: ONNX in float32 and in 8 bits, '
      'safetensors, StableHLO, and a model card; after each gave the right probabilities.')
  command.add_run_arguments(parser)
  parser.add_argument('--output', required=True, metavar='PATH', help='folder to write; one that '
                      'an export wrote is replaced; with --page the file to write')
  parser.add_argument('--page', action='store_true', help='writes one HTML file that classifies '
                      'pictures and drawings in a browser, and nothing else')
  parser.add_argument('--data_dir', default='', help='folder with the data set\'s files, if not '
                      'where the run found them')
  args = parser.parse_args(argv)
  command.prepare_run(args)
  if args.page:
    from fmnist_jax.export.page import write_page
    write_page(args.workdir, args.output, args.checkpoint, args.data_dir)
    print(f'wrote {args.output}')
    return
  from fmnist_jax.export.folder import export_run
  made = export_run(args.workdir, args.output, args.checkpoint, args.data_dir)
  print(table(made['files']))
  for name, why in made['missing'].items():
    print(f'no {name}: {command.one_line(why)}')
  print(f'wrote {args.output}')


def table(files: Mapping[str, Mapping[str, Any]]) -> str:
  """What `export_run` measured, as text of equal columns."""
  width = max(map(len, files))
  rows = [f'{"":<{width}}{"bytes":>12}{"test accuracy":>16}{"difference":>13}{"images/s":>11}']
  for name, entry in files.items():
    row = f'{name:<{width}}{entry["bytes"]:>12,}'
    if entry['accuracy'] is not None:
      row += f'{entry["accuracy"]:>16.4f}{entry["difference"]:>13.1e}'
    if entry['images_per_second'] is not None:
      row += f'{entry["images_per_second"]:>11,.0f}'
    rows.append(row)
  return '\n'.join(rows)


if __name__ == '__main__':
  command.run(main)
