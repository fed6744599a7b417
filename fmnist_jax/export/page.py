"""A run -> one HTML file that classifies pictures in a browser."""

from __future__ import annotations

import pathlib

from fmnist_jax import evaluation, report, settings
from fmnist_jax.report import try_it
from fmnist_jax.storage import files
from fmnist_jax.trained_model import load_run


def write_page(directory: str | pathlib.Path, output: str | pathlib.Path,
               checkpoint: str = 'best', data_dir: str = '') -> None:
  """Writes the card "Try it" of a run's report as a page of its own.

  Args:
    directory: the run's work directory.
    output: the file to write; replaced when it exists.
    checkpoint: 'best', 'latest' or a step.
    data_dir: where the data set is, if not where the run found it.

  Raises:
    UserError: when the run, the checkpoint or the data set is missing, damaged or another one, the
      network is none that a page can run, or the file cannot be written.
  """
  run = load_run(directory, checkpoint)
  report.check_weights(run.parameters)
  dataset = evaluation.dataset_of(run, data_dir)
  network = evaluation.network_of(run.config, run.variables, run.image_shape, run.class_names)
  title = f'{dataset.name} · {settings.kind_name(type(run.config.model))}'
  files.write_bytes(output, try_it.page(network, *dataset.test.arrays(), 'test', title))
