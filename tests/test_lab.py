"""A group's package outside the library: `lab/` has a part of its own for every section."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import test_distributed
from lab import parts

import fmnist_jax
from fmnist_jax import config as config_lib
from fmnist_jax import config_file, settings, train
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.population.train import train_population
from fmnist_jax.programs import hyper_arrays
from fmnist_jax.storage import workdir

TESTS = pathlib.Path(__file__).parent
CONFIG = str(TESTS / 'lab' / 'config.py')


def lab(**changes):
  return config_lib.replace(config_file.load(CONFIG), changes)


def run(module, *arguments, cwd=TESTS):
  """A command in a process that finds the group's package by its folder."""
  env = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(TESTS.parent)}
  process = subprocess.run([sys.executable, '-m', f'fmnist_jax.{module}', *arguments], cwd=cwd,
                           env=env, text=True, capture_output=True, timeout=300)
  return process.returncode, process.stdout, process.stderr


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory):
  """A run from the command line, by the path of its config."""
  directory = tmp_path_factory.mktemp('lab') / 'whole'
  code, out, err = run('main', '--config=lab/config.py', f'--workdir={directory}')
  assert (code, err) == (0, ''), err
  for part in ('patterns: 350 training, 70 validation', '32 x 32 x 3', 'BatchNorm_0', 'Dense_6',
               'checks', 'test accuracy'):
    assert part in out
  return directory


def test_it_learns_and_everything_written_is_right(whole):
  found = json.loads((whole / 'results.json').read_text())
  assert found['accuracy'] > 0.6 and found['examples'] == 70
  assert [entry['name'] for entry in found['per_class']] == list(parts.CLASSES)
  assert found['dataset'] == 'patterns' and found['synthetic'] is True
  saved = json.loads((whole / 'config.json').read_text())
  assert saved['model'] == {'type': 'lab.parts:Mixer', 'width': 16, 'blocks': 2, 'skip': 0.1}
  assert saved['optim']['schedule']['type'] == 'lab.parts:Triangle'
  assert [entry['type'] for entry in saved['data']['augment']] == [
      'Flip', 'lab.parts:Brightness', 'MixUp']
  rates = [record['learning_rate'] for record in runs.history(whole)]
  steps = 4 * 17
  assert rates[0] == pytest.approx(0.02 * 17 / (0.4 * steps + 1))
  page = (whole / 'report' / 'report.html').read_text()
  assert 'patterns' in page and all(name in page for name in parts.CLASSES)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bits(whole, tmp_path):
  env = {**os.environ, 'PYTHONPATH': str(TESTS.parent), 'XLA_FLAGS': '', 'PYTHONUNBUFFERED': '1'}
  # Sooner than an epoch, so that it is killed within one.
  command = [sys.executable, '-m', 'fmnist_jax.main', '--config=lab/config.py',
             f'--workdir={tmp_path / "run"}', '--config.train.checkpoint_every_seconds=0.001']
  for sign in ('epoch 1/', 'epoch 2/'):
    with subprocess.Popen(command, cwd=TESTS, env=env, stdout=subprocess.PIPE,
                          text=True) as process:
      while sign not in process.stdout.readline():
        assert process.poll() is None
      process.send_signal(signal.SIGKILL)
  assert subprocess.run(command, cwd=TESTS, env=env, capture_output=True).returncode == 0
  (a, _), (b, _) = map(runs.newest_checkpoint, (whole, tmp_path / 'run'))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert int(a.model_state['tally']['calls']) == 4 * 17
  assert int(a.ema['model_state']['tally']['calls']) == 4 * 17
  assert runs.history(whole) == runs.history(tmp_path / 'run')
  assert runs.results(whole) == runs.results(tmp_path / 'run')


# Runs commands one after another, and says where each ended and how.
IN_TURN = """
import importlib, json, sys
from fmnist_jax import command
for module, *arguments in json.loads(sys.argv[1]):
  sys.argv = ['', *arguments]
  try:
    command.run(importlib.import_module(f'fmnist_jax.{module}').main)
  except SystemExit as left:
    for stream in (sys.stdout, sys.stderr):
      print(f'\\x1e{left.code}', end='\\x1e', file=stream, flush=True)
"""


