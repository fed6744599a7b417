"""Published sets and the drawn garments: prepared by TFDS, and decoded once to array files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from fmnist_jax.data import formats, sources, synthetic
from fmnist_jax.data.dataset import Dataset
from fmnist_jax.data.kept import ARRAYS, SPLITS, Content, Kept
from fmnist_jax.errors import DataError, first_line


def published(name: str, files: sources.Files | None) -> Dataset:
  """One of `sources.ORIGINALS`.

  Args:
    name: which.
    files: to prepare it from; None: look for them where it has not been prepared yet.

  Raises:
    DataUnavailable: when it has not been, and the files are nowhere to be had.
    DataError: when the files turn out to be damaged.
  """
  original = sources.ORIGINALS[name]
  kept = Kept(name, name, 'the published files', lambda: _contents(name, files),
              dict(zip(ARRAYS, original.sha256)))
  dataset = kept.dataset(original.class_names,
                         names=formats.FILES if isinstance(original, formats.IdxFiles) else ARRAYS)
  return dataclasses.replace(dataset, mirrored_alike=original.mirrored_alike)


def drawn(train_examples: int, test_examples: int) -> Dataset:
  """So many of the garments of `synthetic`."""
  made_of = f'drawing {synthetic.VERSION}'
  kept = Kept('synthetic', f'synthetic_{train_examples}_{test_examples}', made_of,
              lambda: _contents('synthetic', None, train_examples, test_examples))
  return kept.dataset(synthetic.CLASS_NAMES, names=formats.FILES, synthetic=True)


def _contents(name: str, files: sources.Files | None, *counts: int) -> Iterator[Content]:
  """The copy that TFDS prepares, twice; then, without one, what it would be prepared from.

  Args: those of `builders.builder`.
  """
  from fmnist_jax.data import builders  # Imports TFDS, which takes a while.
  make = functools.partial(builders.builder, name, files, *counts)
  folder = builders.folder(name, *counts)
  try:
    for _ in range(2):
      builders.prepare(folder, make)
      try:
        made = make()
        content = _content(functools.partial(builders.decoded, made), made.sha256())
      except Exception as error:  # TFDS raises what it pleases.
        logging.warning('The prepared copy in %s is damaged (%s).', folder, first_line(error))
      else:
        yield content
      builders.discard(folder)
  except DataError:
    raise
  except Exception as error:  # A full or read-only disk, however TFDS or C++ tell it.
    logging.warning('%s cannot be prepared in %s (%s): reading it without a prepared copy.',
                    name, folder, first_line(error))
  made = make()
  yield _content(lambda split: made.chunks(split)[1], {})


def _content(chunks: Callable[[str], Any], sha256: dict[str, str]) -> Content:
  return Content({split: functools.partial(chunks, split) for split in SPLITS}, sha256)
