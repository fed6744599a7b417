"""Trials apart: each run for itself, with the bits of that run alone, in threads on a CPU."""

from __future__ import annotations

from fmnist_jax import tensorboard
from fmnist_jax.interrupt import Signals
from fmnist_jax.population.independent import in_threads, is_done
from fmnist_jax.progress import Console
from fmnist_jax.search.attempts import Attempt, Desk, Run
from fmnist_jax.storage.workdir import Workdir
from fmnist_jax.trainer import Trainer


def train(desk: Desk, threads: int, signals: Signals) -> None:
  """Trains attempts as long as there are any, so many at a time."""

  def work(own: Signals) -> None:
    while (attempt := desk.take(own)) is not None:
      with attempt.ending():
        for run in attempt.runs:
          _train_run(attempt, run, own)
        attempt.end('finished')

  in_threads(threads, signals, [work] * threads)


def _train_run(attempt: Attempt, run: Run, signals: Signals) -> None:
  note = tensorboard.recorder(run.config, run.path, lambda record: attempt.note(run, record))
  with Workdir(run.path, run.config, note) as workdir:
    if is_done(run.path):
      attempt.recall(run, workdir.history.read())
      return
    trainer = Trainer(run.config, workdir, attempt.equipment, Console(silent=True), signals)
    try:
      trainer.resume()
      attempt.recall(run, workdir.history.read())
      trainer.fit()
      trainer.finish(with_report=False)
    finally:
      trainer.checkpoints.close()