def run_in_turn(commands, cwd):
  """`run` for several commands, by name, in one process that has the package on its path."""
  env = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': f'{TESTS.parent}:{TESTS}'}
  process = subprocess.run([sys.executable, '-c', IN_TURN, json.dumps(list(commands.values()))],
                           cwd=cwd, env=env, text=True, capture_output=True, timeout=300)
  assert process.returncode == 0, process.stderr
  out, err = (text.split('\x1e') for text in (process.stdout, process.stderr))
  return {name: (int(out[2 * k + 1]), out[2 * k], err[2 * k]) for k, name in enumerate(commands)}


@pytest.fixture(scope='module', name='refused')
def _refused(whole, tmp_path_factory):
  """Commands that are not told where its parts are, and then some that are."""
  cwd = tmp_path_factory.mktemp('elsewhere')
  saved = f'--config={whole / "config.json"}'
  found = run_in_turn({
      'evaluate': ['evaluate', f'--workdir={whole}'], 'main': ['main', saved, '--workdir=x'],
      'population': ['population.__main__', saved, '--workdir=x'],
      'imported': ['evaluate', f'--workdir={whole}', '--import=lab.parts'],
      'again': ['main', saved, '--import=lab.parts', '--config.model.width=8',
                '--config.train.epochs=1', '--workdir=run']}, cwd)
  return cwd, found


@pytest.mark.parametrize('command', ['evaluate', 'main', 'population'])
def test_without_its_parts_one_sentence_says_what_to_give(refused, command):
  code, out, err = refused[1][command]
  assert code == 1 and err.startswith('error: ') and err.count('\n') == 1
  assert "data.type is 'lab.parts:Patterns'" in err and '--import=lab.parts' in err
  assert 'Traceback' not in out + err and not (refused[0] / 'x').exists()
  assert 'this version' not in err and 'another --workdir' not in err  # Nothing is wrong with it.


@pytest.fixture(scope='module', name='told')
def _told(whole, tmp_path_factory):
  """Commands that are told, or need not be."""
  return run_in_turn({
      'help': ['main', f'--config={CONFIG}', '--help'],
      'evaluate': ['evaluate', f'--workdir={whole}', f'--config={CONFIG}'],
      'compare': ['compare', str(whole), str(whole), '--output=out']},
                     tmp_path_factory.mktemp('told'))


def is_measured_again(whole, code, out, err):
  assert (code, err) == (0, '') and 'stripes' in out
  again = json.loads((whole / 'results-test-best.json').read_text())
  assert again['loss'] == pytest.approx(runs.results(whole)['loss'], abs=1e-6)


def test_it_is_evaluated_when_its_module_is_imported(whole, refused):
  is_measured_again(whole, *refused[1]['imported'])


def test_it_is_evaluated_when_its_config_is_given(whole, told):
  is_measured_again(whole, *told['evaluate'])


def test_it_is_compared_by_what_it_wrote(told):
  code, out, err = told['compare']
  assert (code, err) == (0, '') and 'No difference' in out


def test_installed_its_config_json_is_a_config(whole, refused):
  cwd, found = refused
  assert found['again'][::2] == (0, '')
  assert json.loads((cwd / 'run' / 'config.json').read_text())['model']['width'] == 8
  assert config_file.default_name(f'{whole}/config.json') == 'whole'


def test_it_predicts(whole):
  model = fmnist_jax.load_run(whole)
  images, labels = model.config.data.load().test.arrays()
  with np.load(whole / 'predictions.npz') as file:
    np.testing.assert_allclose(model.predict(images), file['probabilities'], atol=1e-6)
    np.testing.assert_array_equal(labels, file['labels'])
  np.testing.assert_allclose(model.predict(images / 255), model.predict(images), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_it_is_a_population(whole, tmp_path, mode):
  vary = {'model.skip': [0.1, 0.3], 'optim.schedule.peak': [0.4], 'loss.gamma': [2.0]}
  found = train_population(lab(**{'train.devices': 1}), tmp_path / 'run', seeds=1, vary=vary,
                           mode=mode)
  assert [group['settings']['model.skip'] for group in found['groups']] == [0.1, 0.3]
  first, second = (runs.history(tmp_path / 'run' / 'members' / group['members'][0])
                   for group in found['groups'])
  assert first != second
  alone = runs.history(whole)
  for name in ('train_loss', 'validation_loss'):
    assert first[0][name] == pytest.approx(alone[0][name], abs=1e-3)
  if mode == 'independent':
    assert first == alone


@pytest.mark.slow
def test_a_step_on_four_devices_is_the_step_on_one(tmp_path):
  states = []
  for devices in (1, 4):
    config = lab(**{'train.devices': devices, 'data.examples': 90})
    config, _, dataset, mesh = train.prepare(config, tmp_path)
    assert mesh.size == devices
    equipment = Equipment(config, dataset, mesh)
    programs, hyper = equipment.programs, equipment.programs.put(hyper_arrays(config))
    state = programs.call(programs.init, programs.put(np.int32(0)), hyper)
    (done, state, _), = equipment.train(state, programs.zero(), hyper, 0)
    assert done == 1
    states.append(jax.device_get(state))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *states)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(whole, tmp_path, monkeypatch):
  monkeypatch.chdir(TESTS)
  for code, _, err in test_distributed.run_both(tmp_path / 'run', config='lab/config.py'):
    assert (code, err) == (0, '')
  ours, theirs = runs.history(tmp_path / 'run'), runs.history(whole)
  assert ours[0]['train_loss'] == pytest.approx(theirs[0]['train_loss'], abs=1e-3)
  assert ours[0]['validation_loss'] == pytest.approx(theirs[0]['validation_loss'], abs=1e-3)
  assert runs.results(tmp_path / 'run')['accuracy'] > 0.6


