"""What the experiments that train populations make of them: pairs, tables, the results page."""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import runs

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, models, train, trained_model
from fmnist_jax.errors import ConfigError, UserError
from fmnist_jax.population import summary
from fmnist_jax.storage import files

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'experiments'


def script(name):
  """The module of a script below experiments/."""
  path = list(sys.path)
  spec = importlib.util.spec_from_file_location(
      f'experiment_{name.replace("/", "_").removesuffix(".py")}', FOLDER / name)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # Dataclasses look their module up.
  spec.loader.exec_module(module)
  sys.path[:] = path
  return module


@pytest.fixture(scope='module', name='record')
def _record():
  return script('record.py')


def experiment(record, tmp_path, **args):
  folder = tmp_path / 'asked'
  folder.mkdir(exist_ok=True)
  (folder / 'README.md').write_text(f'# Is it?\n\nSo.\n\n{record.BEGIN}\nold\n{record.END}\nend\n')
  args = argparse.Namespace(**{'seeds': 2, 'quick': False, 'data_dir': '', **args})
  return record.Experiment(folder, tmp_path / 'runs', args, runs.InterruptAt(10**9))


def test_the_results_page_has_the_first_table_of_every_experiment(record):
  page = FOLDER / 'README.md'
  before = page.read_text()
  try:
    assert record.gather() == before, 'python experiments/record.py writes it again'
  finally:
    page.write_text(before)
  for folder in FOLDER.glob('*/README.md'):
    assert f'({folder.parent.name}/README.md)' in before
    numbers = folder.read_text().partition(record.BEGIN)[2].partition(record.END)[0]
    first = next((line for line in numbers.splitlines() if line.startswith('|')), 'Not measured')
    assert first in before


def test_results_go_between_the_marks_and_onto_the_page(record, tmp_path, monkeypatch):
  (tmp_path / 'README.md').write_text(f'Page\n{record.BEGIN}\n{record.END}\n')
  monkeypatch.setattr(record, '__file__', str(tmp_path / 'record.py'))
  table = record.table([['what', 'how much'], ['this', '3']])
  experiment(record, tmp_path).save({'lessons': ['It is.']}, f'{table}\n\nmore', {'a.png': b'x'})
  readme = (tmp_path / 'asked' / 'README.md').read_text()
  assert readme == (f'# Is it?\n\nSo.\n\n{record.BEGIN}\n{table}\n\nmore\n{record.END}\nend\n')
  assert (tmp_path / 'README.md').read_text() == (
      f'Page\n{record.BEGIN}\n\n## Is it?\n\n[asked](asked/README.md)\n\n{table}\n\n- It is.\n\n'
      f'{record.END}\n')
  assert (tmp_path / 'asked' / 'a.png').read_bytes() == b'x'


def test_a_population_is_timed_once_whoever_asks_for_it(record, tmp_path):
  config = runs.full_config(epochs=1, precision='float32')
  config.data.augment, config.model = (), config_file.load('mlp').model
  first = experiment(record, tmp_path)
  first.population('small', config)
  took = first.seconds['small_x2']
  assert took > 0
  second = experiment(record, tmp_path)
  second.population('small', config)
  assert second.seconds == pytest.approx({'small_x2': took}, abs=0.2)
  assert record.duration(3661) == '1 h 1 min' and record.duration(100) == '2 min'


def test_remedies_are_paired_by_seed():
  overfitting = script('overfitting/run.py')
  plain = {'seeds': [0, 1, 2], 'gap_at_end': {'values': [0.01, 0.02, 0.03]}}
  other = {'seeds': [2, 0], 'gap_at_end': {'values': [0.02, 0.005]}}  # Seed 1 diverged.
  change = overfitting._change(plain, other, 'gap_at_end')
  assert change.values == 2 and change.mean == pytest.approx(-0.75)
  assert overfitting._verdict(change, 'narrows', 'widens', 'the gap').startswith(
      'changes the gap by nothing that these seeds show (-0.75 +- ')


def test_confusions_are_counted_for_each_member(tmp_path):
  hardest = script('hardest_classes/run.py')
  members = []
  for seed in (0, 1):
    config = runs.full_config(epochs=1, precision='float32', seed=seed)
    config.data.augment, config.model = (), config_file.load('mlp').model
    train.train_and_evaluate(config, tmp_path / str(seed))
    members.append(summary.read(tmp_path / str(seed)))
  found, = hardest.pairs(members, [('Shirt', 'Coat')])
  counts = [((member.labels == 6) & (member.probabilities.argmax(1) == 4)).sum()
            for member in members]
  assert found['examples']['values'] == counts and found['members'] == 2
  wrong = hardest.always_wrong(members)
  assert wrong and all(
      member.probabilities[entry['image']].argmax() != member.labels[entry['image']]
      for entry in wrong for member in members)


