"""The README's examples run as they stand."""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

from fmnist_jax.population import summary

README = pathlib.Path(__file__).parents[1] / 'README.md'
EXAMPLES = re.findall(r'```python\n(.*?)```', README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize('number', range(len(EXAMPLES)))
def test_an_example_runs(number, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  import jax
  with jax.numpy_rank_promotion('allow'):  # Other people's programs may promote.
    exec(compile(EXAMPLES[number], f'README example {number}', 'exec'), {'__name__': 'example'})
  printed = float(capsys.readouterr().out.split()[-1])
  # Macro F1 of a short run; mean loss of the last batch after a few epochs: it has learned.
  assert printed > 0.4 if number == 0 else printed < 1.5


def test_there_are_two():
  assert len(EXAMPLES) == 2


@pytest.mark.slow
def test_what_is_brought_trains_as_its_page_says(tmp_path):
  page = (README.parent / 'docs' / 'bring_your_own.md').read_text()
  example, = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
  (tmp_path / 'lab.py').write_text(example)
  command = [sys.executable, '-m', 'fmnist_jax.main', '--config=lab.py',
             '--config.data.name=synthetic', '--config.data.train_examples=400',
             '--config.data.test_examples=100', '--config.data.validation_examples=100',
             '--config.data.batch_size=20', '--config.model.width=8', '--config.train.epochs=8']
  process = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True,
                           env={**os.environ, 'PYTHONPATH': str(README.parent), 'XLA_FLAGS': ''})
  assert (process.returncode, process.stderr) == (0, '')
  saved = json.loads((tmp_path / 'runs' / 'lab' / 'config.json').read_text())
  assert saved['model'] == {'type': 'lab:Net', 'width': 8, 'rate': 0.1}
  assert json.loads((tmp_path / 'runs' / 'lab' / 'results.json').read_text())['accuracy'] > 0.3


def test_every_config_is_listed():
  text = README.read_text()
  for path in README.parent.glob('configs/*.py'):
    if path.stem != '__init__':
      assert f'`{path.stem}`' in text


def test_published_results_are_those_that_were_measured():
  folder = README.parent / 'experiments' / 'published_baselines'
  measured = json.loads((folder / 'results.json').read_text())['systems']
  table = README.read_text().partition('<!-- published: begin -->')[2]
  rows = [[cell.strip() for cell in row.split('|')[1:-1]]
          for row in table.partition('<!-- published: end -->')[0].splitlines()[3:]]
  assert len(rows) == 9
  for config, _, reported, accuracy, loss in rows:
    system, = (one for one in measured if f'`{one["config"]}`' == config)
    assert reported == system['reported']
    assert accuracy == summary.plus_minus(system['accuracy'], 100, 2)
    assert loss == f'{system["loss"]["mean"]:.3f}'


def test_the_ladder_is_what_was_measured():
  folder = README.parent / 'experiments' / 'frontier'
  measured = json.loads((folder / 'results.json').read_text())['recipes']
  table = README.read_text().partition('<!-- ladder: begin -->')[2]
  rows = [[cell.strip() for cell in row.split('|')[1:-1]]
          for row in table.partition('<!-- ladder: end -->')[0].splitlines()[3:]]
  assert rows
  for _, config, accuracy, seconds, ensemble, peer in rows:
    kept = measured[config.strip('`')]
    runs = [run['ours'] for run in kept['runs'].values()]
    assert len(runs) == 5
    assert accuracy == summary.plus_minus(
        summary.statistics([run['accuracy'] for run in runs]), 100, 2)
    assert seconds == f'{statistics.median(run["seconds"] for run in runs):.0f}'
    assert ensemble == f'{100 * kept["ensemble"]["accuracy"]:.2f}'
    others = [run['pytorch'] for run in kept['runs'].values() if 'pytorch' in run]
    if not others:
      assert peer == '-'
      continue
    other = summary.statistics([run['accuracy'] for run in others])
    assert peer == (f'{summary.plus_minus(other, 100, 2)}, '
                    f'{statistics.median(run["seconds"] for run in others):.0f} s')