def test_help_lists_its_settings_and_kinds(told):
  code, out, _ = told['help']
  assert code == 0
  for part in ('--config.model.width=16\n      channels of a token', '--config.data.noise=40',
               '--config.optim.schedule.peak=0.4', '--config.data.augment.1.amount=0.2',
               'lab.parts:Mixer', 'lab.parts:Orthogonal', 'lab.parts:Focal'):
    assert part in out


def test_its_settings_are_checked_and_overridden_like_ours():
  config = config_file.load(CONFIG, ['model.width=32', 'loss.gamma=1', 'optim=Orthogonal',
                                     'model=Mixer'])
  assert config.model == parts.Mixer() and config.loss.gamma == 1.0
  assert config.optim == parts.Orthogonal()
  for override, says in (('model.width=0', 'model.width is 0; it must be at least 1'),
                         ('model.widht=8', "did you mean 'model.width'"),
                         ('model.skip=x', "model.skip is 'x'; it must be a number"),
                         ('data.noise=300', 'at most 255'),
                         ('loss=Hinge', 'CrossEntropy, .*lab.parts:Focal')):
    with pytest.raises(ConfigError, match=says):
      config_file.load(CONFIG, [override])


# A bare Flax module.

class Net(nn.Module):
  """Its fields are its settings."""
  width: int = 16
  rate: float = settings.setting(0.2, 'dropout rate', low=0, high=1, continuous=True)
  activation: object = nn.relu
  name_of_nothing: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    x = self.activation(nn.Dense(self.width)(images.reshape(len(images), -1)))
    if train:
      keep = jax.random.uniform(self.make_rng('dropout'), x.shape) >= self.rate
      x = jnp.where(keep, x / (1 - self.rate), 0)
    return nn.Dense(10)(x)


def bare(model, **train):
  config = runs.full_config(epochs=1, precision='float32', **train)
  config.data.augment, config.model = (), model
  return config


def test_a_flax_module_stands_for_itself(tmp_path, no_report):
  fmnist_jax.train_and_evaluate(bare(Net(width=24)), tmp_path / 'run')
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())['model']
  assert saved == {'type': f'{__name__}:Net', 'width': 24, 'rate': 0.2, 'name_of_nothing': None}
  model = fmnist_jax.load_run(tmp_path / 'run')
  assert model.config.model == Net(width=24)
  assert model.state.params['Dense_0']['kernel'].shape == (784, 24)
  found = train_population(bare(Net(), devices=1), tmp_path / 'many', seeds=1,
                           vary={'model.rate': [0.1, 0.5]}, mode='vectorized')
  assert len({group['accuracy']['mean'] for group in found['groups']}
             | {group['loss']['mean'] for group in found['groups']}) > 2


def test_fields_of_a_flax_module_are_overridden_as_well_as_refused():
  config = bare(Net())
  assert settings.override(config, 'model.width=7').model == Net(width=7)
  assert settings.override(config, 'model.name_of_nothing=x').model.name_of_nothing == 'x'
  assert settings.override(config, f'model={__name__}:Net').model == Net()
  for override, says in (
      ('model.widht=7', "did you mean 'model.width'"), ('model.width=x', 'a whole number'),
      ('model.activation=tanh', 'cannot be set on the command line'),
      ('model.name=x', 'There is no config field'), ('model.parent=x', 'There is no config field')):
    with pytest.raises(ConfigError, match=says):
      settings.override(config, override)


