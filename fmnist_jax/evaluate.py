"""The command line: `python -m fmnist_jax.evaluate --workdir=runs/cnn`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from fmnist_jax import command
from fmnist_jax.interrupt import Interrupt


def main(interrupt: Interrupt, argv: Sequence[str] | None = None) -> None:
  """The command line."""
  del interrupt  # There is nothing to save: a signal ends it on the spot.
  parser = command.Parser(
      prog='python -m fmnist_jax.evaluate',
      description='Measures a checkpoint of a finished or running run again, prints precision, '
      'recall and F1 of each class, and writes results-SPLIT-CHECKPOINT.json into the workdir.')
  command.add_run_arguments(parser)
  parser.add_argument('--split', choices=('test', 'validation'), default='test',
                      help='what to measure on (default: test)')
  parser.add_argument('--data_dir', default='', help='folder with the data set\'s files, if not '
                      'where the run found them')
  parser.add_argument('--tta', metavar='flip,shift', help='test-time augmentation, in place of '
                      'what evaluate.tta of the run says: flip, shift, both or, empty, none')
  args = parser.parse_args(argv)
  command.prepare_run(args)
  from fmnist_jax import evaluation, report
  tta = None if args.tta is None else tuple(filter(None, args.tta.split(',')))
  results = evaluation.evaluate_run(args.workdir, args.split, args.checkpoint, args.data_dir, tta)
  print(report.classification_table(results))
  written = pathlib.Path(args.workdir) / evaluation.results_name(args.split, args.checkpoint, tta)
  print(f'wrote {written}')


if __name__ == '__main__':
  command.run(main)
