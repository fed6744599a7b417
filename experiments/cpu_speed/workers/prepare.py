"""Writes the examples that every library gets into one .npz: training, validation, test.

The library finds, verifies and deals them out, so all measure on the same 5,000 validation examples
that a run of the library does.
"""

from __future__ import annotations

import sys

import numpy as np

from fmnist_jax import command, data
from fmnist_jax import config as config_lib

if __name__ == '__main__':
  out, name, data_dir = sys.argv[1:]

  def main(interrupt: object) -> None:
    """Loads and writes."""
    del interrupt
    dataset = data.load(config_lib.Data(name=name, data_dir=data_dir))
    arrays = {}
    for split in ('train', 'validation', 'test'):
      images, labels = getattr(dataset, split).arrays()
      arrays |= {f'{split}_images': images, f'{split}_labels': labels.astype(np.int32)}
    np.savez(out, **arrays)
    print(f'{name}: ' + ', '.join(f'{len(arrays[f"{s}_labels"]):,} {s}'
                                  for s in ('train', 'validation', 'test')))
  command.run(main)