class Typical(nn.Module):
  """Fields as they stand in Flax modules."""
  norm: Any = None
  inner: nn.Module | None = None
  strides: tuple[tuple[int, int], ...] = ((1, 1), (2, 2))
  options: dict = dataclasses.field(default_factory=dict)
  sizes: list[int] = dataclasses.field(default_factory=lambda: [3, 4])
  pool: Literal['max', 'mean'] = 'max'
  width: int = 16

  @nn.compact
  def __call__(self, images, *, train):
    return nn.Dense(10)(images.reshape(len(images), -1))


@pytest.mark.parametrize('changes', [
    [], ['model.width=3'], ['model.sizes=5,6', 'model.pool=mean'], [f'model={__name__}:Typical']])
def test_what_is_no_setting_keeps_its_default_through_overrides_and_files(changes):
  config = bare(Typical())
  for change in changes:
    config = settings.override(config, change)
  config = config_lib.validate(config)
  again = config_lib.from_json(json.loads(json.dumps(config_lib.to_json(config))))
  assert again.model == config.model


def test_what_is_no_setting_cannot_be_lost_unseen():
  with pytest.raises(ConfigError, match=r'model.options is .* which a config cannot hold'):
    config_lib.validate(bare(Typical(options={'a': 1})))
  with pytest.raises(ConfigError, match=r'model.strides is .* which a config cannot hold'):
    config_lib.validate(bare(Typical(strides=((1, 1), (1, 1)))))
  with pytest.raises(ConfigError, match=r"model.pool is 'min'; it must be one of max, mean"):
    config_lib.validate(settings.override(bare(Typical()), 'model.pool=min'))


class NoTrain(nn.Module):

  @nn.compact
  def __call__(self, images):
    return nn.Dense(10)(images.reshape(len(images), -1))


class Wide(nn.Module):

  @nn.compact
  def __call__(self, images, *, train):
    return nn.Dense(11)(images.reshape(len(images), -1))


class Pair(Wide):

  def __call__(self, images, *, train):
    return super().__call__(images, train=train), 3


class Broken(nn.Module):

  @nn.compact
  def __call__(self, images, *, train):
    return nn.Dense(10)(images.nonsense)


class Lazy(nn.Module):
  """Has a collection in training that it did not start with."""

  @nn.compact
  def __call__(self, images, *, train):
    if train:
      self.variable('late', 'x', lambda: jnp.zeros(()))
    return nn.Dense(10)(images.reshape(len(images), -1))


class Nan(nn.Module):

  @nn.compact
  def __call__(self, images, *, train):
    start = nn.initializers.constant(jnp.nan)
    return nn.Dense(10, kernel_init=start)(images.reshape(len(images), -1))


class Empty(nn.Module):

  def __call__(self, images, *, train):
    return jnp.zeros((len(images), 10))


@pytest.mark.parametrize(('model', 'says'), [
    (NoTrain(), r'NoTrain is called without train='),
    (Wide(), r'Wide gives float32 \[2, 11\] for two images; it must give .* \[2, 10\]'),
    (Pair(), r'Pair gives tuple for two images'),
    (Broken(), r'Broken does not work for images of shape \[28, 28, 1\]: .*nonsense.*test_lab.py,'),
    (Lazy(), r'Lazy .*late'),
    (Nan(), r'starts from are not finite'), (Empty(), r'Empty has no parameters')])
def test_a_module_that_cannot_be_trained_gets_one_sentence(tmp_path, model, says):
  with pytest.raises(ConfigError, match=says) as caught:
    fmnist_jax.train_and_evaluate(bare(model), tmp_path / 'run')
  assert '\n' not in str(caught.value)


def test_of_a_bare_module_no_precision_is_claimed_that_it_does_not_have():
  own = dataclasses.replace(fmnist_jax.Config(), model=Net())
  resolved = train.resolve(own, 'cpu', resident=True).train
  assert (resolved.precision, resolved.operations) == ('float32', 'native')
  asked = config_lib.replace(own, {'train.precision': 'bfloat16'})
  assert train.resolve(asked, 'cpu', resident=True).train.precision == 'bfloat16'