@pytest.mark.parametrize('wrong', [{'members': '1,x'}, {'members': '0'}, {'rounds': 0},
                                   {'models': 'mpl'}])
def test_speeds_of_nothing_are_refused_before_anything_runs(record, tmp_path, wrong):
  speed = script('population_speed/run.py')
  args = {'models': 'mlp', 'members': '1,2', 'epochs': 20, 'rounds': 1} | wrong
  with pytest.raises(ConfigError):
    speed.body(experiment(record, tmp_path, **args))
  assert not (tmp_path / 'runs').exists()


def test_speeds_are_kept_apart_by_machine_and_recipe(record, tmp_path):
  speed = script('population_speed/run.py')
  one = {'device': '1 x cpu', 'versions': {'jax': '1'}, 'data_sha256': 'a'}
  here = experiment(record, tmp_path, epochs=20)
  places = {speed.place(here, 'mlp', one), speed.place(here, 'cnn', one),
            speed.place(here, 'mlp', {**one, 'device': '1 x gpu'}),
            speed.place(here, 'mlp', {**one, 'versions': {'jax': '2'}}),
            speed.place(experiment(record, tmp_path, epochs=5), 'mlp', one)}
  assert len(places) == 5
  directory = speed.place(here, 'mlp', one)
  directory.mkdir(parents=True)
  walls = {'separate processes/8': [100.0], 'independent/8': [40.0, 60.0, 50.0]}
  files.write_json(directory / 'measurements.json', walls)
  assert speed.read(directory) == json.loads(json.dumps(walls))
  found = {'versions': {'jax': '1'}, 'synthetic': False,
           'models': {'mlp': {'epochs': 20, 'wall_seconds': walls, 'agreement': None}}}
  text = speed.section('1 x cpu', found)
  assert '| 8 | 4.80 | 9.60 (2.00 x) | - |' in text
  assert 'each measured 1 to 3 x, at most 50 % apart; 4 min in all' in text
  assert speed.picture({'1 x cpu': found})[:4] == b'\x89PNG'


def test_channels_that_are_nothing_can_be_removed(record):
  compress = script('compress/run.py')
  wide, narrow = (models.build(config_lib.CNN(channels=channels, pool=(2, 2), dense=dense), 3,
                               models.Compute())
                  for channels, dense in (((4, 6), (8,)), ((2, 3), (4,))))
  images = np.random.default_rng(0).random((5, 16, 16, 1), np.float32)
  params = jax.tree.map(np.array, wide.init(jax.random.key(0), images, train=False)['params'])
  kept = {'Conv_0': [1, 2], 'Conv_1': [0, 3, 4], 'Dense_0': [1, 2, 5, 7]}
  for name, those in kept.items():
    gone = np.setdiff1d(np.arange(params[name]['bias'].size), those)
    params[name]['kernel'][..., gone] *= 1e-9
    params[name]['bias'] = np.random.default_rng(1).random(params[name]['bias'].size) - 0.3
    params[name]['bias'][gone] = 0
  found = compress.pruned(params, 2)
  smaller = {name: {leaf: found[f'params/{name}/{leaf}'] for leaf in ('kernel', 'bias')}
             for name in params}
  np.testing.assert_allclose(narrow.apply({'params': smaller}, images, train=False),
                             wide.apply({'params': params}, images, train=False), rtol=1e-5,
                             atol=1e-6)


def test_what_no_other_beats_in_cost_and_worth():
  compress = script('compress/run.py')
  assert compress.frontier([(3, 0.9), (1, 0.5), (2, 0.4), (1, 0.6), (4, 0.9)]) == [
      (1, 0.6), (3, 0.9)]


def test_teachers_say_what_an_image_is(record, tmp_path):
  compress = script('compress/run.py')
  teachers = []
  for seed in (0, 1):
    config = runs.full_config(epochs=1, precision='float32', seed=seed)
    config.data.augment, config.model = (), config_file.load('mlp').model
    train.train_and_evaluate(config, tmp_path / str(seed))
    teachers.append(str(tmp_path / str(seed)))
  taught = compress.Taught(tuple(teachers))
  taught.check_settings('')
  images = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1), np.uint8)
  one_hot = np.eye(10, dtype=np.float32)[:6]
  same, targets = jax.jit(lambda *args: taught(*args))(jax.random.key(0), images, one_hot)
  np.testing.assert_array_equal(same, images)
  both = [trained_model.load_run(teacher).predict(images) for teacher in teachers]
  np.testing.assert_allclose(targets, (both[0] + both[1]) / 2, rtol=1e-5, atol=1e-6)


