"""Searches: what is searched, trials that are the runs they would be alone, what comes out."""

import dataclasses
import json
import pathlib
import shutil
from typing import ClassVar

import jax
import numpy as np
import optuna
import pytest
import runs

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, trained_model
from fmnist_jax.config import DataSource
from fmnist_jax.data import Dataset
from fmnist_jax.errors import CheckpointError, ConfigError, DataError, DivergenceError, WorkdirError
from fmnist_jax.interrupt import Interrupted
from fmnist_jax.programs import Programs
from fmnist_jax.report import searches
from fmnist_jax.search import Choice, Range, Space, lanes, space
from fmnist_jax.search.attempts import Attempt
from fmnist_jax.search.search import How, search
from fmnist_jax.storage.workdir import read_config
from fmnist_jax.train import train_and_evaluate
from fmnist_jax.trainer import Trainer

RATES = Space({'optim.learning_rate': Range(1e-3, 1e-1, log=True)})
WIDTHS = Space({'model.hidden': Choice((16,), (24,)), 'model.dropout': Range(0.05, 0.5)})


def config(**train):
  full = runs.full_config(**{'epochs': 3, 'seed': 3, 'devices': 1, 'precision': 'float32',
                             'operations': 'native', 'early_stopping_patience': 0, **train})
  full.data.augment = (config_lib.Flip(0.5),)
  full.model = config_lib.MLP(hidden=(16,), dropout=0.2)
  return full


@dataclasses.dataclass
class Guarded(DataSource):
  """Images whose test split must not be opened."""
  first: ClassVar[int] = 0

  def load(self):
    rng = np.random.default_rng(self.first)
    images, labels = rng.integers(0, 256, (300, 28, 28), np.uint8), np.arange(300) % 10
    whole = Dataset.of_arrays('guarded', images, labels, images[:50], labels[:50])
    def refuse():
      raise DataError('The test split was opened.')
    return dataclasses.replace(whole, open_test=refuse)


def how(**changes):
  return How(**{'trials': 4, 'sampler': 'random', 'pruner': 'none', 'mode': 'independent',
                **changes})


# What is searched.

def test_a_space_is_written_in_python_json_and_on_the_command_line(tmp_path):
  written = tmp_path / 'wide.py'
  written.write_text(
      'from fmnist_jax.search import Choice, Range\n'
      'def get_space():\n'
      "  return {'model.channels': Choice((16, 32), (32, 64)), 'model.kernel': Range(2, 4),\n"
      "          'optim.learning_rate': Range(1e-4, 3e-2, log=True)}\n")
  as_json = tmp_path / 'wide.json'
  as_json.write_text(json.dumps({
      'model.channels': [[16, 32], [32, 64]], 'model.kernel': {'low': 2, 'high': 4},
      'optim.learning_rate': {'low': 1e-4, 'high': 3e-2, 'log': True}}))
  ranges = ['optim.learning_rate=1e-4..3e-2:log', 'model.kernel=2..4']
  found = [space.load(str(written), [], []), space.load(str(as_json), [], []),
           space.load(None, ranges, ['model.channels=16,32;32,64'])]
  cnn = config_file.load('cnn')
  for one in found:
    one.check(cnn)
    assert one.domains['optim.learning_rate'] == Range(1e-4, 3e-2, log=True)
    drawn = one.draw(cnn, optuna.trial.FixedTrial({
        'model.channels': '32,64', 'optim.learning_rate': 0.01, 'model.kernel': 4}))
    assert drawn == config_lib.replace(cnn, {
        'model.channels': (32, 64), 'optim.learning_rate': 0.01, 'model.kernel': 4})
  assert Space.from_json(found[0].to_json()).to_json() == found[0].to_json()


def test_fields_that_change_together_and_fields_of_one_kind_only():
  blocks = Choice({'model.channels': (16,), 'model.pool': (2,)},
                  {'model.channels': (16, 32), 'model.pool': (2, 2)})
  mixed = Space({'optim.momentum': Range(0.5, 0.9), 'optim': Choice('AdamW', 'SGD'),
                 'blocks': blocks})
  cnn = config_file.load('cnn')
  mixed.check(cnn)
  assert len(list(mixed.combinations(cnn))) == 4
  drawn = mixed.draw(cnn, optuna.trial.FixedTrial({
      'optim': 'AdamW', 'blocks': 'model.channels=16 model.pool=2', 'optim.momentum': 0.7}))
  assert (drawn.model.channels, drawn.model.pool) == ((16,), (2,))
  assert type(drawn.optim).__name__ == 'AdamW' and not hasattr(drawn.optim, 'momentum')


