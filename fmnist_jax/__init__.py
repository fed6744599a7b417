"""Image classifiers in JAX: training, checkpoints, evaluation and explanation.

The public names below are imported when first used, so that `import fmnist_jax` costs nothing and
`python -m fmnist_jax.main` runs each module once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from fmnist_jax.config import Config
  from fmnist_jax.data import Augmentation, Dataset, DataSource
  from fmnist_jax.evaluation import evaluate_run
  from fmnist_jax.export.folder import export_run
  from fmnist_jax.losses import Loss
  from fmnist_jax.models import Compute, Model
  from fmnist_jax.optimizers import Horizon, Optimizer, Schedule, UpdateRule
  from fmnist_jax.population.train import train_population
  from fmnist_jax.settings import setting
  from fmnist_jax.train import train_and_evaluate
  from fmnist_jax.trained_model import TrainedModel, load_run

_HOME = {
    'Augmentation': 'data', 'Compute': 'models', 'Config': 'config', 'DataSource': 'data',
    'Dataset': 'data', 'Horizon': 'optimizers', 'Loss': 'losses', 'Model': 'models',
    'Optimizer': 'optimizers', 'Schedule': 'optimizers', 'TrainedModel': 'trained_model',
    'UpdateRule': 'optimizers',
    'evaluate_run': 'evaluation', 'export_run': 'export.folder', 'load_run': 'trained_model',
    'setting': 'settings', 'train_and_evaluate': 'train', 'train_population': 'population.train'}
_MODULES = ('config', 'config_file', 'data', 'errors', 'interrupt', 'losses', 'machine', 'metrics',
            'models', 'ops', 'optimizers', 'report', 'settings', 'step')

__all__ = [
    'Augmentation', 'Compute', 'Config', 'DataSource', 'Dataset', 'Horizon', 'Loss', 'Model',
    'Optimizer', 'Schedule', 'TrainedModel', 'UpdateRule', 'evaluate_run', 'export_run', 'load_run',
    'setting', 'train_and_evaluate', 'train_population']


def __getattr__(name: str) -> Any:
  if name in _HOME:
    return getattr(importlib.import_module(f'fmnist_jax.{_HOME[name]}'), name)
  if name in _MODULES:
    return importlib.import_module(f'fmnist_jax.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOME, *_MODULES])