def test_parts_of_a_recipe_change_what_they_say_and_nothing_else():
  recipe = script('recipe_parts/run.py')
  plain = config_file.load('cnn')
  changed = {short: config_lib.validate(part.change(plain)) if part.change else plain
             for short, part in recipe.parts(plain).items()}
  differ = {short: {line.partition(':')[0].split('.')[0] for line in config_lib.differences(
      plain, other)} for short, other in changed.items()}
  sections = {short: next(iter(names)) for short, names in differ.items() if len(names) == 1}
  assert {short for short, section in sections.items() if section == 'optim'} == {
      'muon', 'sam', 'lookahead', 'bias_rate'}
  assert {short for short, section in sections.items() if section == 'data'} == {
      'alternating_flip', 'mixup', 'cutmix', 'random_erasing', 'rand_augment', 'crop', 'flip'}
  assert {short for short, names in differ.items() if not names} == {
      'tta_flip', 'tta_shift', 'tta_both', 'distillation'}
  kinds = lambda short: [type(one).__name__ for one in changed[short].data.augment]
  assert kinds('alternating_flip') == ['AlternatingFlip', 'Shift'] and kinds('flip') == ['Shift']
  assert changed['sam'].optim.base == plain.optim == changed['lookahead'].optim.base
  # The same pull at the kernels, whatever the learning rate.
  assert changed['muon'].optim.weight_decay * 0.02 == pytest.approx(3e-3 * 5e-2)
  assert changed['batch_4'].data.batch_size == 512
  assert recipe.parts(plain)['ema'].taken_away and changed['ema'].train.ema_decay == 0


def test_some_parts_of_a_recipe_are_asked_for_by_name():
  recipe = script('recipe_parts/run.py')
  config = config_file.load('cnn')
  named = lambda parts: recipe.asked(config, argparse.Namespace(parts=parts))
  assert list(named('sam,muon')) == ['sam', 'muon']
  assert list(named('')) == list(recipe.parts(config))
  with pytest.raises(UserError, match='There is no part mouon; there are muon, '):
    named('sam,mouon')


def test_the_table_of_recipe_parts_says_which_help(record, tmp_path):
  recipe = script('recipe_parts/run.py')
  config = config_file.load('cnn')
  interval = lambda mean, width: {'mean': mean, 'std': 0.1, 'half_width': width, 'values': 5}
  statistic = summary.statistics([0.92, 0.93])
  gains = {short: {'gain': interval(0.0, 0.2), 'loss': interval(0.0, 0.01), 'accuracy': statistic}
           for short in recipe.parts(config)}
  gains['muon']['gain'], gains['mixup']['gain'] = interval(0.5, 0.2), interval(-0.4, 0.1)
  one = {'examples': 5000, 'synthetic': False, 'device': 'a cpu', 'versions': {'jax': '1'}}
  gains |= {'': {'accuracy': statistic, 'loss': statistic, 'results': one}, 'seeds': 5,
            'seconds': {'muon': 120.0}}
  asked = experiment(record, tmp_path, quick=True, config='cnn')
  recipe.report(asked, config, gains, {'muon': {'without': 2.0, 'with': 3.0}})
  text = (asked.output / 'README.md').read_text()
  lines = [line for line in text.splitlines() if line.startswith('| ')]
  assert lines[2].startswith('| Muon | +0.50 +- 0.20 | +0.0000 +- 0.0100 | 1.50 |')
  assert lines[-1].startswith('| MixUp 0.2 | -0.40 +- 0.10 |')
  assert '- Help: Muon (+0.50 +- 0.20).' in text and '- Harm: MixUp 0.2 (-0.40 +- 0.10).' in text
  assert 'this took 2 min' in text


def test_part_of_a_set_has_its_classes_numbered_anew(record, monkeypatch):
  transfer = script('transfer/run.py')
  labels = np.arange(60) % 6
  images = np.broadcast_to(labels[:, None, None, None], (60, 8, 8, 1)).astype(np.uint8)
  names = tuple('abcdef')
  monkeypatch.setattr(transfer, 'whole', lambda *_: (images, labels, images, labels, names))
  parts = [transfer.Part(classes=(1, 4), draw=draw).load() for draw in (0, 0, 1)]
  for part in parts:
    assert part.class_names == ('b', 'e')
    for split in (part.train, part.test):
      pixels, own = split.arrays()
      assert len(own) == 20
      np.testing.assert_array_equal(pixels[:, 0, 0, 0], np.array([1, 4])[own])
  first, again, other = (part.train.arrays()[1].tolist() for part in parts)
  assert first == again != other