@pytest.mark.slow
def test_what_a_script_defines_is_named_so_that_others_can_import_it(tmp_path):
  (tmp_path / 'script.py').write_text(
      'import flax.linen as nn\nimport fmnist_jax\n'
      'class Own(nn.Module):\n'
      '  @nn.compact\n'
      '  def __call__(self, images, *, train):\n'
      '    return nn.Dense(10)(images.reshape(len(images), -1))\n'
      'if __name__ == "__main__":\n'
      '  fmnist_jax.report.write = lambda *_, **__: None  # It takes long.\n'
      '  config = fmnist_jax.config_file.load("smoke", ["train.epochs=1"])\n'
      '  config.model = Own()\n'
      '  fmnist_jax.train_and_evaluate(config, "run")\n'
      '  assert type(fmnist_jax.load_run("run").config.model) is Own\n')
  env = {**os.environ, 'PYTHONPATH': str(TESTS.parent)}
  process = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=env, text=True,
                           capture_output=True)
  assert process.returncode == 0, process.stderr
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['model'] == {'type': 'script:Own'}
  code, _, err = run('evaluate', '--workdir=run', '--import=script', cwd=tmp_path)
  assert (code, err) == (0, '')


def test_what_a_config_cannot_hold_is_refused():
  with pytest.raises(ConfigError, match=r'model.activation is .* which a config cannot hold'):
    config_lib.validate(bare(Net(activation=lambda x: x)))
  with pytest.raises(ConfigError, match=r'model is 3; it must be one of CNN, MLP'):
    config_lib.validate(bare(3))
  with pytest.raises(ConfigError, match=r'data.augment.0 is 3'):
    config = bare(Net())
    config.data.augment = (3,)
    config_lib.validate(config)


# As a library.

def test_data_may_be_given_and_every_record_is_told(tmp_path, no_report):
  told = []
  dataset = parts.Patterns(examples=200).load()
  found = fmnist_jax.train_and_evaluate(lab(**{'train.epochs': 2}), tmp_path / 'run',
                                        dataset=dataset, on_record=told.append)
  assert [runs.without_times(record) for record in told] == runs.history(tmp_path / 'run')
  assert found['data_sha256'] == dataset.sha256 and len(told) == 2
  other = parts.Patterns(examples=201).load()
  (tmp_path / 'run' / 'results.json').unlink()
  with pytest.raises(fmnist_jax.errors.CheckpointError, match='trained on other data'):
    fmnist_jax.train_and_evaluate(lab(**{'train.epochs': 2}), tmp_path / 'run', dataset=other)


@pytest.mark.slow
def test_as_a_library_nothing_of_the_program_is_touched(tmp_path):
  code = ('import logging, os, signal\n'
          'from absl import logging as absl_logging\n'
          'import jax, fmnist_jax\n'
          'from fmnist_jax import config_file\n'
          'names = (signal.SIGINT, signal.SIGTERM)\n'
          'look = lambda: ([signal.getsignal(n) for n in names], dict(jax.config.values), '
          'dict(os.environ), list(absl_logging.get_absl_logger().filters))\n'
          'seen, before = [], look()\n'
          'config = config_file.load("smoke", ["train.epochs=1"])\n'
          'fmnist_jax.report.write = lambda *_, **__: None  # It takes long.\n'
          'fmnist_jax.train_and_evaluate(config, "run", on_record=lambda r: seen.append(look()))\n'
          'assert seen == [before] == [look()], "something changed"\n')
  process = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, text=True,
                           capture_output=True, env={**os.environ, 'PYTHONPATH': str(TESTS.parent)})
  assert process.returncode == 0, process.stderr


def test_a_config_file_defines_parts_and_may_change(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  text = ('import flax.linen as nn\nfrom fmnist_jax import Config\n'
          'class Own(nn.Module):\n  width: int = {}\n'
          'def get_config():\n  return Config(model=Own())\n')
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own' / 'net.py').write_text(text.format(3))
  with workdir.Workdir(tmp_path / 'run', config_file.load('own/net.py')):
    pass
  assert workdir.read_config(tmp_path / 'run').model.width == 3
  (tmp_path / 'own' / 'net.py').write_text(text.format(44))
  assert config_file.load('own/net.py').model.width == 44
  (tmp_path / 'own' / 'net.py').write_text('x = 1\n')
  with pytest.raises(ConfigError, match=r'no function get_config'):
    config_file.load('own/net.py')
  with pytest.raises(WorkdirError, match=r"'own.net:Own', which is not known here: .*--import=own"):
    workdir.read_config(tmp_path / 'run')
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'two words.py').write_text(text.format(5))
  assert config_file.load('elsewhere/two words.py').model.width == 5
