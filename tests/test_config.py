"""Config dataclasses, files and overrides."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax import config_file
from fmnist_jax.config import (
    CNN,
    MLP,
    SGD,
    AdamW,
    Config,
    Cosine,
    Data,
    Flip,
    Shift,
    Step,
    Train,
)
from fmnist_jax.errors import ConfigError


@pytest.mark.parametrize('config', [
    Config(),
    Config(model=MLP(hidden=(), dropout=0.5), optim=SGD(schedule=Step())),
    Config(model=CNN(dropout=(0.1, 0.0)), optim=AdamW(schedule=Cosine(warmup_epochs=1.5)))])
def test_json_round_trip(config):
  config = config_lib.validate(config)
  assert config_lib.from_json(json.loads(json.dumps(config_lib.to_json(config)))) == config


@pytest.mark.parametrize(('config', 'says'), [
    (Config(train=Train(epochs=0)), 'train.epochs is 0; it must be at least 1'),
    (Config(train=Train(epochs=2.5)), 'train.epochs is 2.5; it must be a whole number'),
    (Config(train=Train(epochs=True)), 'train.epochs is True'),
    (Config(train=Train(ema_decay=1.0)), 'it must be at least 0 and below 1'),
    (Config(train=Train(precision='float16')), 'auto, float32, bfloat16'),
    (Config(optim=AdamW(learning_rate=float('nan'))), 'it must be a finite number'),
    (Config(model=CNN(pool=(2,))), 'model.pool has 1 entries for 2 blocks'),
    (Config(model=CNN(dropout=(0.5,))), 'model.dropout has 1 entries for 2 blocks'),
    (Config(model=CNN(channels=(8, 0))), r'model.channels\[1\] is 0'),
    (Config(model=Train()), 'it must be one of CNN, MLP.* or a dataclass of your own'),
    (Config(data=Data(name='cifar')), 'the path of a .npz'),
    (Config(data=Data(train_examples=100)), 'nothing is left to train on'),
    (Config(data=Data(validation_examples=0), train=Train(early_stopping_patience=1)),
     'needs validation data'),
    ({'train': 1}, 'let get_config'),
])
def test_what_is_wrong_is_named(config, says):
  with pytest.raises(ConfigError, match=says):
    config_lib.validate(config)


@pytest.mark.parametrize('change', [
    lambda c: c['train'].pop('epochs'), lambda c: c['train'].update(epoch=3),
    lambda c: c['model'].update(type='RNN'), lambda c: c['optim'].pop('type'),
    lambda c: c.update(train=3), lambda c: c['data'].update(name=None),
    lambda c: c['model'].update(channels='abc'), lambda c: c['model'].update(channels=[[1], 2])])
def test_a_broken_saved_config_is_refused(change):
  saved = config_lib.to_json(Config())
  change(saved)
  with pytest.raises(ConfigError):
    config_lib.from_json(saved)


def test_differences_name_fields_and_ignore_locations():
  a = Config()
  b = config_lib.replace(a, {'train.seed': 3, 'data.data_dir': '/elsewhere'})
  assert config_lib.differences(a, b) == ['train.seed: 0 -> 3']
  assert any(line.startswith('model: "CNN" -> "MLP"')
             for line in config_lib.differences(a, Config(model=MLP())))


def test_continuous_settings_can_be_replaced_by_arrays():
  config = config_lib.validate(Config(model=CNN(dropout=(0.25, 0.0)), optim=SGD()))
  names = config_lib.continuous(config)
  assert names == {'model.dropout.0': 0.25, 'optim.learning_rate': 0.05, 'optim.momentum': 0.9}
  traced = config_lib.replace(config, {name: jnp.float32(value) for name, value in names.items()})
  assert isinstance(traced.model.dropout[0], jnp.ndarray) and traced.model.dropout[1] == 0.0
  assert config_lib.is_on(jnp.float32(0)), 'an array may become anything'
  assert not config_lib.is_on(0.0) and not config_lib.is_on(()) and not config_lib.is_on((0.0, 0))


@pytest.fixture(name='write')
def _write(tmp_path):
  def write(text, name='mine.py'):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)
  return write


GOOD = 'from fmnist_jax.config import *\ndef get_config():\n  return Config(model=CNN())\n'


def test_overrides_are_read_by_the_type_of_their_field(write):
  config = config_file.load(write(GOOD), [
      'train.epochs=7', 'optim.learning_rate=1', 'model.channels=(8, 16,32)', 'model.pool=2,2,0',
      'model.batch_norm=True', 'model.dense=()', 'data.data_dir=/a=b', 'data.augment=Shift, Flip',
      'data.augment.1.probability=0.25',
      'optim.schedule=Step', 'optim.schedule.epochs=3,4.5'])
  assert config.train.epochs == 7 and config.optim.learning_rate == 1.0
  assert config.model == CNN(channels=(8, 16, 32), pool=(2, 2, 0), batch_norm=True, dense=())
  assert config.data.data_dir == '/a=b' and config.data.augment == (Shift(), Flip(0.25))
  assert config.optim.schedule == Step(epochs=(3.0, 4.5))


def test_a_section_can_be_swapped_for_another_kind(write):
  config = config_file.load(write(GOOD), ['model=MLP', 'model.hidden=64', 'optim=SGD'])
  assert config.model == MLP(hidden=(64,)) and config.optim == SGD()


@pytest.mark.parametrize(('override', 'says'), [
    ('train.epoch=3', "did you mean 'train.epochs'"),
    ('data.augment=Flp', 'choose among Flip, AlternatingFlip, Shift, Affine, RandomErasing, MixUp'),
    ('data.augment.0.probability=1', 'There is no config field'),
    ('zzz=1', 'the sections are data, model, loss, optim, train, evaluate'),
    ('model.hidden=3', 'This config has model=CNN'),
    ('train.epochs=many', "train.epochs is 'many'; it must be a whole number"),
    ('train.epochs=', 'it must be a whole number'),
    ('optim.learning_rate=None', 'it must be a number'),
    ('optim.learning_rate=inf', 'it must be a finite number'),
    ('train.deterministic=1', 'it must be true or false'),
    ('optim=Lion', 'choose one of Adam, AdamW, SGD'),
    ('train=3', 'train is a section'),
    ('train.epochs', 'needs a value'),
])
def test_a_wrong_override_gets_one_sentence(write, override, says):
  with pytest.raises(ConfigError, match=says) as caught:
    config_file.load(write(GOOD), [override])
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('text', 'says'), [
    ('x = 1\n', 'has no function get_config'),
    ('def get_config():\n  return 3\n', 'must be a fmnist_jax.Config, not int'),
    ('def get_config(:\n', 'line 1: SyntaxError'),
    ('import nothing_of_this_name\n', 'line 1: ModuleNotFoundError'),
    ('def get_config():\n  return 1 / 0\n', 'line 2: ZeroDivisionError'),
])
def test_a_wrong_config_file_gets_one_sentence(write, text, says):
  with pytest.raises(ConfigError, match=says):
    config_file.load(write(text))


def test_a_missing_config_file_lists_what_there_is():
  with pytest.raises(ConfigError, match=r'cnn_blocks.*mlp'):
    config_file.load('configs/densenet.py')


def test_shipped_configs_are_found_by_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('cnn', 'cnn.py', 'configs/cnn.py'):
    assert config_file.load(name).model.channels == (32, 64)


def test_every_field_is_explained():
  text = ' '.join(config_file.describe(Config()).split())
  for name, _, field in config_lib.leaves(Config()):
    assert f'--config.{name}=' in text and field.limits.help in text
  for section in dataclasses.fields(Config):
    assert section.name in text