@pytest.mark.parametrize(('ranges', 'choices', 'says'), [
    ([], [], 'nothing to search'),
    (['optim.learning_rat=1e-4..1e-2'], [], "did you mean 'optim.learning_rate'"),
    (['optim.b1=0.5..1'], [], r'optim.b1 is 1.0; it must be .*below 1'),
    (['optim.learning_rate=-1..1'], [], r'optim.learning_rate is -1.0; it must be at least 0'),
    (['optim.learning_rate=1e-2..1e-4'], [], 'is empty; give the smaller number first'),
    (['optim.learning_rate=0..1:log'], [], 'no logarithm at its low end'),
    (['optim.learning_rate=1e-4'], [], 'write LOW..HIGH'),
    (['optim.learning_rate'], [], 'needs values'),
    (['optim.b1=0.5..0.6', 'optim.b1=0.5..0.7'], [], 'optim.b1 is searched twice'),
    (['model.channels=1..3'], [], 'of which there is no range'),
    (['model.kernel=2.5..4'], [], 'model.kernel is a whole number'),
    (['optim=1..2'], [], 'optim is a section; give a choice'),
    (['model.kernel=2..4:-1'], [], 'needs a step above 0'),
    (['train.seed=1..5'], [], 'train.seed cannot be searched'),
    (['data.train_examples=1..5'], [], 'data.train_examples cannot be searched'),
    ([], ['evaluate.batch_size=1;2'], 'evaluate.batch_size cannot be searched'),
    ([], ['model.padding=SAME'], 'needs two options at least'),
    ([], ['model.padding=SAME;VALDI'], "model.padding is 'VALDI'"),
    ([], ['optim=SGD;Sgd'], "choose one of Adam, AdamW, SGD"),
    ([], ['model.channels=16;16,32'], 'model.pool has 2 entries for 1 blocks'),
])
def test_what_cannot_be_searched_is_told_before_anything_starts(ranges, choices, says):
  with pytest.raises(ConfigError, match=says):
    space.load(None, ranges, choices).check(config_file.load('cnn'))


def test_fields_and_options_beyond_the_combinations_that_are_tried():
  mlp = config_file.load('mlp')
  many = {f'set {k}': Choice({'optim.clip_norm': k + 1.0}, {'optim.clip_norm': k + 2.0})
          for k in range(11)}
  late = {'optim': Choice('AdamW', 'SGD'), 'optim.momentum': Range(0.5, 0.9)}
  Space({**late, **many}).check(mlp)
  with pytest.raises(ConfigError, match=r'optim\.momentum is 1\.5'):
    Space({**late, **many, 'optim.momentum': Range(0.5, 1.5)}).check(mlp)
  with pytest.raises(ConfigError, match='choose one of Adam, AdamW, SGD'):
    Space({**late, **many, 'optim': Choice('AdamW', 'Sgd')}).check(mlp)


@pytest.mark.parametrize(('values', 'says'), [
    ({'optim.b1': {'low': 0.5, 'high': 0.9, 'log': 'false'}}, 'is log or not: true or false'),
    ({'optim.b1': {'low': 0.5, 'high': 0.9, 'step': 'much'}}, 'needs a step above 0'),
    ({'optim.b1': {'low': True, 'high': 2}}, 'needs numbers at its ends'),
    ({'optim.b1': {'low': 0.5}}, 'takes a list of options, or'),
    ({'train.seed': [{'optim.b1': 0.5}, 3]}, 'train.seed cannot be searched'),
])
def test_a_space_of_other_values_than_it_takes(values, says):
  with pytest.raises(ConfigError, match=says):
    Space.from_json(values).check(config_file.load('mlp'))


@pytest.mark.parametrize('path', sorted(
    (pathlib.Path(__file__).parents[1] / 'configs' / 'spaces').glob('[!_]*.py')),
    ids=lambda path: path.stem)
def test_shipped_spaces_fit_the_configs_that_they_name(path):
  named = path.read_text().partition('--config=')[2].split()[0]
  space.load(path.stem, [], []).check(config_file.load(named))


