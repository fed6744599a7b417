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
  args = parser.parse_args(argv)
  command.prepare_run(args)
  from fmnist_jax import report
  from fmnist_jax.evaluation import evaluate_run
  results = evaluate_run(args.workdir, args.split, args.checkpoint, args.data_dir)
  print(report.classification_table(results))
  print(f'wrote {pathlib.Path(args.workdir) / f"results-{args.split}-{args.checkpoint}.json"}')


if __name__ == '__main__':
  command.run(main)
