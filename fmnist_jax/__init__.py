"""Image classifiers in JAX: training, checkpoints, evaluation and explanation.

The public names below are imported when first used, so that `import fmnist_jax` costs nothing and
`python -m fmnist_jax.main` runs each module once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from fmnist_jax.config import Config
  from fmnist_jax.evaluate import evaluate_run
  from fmnist_jax.run import Run, load_run
  from fmnist_jax.train import train_and_evaluate

_HOME = {'Config': 'config', 'Run': 'run', 'evaluate_run': 'evaluate', 'load_run': 'run',
         'train_and_evaluate': 'train'}
_MODULES = ('checkpoint', 'config', 'config_file', 'data', 'errors', 'evaluate', 'metrics',
            'models', 'ops', 'optim', 'report', 'step')

__all__ = ['Config', 'Run', 'evaluate_run', 'load_run', 'train_and_evaluate']


def __getattr__(name: str) -> Any:
  if name in _HOME:
    return getattr(importlib.import_module(f'fmnist_jax.{_HOME[name]}'), name)
  if name in _MODULES:
    return importlib.import_module(f'fmnist_jax.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOME, *_MODULES])