# Trials are runs.

def test_a_trial_apart_has_the_bits_of_its_run_alone(tmp_path):
  found = search(config(), WIDTHS, tmp_path / 'search', how=how(at_once=2), seeds=2)
  assert [trial['ended'] for trial in found['trials']] == ['finished'] * 4
  assert len(list(tmp_path.glob('search/trials/*/seed-*'))) == 8
  trial = found['trials'][1]
  own = trained_model.load_run(tmp_path / 'search' / 'trials' / trial['name'] / 'seed-4').config
  assert own.evaluate.split == 'validation'
  assert own.model.dropout == trial['params']['model.dropout']
  train_and_evaluate(own, tmp_path / 'alone')
  runs.assert_same_run(tmp_path / 'alone',
                       tmp_path / 'search' / 'trials' / trial['name'] / 'seed-4')
  curve = [record['validation_accuracy'] for record in runs.history(tmp_path / 'alone')]
  assert trial['validation_accuracy'][1] == curve and trial['accuracies'][1] == max(curve)
  assert trial['accuracy'] == np.mean(trial['accuracies'])


class PruneWorst(optuna.pruners.BasePruner):
  """Gives up, after its first epoch, what draws a small learning rate."""

  def prune(self, study, trial):
    return trial.params['optim.learning_rate'] < 1e-2


@pytest.fixture(name='settled')
def _settled(monkeypatch):
  """The same draws every time, some of which are given up."""
  monkeypatch.setattr('fmnist_jax.search.search.sampler_of',
                      lambda _: optuna.samplers.RandomSampler(seed=1))
  monkeypatch.setattr('fmnist_jax.search.search.pruner_of', lambda *_: PruneWorst())


def test_lanes_are_filled_again_and_train_what_their_runs_would_alone(
    tmp_path, monkeypatch, settled):
  traced, seen = [], []
  train, epoch = Programs.train, lanes.Lanes._train_epoch
  def watched(self):
    seen.append({lane.progress.epoch for lane in self.lanes if lane})
    return epoch(self)
  monkeypatch.setattr(Programs, 'train', lambda self, *args: traced.append(1) or train(self, *args))
  monkeypatch.setattr(lanes.Lanes, '_train_epoch', watched)
  found = search(config(), RATES, tmp_path / 'search',
                 how=how(trials=7, mode='vectorized', at_once=4))
  assert len(found['trials']) == 7 and len(traced) == 1
  assert max(map(len, seen)) > 1, 'lanes are at epochs of their own'
  late = [trial['name'] for trial in found['trials'] if trial['ended'] == 'finished'][-1]
  path = tmp_path / 'search' / 'trials' / late / 'seed-3'
  run = trained_model.load_run(path)
  train_and_evaluate(run.config, tmp_path / 'alone')
  first, member = runs.history(tmp_path / 'alone')[0], runs.history(path)[0]
  assert first['step'] == member['step'] and first['learning_rate'] == member['learning_rate']
  # 20 steps of rounding apart.
  assert member['train_loss'] == pytest.approx(first['train_loss'], abs=2e-3)
  assert member['validation_loss'] == pytest.approx(first['validation_loss'], abs=2e-2)
  assert run.results['epochs'] == len(run.history) == 3
  assert run.results['best_validation_accuracy'] == max(
      record['validation_accuracy'] for record in run.history)
  assert trained_model.load_run(path, 'latest').step == 60


