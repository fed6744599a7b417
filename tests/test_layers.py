"""A module imports only from lower layers, so data flows one way."""

import ast
import pathlib

import fmnist_jax

# Lowest first; modules of one layer may import each other's only where they are one package.
LAYERS = (
    ('errors', 'readback'),
    ('config', 'files', 'interrupt', 'metrics', 'ops', 'backend'),
    ('command', 'config_file', 'plan', 'models', 'optim', 'sharding', 'step', 'workdir', 'data',
     'progress', 'processes'),
    ('manifest', 'epoch'),
    ('checkpoint', 'stacked'),
    ('run', 'report'),
    ('evaluate',),
    ('session',),
    ('train', 'summary'),
    ('lockstep', 'compare'),
    ('members',),
    ('population', 'main'),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOT = pathlib.Path(fmnist_jax.__file__).parent


def imported(path):
  """Modules of ours that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == 'fmnist_jax':
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('fmnist_jax.'):
      yield node.module.split('.')[1]


def test_imports_point_downwards():
  seen = set()
  for path in ROOT.rglob('*.py'):
    name = path.relative_to(ROOT).parts[0].removesuffix('.py')
    if name in ('__init__', 'configs'):
      continue
    seen.add(name)
    for other in imported(path):
      if other != name:
        assert RANK[other] < RANK[name], f'{path.name} imports {other}'
  assert {'step', 'train', 'data', 'models'} <= seen


def test_step_knows_nothing_of_ours():
  assert not list(imported(ROOT / 'step.py'))
