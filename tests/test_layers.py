"""A module imports only from lower layers, so data flows one way."""

import ast
import pathlib

import fmnist_jax

# Lowest first; modules of one layer may import each other's only where they are one package.
LAYERS = (
    ('errors', 'interrupt', 'locks'),
    ('machine', 'photograph'),
    ('settings', 'storage.readback', 'metrics', 'step', 'views', 'processes'),
    ('ops',),
    ('freezing',),
    ('storage.files', 'sharding', 'models', 'optimizers', 'losses'),
    ('graph',),
    ('storage.manifest', 'progress', 'report'),
    ('data',),
    ('config',),
    ('storage.workdir', 'storage.checkpoint', 'programs', 'config_file', 'parts',
     'population.plan', 'search.directories'),
    ('trained_model', 'tensorboard', 'population.stacked', 'command', 'search.space',
     'search.storage'),
    ('evaluation', 'transfer', 'population.summary', 'search.board'),
    ('equipment', 'population.comparison'),
    ('trainer',),
    ('train', 'population.vectorized', 'search.summary'),
    ('population.independent',),
    ('population.train', 'search.bench'),
    ('search.attempts',),
    ('search.apart',),
    ('search.lanes',),
    ('search.search',),
    ('main', 'evaluate', 'predict', 'compare', 'export', 'population.__main__',
     'search.__main__'),
    ('__main__',),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOT = pathlib.Path(fmnist_jax.__file__).parent


# Folders whose files are ranked one by one; other packages are one thing each.
SHELVES = ('storage', 'population', 'search')


def place(name):
  """The entry of `LAYERS` that a dotted name below the package belongs to."""
  first, *rest = name.split('.')
  return f'{first}.{rest[0]}' if first in SHELVES and rest else first


def imported(path):
  """Modules of ours that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'fmnist_jax':
      inside = node.module.removeprefix('fmnist_jax').removeprefix('.')
      if inside in ('', *SHELVES):
        yield from (place(f'{inside}.{alias.name}'.removeprefix('.')) for alias in node.names)
      else:
        yield place(inside)


def test_imports_point_downwards():
  seen = set()
  for path in ROOT.rglob('*.py'):
    name = place('.'.join(path.relative_to(ROOT).with_suffix('').parts))
    if name.split('.')[-1] == '__init__' or name == 'configs':
      continue
    seen.add(name)
    for other in imported(path):
      if other != name:
        assert RANK[other] < RANK[name], f'{path.name} imports {other}'
  assert {'step', 'train', 'data', 'models'} <= seen


def test_step_knows_nothing_of_ours():
  assert not list(imported(ROOT / 'step.py'))