def test_a_recipe_is_committed_before_test_images_are_read(tmp_path):
  frontier = script('frontier/run.py')
  for row in frontier.ROWS:
    config_lib.validate(config_file.load(str(frontier.path_of(row.recipe))))
  recipe = tmp_path / 'minute.py'
  recipe.write_text('epochs = 6')
  git = lambda *args: subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a', *args],
                                     cwd=tmp_path, check=True, capture_output=True)
  git('init')
  git('commit', '--allow-empty', '-m', 'nothing')
  with pytest.raises(UserError, match='is not committed as it stands'):
    frontier.check_committed(recipe)
  git('add', 'minute.py')
  git('commit', '-m', 'a recipe')
  frontier.check_committed(recipe)
  recipe.write_text('epochs = 7')
  with pytest.raises(UserError, match='is not committed as it stands'):
    frontier.check_committed(recipe)


def test_a_record_of_another_recipe_is_not_added_to(record, tmp_path):
  frontier = script('frontier/run.py')
  asked = experiment(record, tmp_path, envs='')
  row = frontier.ROWS[0]
  config = config_lib.to_json(config_file.load(str(frontier.path_of(row.recipe))))
  config['train']['epochs'] += 1
  with pytest.raises(UserError, match='is of another recipe'):
    frontier.measured(asked, row, {row.recipe: {'config': config, 'runs': {}}})


def test_the_frontier_says_what_is_met_and_what_took_too_long():
  frontier = script('frontier/run.py')
  entry = lambda accuracy, seconds: {'accuracy': accuracy, 'seconds': seconds, 'parameters': 1234,
                                     'cores': 2}
  kept = {'multiply_adds': 4_200_000, 'ensemble': {'accuracy': 0.941, 'members': 3}, 'runs': {
      '0': {'ours': entry(0.93, 50), 'pytorch': entry(0.92, 70)}, '1': {'ours': entry(0.94, 64)},
      '2': {'ours': entry(0.935, 61)}}}
  row = frontier.Row('60 s', 'minute', 93.0, 94.0, seconds=60)
  assert frontier.cells(row, kept) == [
      '60 s', '`minute`', '93.50 +- 1.24 (3)', '93.0 met', '94.0 missed', '94.10', '1,234', '4.2 M',
      '61 (50 to 64) OVER', '70 (1)', '92.00']
  assert frontier.cells(row, {'runs': {}})[2:5] == ['-', '93.0', '94.0']
  small = frontier.Row('small', 'minute', 93.6, 94.0, parameters=1233)
  assert frontier.cells(small, kept)[3:9] == [
      '93.6 MISSED', '94.0 missed', '94.10', '1,234 OVER', '4.2 M', '61 (50 to 64)']
  together = frontier.Row('ensemble', 'minute', 93.6, 94.0, ensemble=True)
  assert frontier.cells(together, kept)[1:5] == ['3 x `minute`', '94.10', '93.6 met', '94.0 met']


def test_the_cores_are_shared_by_what_is_trained_at_once():
  frontier = script('frontier/run.py')
  cores = sorted(os.sched_getaffinity(0))
  assert frontier.shares_of_cores(1) == [set(cores)]
  shares = frontier.shares_of_cores(len(cores))
  assert sorted(core for share in shares for core in share) == cores
  for wrong in (0, len(cores) + 1):
    with pytest.raises(UserError, match=f'--at_once={wrong}: give 1 to {len(cores)}'):
      frontier.shares_of_cores(wrong)


def test_seeds_are_trained_at_once_each_on_cores_of_its_own(record, tmp_path, monkeypatch):
  frontier = script('frontier/run.py')
  cores = os.sched_getaffinity(0)
  together = threading.Barrier(min(2, len(cores)), timeout=60)  # Broken when one waits alone.
  used = {}

  def ours(_, path, seed):
    used[seed] = os.sched_getaffinity(0)
    together.wait()
    return {'seconds': 1.0}

  monkeypatch.setattr(frontier, 'ours', ours)
  monkeypatch.setattr(frontier, 'size_of', lambda _: {'multiply_adds': 1})
  monkeypatch.setattr(frontier, 'save', lambda *_: None)
  asked = experiment(record, tmp_path, envs='', quick=True, seeds=2, at_once=together.parties)
  records = {}
  frontier.measured(asked, frontier.Row('small', 'hundred_k', 93.5, 94.2), records)
  assert records['hundred_k']['runs'] == {seed: {'ours': {'seconds': 1.0}} for seed in '01'}
  if len(cores) > 1:
    assert not used[0] & used[1] and used[0] | used[1] <= cores
  assert os.sched_getaffinity(0) == cores, 'this thread keeps all'
