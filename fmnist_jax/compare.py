"""The command line: `python -m fmnist_jax.compare runs/a_x8 runs/b_x8`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from fmnist_jax import command
from fmnist_jax.interrupt import Interrupt


def main(interrupt: Interrupt, argv: Sequence[str] | None = None) -> None:
  """The command line."""
  del interrupt  # There is nothing to save: a signal ends it on the spot.
  parser = command.Parser(
      prog='python -m fmnist_jax.compare',
      description='Compares finished populations, or runs: a table, differences from the first '
      'with intervals, in words, and a forest plot.')
  parser.add_argument('workdirs', nargs='+', metavar='WORKDIR',
                      help='directories of populations or runs; the first is what the others are '
                      'compared with')
  parser.add_argument('--output', default='compare', metavar='DIR',
                      help='where compare.md, compare.json and forest.png go (default: compare)')
  args = parser.parse_args(argv)
  from fmnist_jax.population import comparison, summary
  compared = comparison.compare(args.workdirs, args.output)
  print(summary.columns(comparison.cells(compared['systems'])))
  print()
  for entry in compared['differences']:
    print(entry['words'])
  print(f'\n{comparison.notes(compared["systems"])}')
  print(f'wrote {pathlib.Path(args.output) / "compare.md"}, compare.json and forest.png')


if __name__ == '__main__':
  command.run(main)