def test_a_run_that_others_left_is_gone_on_with_in_a_lane(tmp_path, monkeypatch):
  found = search(config(checkpoint_every_seconds=0.0), RATES, tmp_path / 'search',
                 how=how(trials=3))
  whole, torn, bare = (tmp_path / 'search' / 'trials' / trial['name']
                       for trial in found['trials'])
  for path in (whole, torn, bare):  # Workers that were killed before they wrote their results.
    (path / 'outcome.json').unlink()
    (path / 'seed-3' / 'results.json').unlink()
  shutil.rmtree(bare / 'seed-3' / 'checkpoints')
  # One that did not come to the end of an epoch: in threads a run is saved at any step.
  own = read_config(torn / 'seed-3')
  shutil.rmtree(torn / 'seed-3')
  with pytest.raises(Interrupted):
    train_and_evaluate(own, torn / 'seed-3', signals=runs.InterruptAt(8))
  left = trained_model.load_run(torn / 'seed-3', 'latest').step
  assert 20 < left < 40
  (tmp_path / 'search' / 'journal.jsonl').unlink()
  told = {}
  recall = Attempt.recall
  def watched(self, run, records):
    kept = list(run.path.glob('checkpoints/[0-9]*'))
    told.setdefault(self.member, (len(records), bool(kept)))
    recall(self, run, records)
  monkeypatch.setattr(Attempt, 'recall', watched)
  again = search(config(checkpoint_every_seconds=0.0), RATES, tmp_path / 'search',
                 how=how(trials=3, mode='vectorized'))
  assert [len(trial['validation_accuracy'][0]) for trial in again['trials']] == [3, 3, 3]
  # What is trained again is not told, nor can its old best pass for the new one.
  assert told == {whole.name: (3, True), torn.name: (0, False), bare.name: (0, False)}
  assert again['trials'][0]['accuracy'] == found['trials'][0]['accuracy']
  for path in (whole, torn, bare):
    run = trained_model.load_run(path / 'seed-3')
    assert run.step == 20 * run.results['best_epoch']


@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_a_trial_is_not_gone_on_with_on_other_data(tmp_path, mode, monkeypatch):
  own = config()
  own.data = Guarded(validation_examples=100, batch_size=20)
  with pytest.raises(Interrupted):
    search(own, RATES, tmp_path / 'search', how=how(trials=1, at_once=1),
           signals=runs.InterruptAt(12))
  assert list(tmp_path.glob('search/trials/*/seed-3/checkpoints/[0-9]*'))
  monkeypatch.setattr(Guarded, 'first', 1)
  with pytest.raises(CheckpointError, match='was trained on other data than guarded is now'):
    search(own, RATES, tmp_path / 'search', how=how(trials=1, at_once=1, mode=mode))


def test_structures_are_trained_in_groups_and_compiled_once_each(tmp_path, monkeypatch):
  traced = []
  train = Programs.train
  def counted(self, *args):
    traced.append(self.config.model.hidden)
    return train(self, *args)
  monkeypatch.setattr(Programs, 'train', counted)
  for mode in ('independent', 'vectorized'):
    traced.clear()
    found = search(config(epochs=1, devices=0), WIDTHS, tmp_path / mode,
                   how=how(trials=8, mode=mode, at_once=3))
    drawn = {trial['params']['model.hidden'] for trial in found['trials']}
    assert len(found['trials']) == 8 and len(traced) == len(set(traced)) == len(drawn) == 2


@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_what_is_given_up_frees_its_place_at_the_end_of_the_epoch(tmp_path, settled, mode):
  found = search(config(), RATES, tmp_path / 'search', how=how(trials=8, mode=mode, at_once=2))
  for trial in found['trials']:
    small = trial['params']['optim.learning_rate'] < 1e-2
    assert trial['ended'] == ('pruned' if small else 'finished')
    assert len(trial['validation_accuracy'][0]) == (1 if small else 3)
    assert (trial['accuracy'] is None) == small
    checkpoints = tmp_path / 'search' / 'trials' / trial['name'] / 'seed-3' / 'checkpoints'
    assert checkpoints.exists() != small
  assert {trial['ended'] for trial in found['trials']} == {'pruned', 'finished'}


@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_the_test_split_is_never_opened(tmp_path, mode):
  own = config(epochs=1)
  own.data = Guarded(validation_examples=100, batch_size=20)
  found = search(own, RATES, tmp_path / 'search', how=how(trials=2, mode=mode, confirm=1))
  assert len(found['confirmed']) == 1
  with pytest.raises(DataError, match='was opened'):
    train_and_evaluate(own, tmp_path / 'run')


@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_trials_that_cannot_be_trained_are_told_and_the_search_goes_on(tmp_path, mode):
  own = config(epochs=1, operations='matmul')
  own.model = config_lib.CNN(channels=(4, 4), pool=(2, 2), dense=())
  wild = Space({'model.kernel': Choice(3, 13), 'optim.learning_rate': Choice(0.01, 1e30)})
  found = search(own, wild, tmp_path / 'search', how=how(sampler='grid', trials=9, mode=mode))
  assert len(found['trials']) == 4
  ends = {(trial['params']['model.kernel'], trial['params']['optim.learning_rate']):
          (trial['ended'], trial['message']) for trial in found['trials']}
  assert ends['3', '0.01'] == ('finished', '')
  assert ends['3', '1e+30'][0] == 'diverged' and 'not finite' in ends['3', '1e+30'][1]
  assert ends['13', '0.01'][0] == 'refused' and 'leaves no pixel' in ends['13', '0.01'][1]
  only = Space({'optim.learning_rate': Range(1e29, 1e30)})
  with pytest.raises(DivergenceError, match='Not one of 2 trials was trained to its end'):
    search(own, only, tmp_path / 'wild', how=how(trials=2, mode=mode))


