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
  parser.add_argument('--workdir', required=True, help='directory of the run')
  parser.add_argument('--split', choices=('test', 'validation'), default='test',
                      help='what to measure on (default: test)')
  parser.add_argument('--checkpoint', default='best', metavar='best|latest|STEP',
                      help='which checkpoint (default: best)')
  parser.add_argument('--data_dir', default='', help='folder with the data set\'s files, if not '
                      'where the run found them')
  parser.add_argument('--config', metavar='FILE', help='the config file of the run, where it '
                      'defines a model or another part of your own')
  command.add_import_argument(parser)
  args = parser.parse_args(argv)
  from fmnist_jax import config_file, machine, report
  from fmnist_jax.evaluation import evaluate_run
  from fmnist_jax.storage import workdir
  config_file.import_parts(args.imports + [args.config] * bool(args.config))
  train = workdir.read_config(args.workdir).train
  machine.setup(deterministic=train.deterministic, compile_cache=train.compile_cache)
  results = evaluate_run(args.workdir, args.split, args.checkpoint, args.data_dir)
  print(report.classification_table(results))
  print(f'wrote {pathlib.Path(args.workdir) / f"results-{args.split}-{args.checkpoint}.json"}')


if __name__ == '__main__':
  command.run(main)