# What comes out.

def test_what_comes_out(tmp_path, capsys):
  own = config(epochs=2)
  found = search(own, WIDTHS, tmp_path / 'search', how=how(trials=4, confirm=1), seeds=2)
  assert found == json.loads((tmp_path / 'search' / 'search.json').read_text())
  accuracies = [trial['accuracy'] for trial in found['trials']]
  best = found['trials'][int(np.argmax(accuracies))]
  assert found['best'] == best['name'] and 'biased upwards' in found['note']
  said = capsys.readouterr().out
  assert 'biased upwards' in said and f'{tmp_path}/search/best.py' in said
  written = tmp_path / 'search' / 'best.py'
  expected = config_lib.replace(own, {
      'model.hidden': tuple(map(int, best['params']['model.hidden'].split(','))),
      'model.dropout': best['params']['model.dropout']})
  assert config_file.load(str(written)) == config_lib.validate(expected)
  assert f'python -m fmnist_jax.main --config={written}' in written.read_text()
  for name in ('history', 'slices', 'parallel'):
    assert (tmp_path / 'search' / 'report' / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
  page = (tmp_path / 'search' / 'report' / 'report.html').read_text()
  assert best['name'] in page and '+-' in page
  # Seeds 3 and 4 were those of the search.
  assert [one['seeds'] for one in found['confirmed']] == [[5, 6, 7, 8, 9]]
  assert found['confirmed'][0]['name'] == best['name']
  assert search(own, WIDTHS, tmp_path / 'search', how=how(trials=4), seeds=2) == found


def test_fresh_seeds_that_all_diverge_are_told_and_the_search_is_written(
    tmp_path, capsys, monkeypatch):
  own, begin = config(epochs=1), Trainer.begin
  def spoilt(self):
    begin(self)
    if 'confirm' in str(self.directory):
      self.state = self.state.replace(params=jax.tree.map(lambda leaf: leaf * np.nan,
                                                          self.state.params))
  monkeypatch.setattr(Trainer, 'begin', spoilt)
  found = search(own, RATES, tmp_path / 'search', how=how(trials=2, confirm=1))
  assert found['best'] and found['confirmed'] == []
  assert json.loads((tmp_path / 'search' / 'search.json').read_text()) == found
  assert (f'{found["best"]} with fresh seeds: Not one of 5 members came to its end'
          in capsys.readouterr().out)


def test_a_report_of_a_domain_that_no_trial_drew(tmp_path):
  trial = {'name': '0000-ab', 'ended': 'finished', 'params': {'optim': 'AdamW'}, 'accuracy': 0.5,
           'validation_accuracy': [[0.5]]}
  momentum = {'low': 0.5, 'high': 0.9, 'log': False}
  searches.write(tmp_path, {
      'space': {'optim': ['AdamW', 'SGD'], 'optim.momentum': momentum}, 'trials': [trial],
      'importances': {}, 'note': ''}, [['trial'], ['0000-ab']], 'One trial')
  assert '50.00%' in (tmp_path / 'report' / 'report.html').read_text()


def test_a_directory_of_something_else_is_refused(tmp_path):
  search(config(epochs=1), RATES, tmp_path / 'search', how=how(trials=1))
  with pytest.raises(WorkdirError, match=r'another search \(train.epochs: 1 -> 2; space: '):
    search(config(epochs=2), WIDTHS, tmp_path / 'search', how=how(trials=1))
  with pytest.raises(WorkdirError, match='holds files but no run'):
    train_and_evaluate(config(epochs=1), tmp_path / 'search')
  train_and_evaluate(config(epochs=1), tmp_path / 'run')
  with pytest.raises(WorkdirError, match='holds files but no search'):
    search(config(epochs=1), RATES, tmp_path / 'run', how=how(trials=1))
