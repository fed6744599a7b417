"""What TensorBoard's own reader finds in a run's directory is what metrics.jsonl says."""

import io
import json
import os
import sys

import numpy as np
import PIL.Image
import pytest
import runs
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fmnist_jax import tensorboard
from fmnist_jax.config import MLP, Config, Data, Train
from fmnist_jax.errors import ConfigError
from fmnist_jax.population.train import train_population
from fmnist_jax.storage.workdir import Workdir, read_config
from fmnist_jax.train import train_and_evaluate


def small(**train):
  return Config(data=Data(name='synthetic', train_examples=200, test_examples=50,
                          validation_examples=40, batch_size=20),
                model=MLP(hidden=(8,)),
                train=Train(**{'epochs': 3, 'devices': 1, 'tensorboard': True} | train))


def shown(directory):
  """What TensorBoard's reader has of a directory."""
  reader = event_accumulator.EventAccumulator(
      str(directory), {event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 0})
  return reader.Reload()


def records(directory):
  return [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]


def assert_shows(directory, epochs):
  """Every number of metrics.jsonl once, and nothing else beside results."""
  reader, lines = shown(directory), records(directory)
  assert [line['epoch'] for line in lines] == list(range(1, epochs + 1))
  tags = [tag for tag in reader.Tags()['scalars'] if not tag.startswith('results/')]
  assert set(tags) == set(lines[0]) - {'epoch', 'step', 'seal'}
  for tag in tags:
    found = reader.Scalars(tag)
    assert [event.step for event in found] == [line['epoch'] for line in lines]
    np.testing.assert_array_equal([event.value for event in found],
                                  np.float32([line[tag] for line in lines]))
    # Its clock is that of training.
    np.testing.assert_allclose(np.diff([event.wall_time for event in found]),
                               np.diff([line['seconds'] for line in lines]), atol=1e-5)
  return reader


def events_of(directory):
  """The event file that holds something."""
  file, = (path for path in directory.glob('events.*') if path.stat().st_size)
  return file


def plugin(reader, tag):
  content = reader.SummaryMetadata(f'_hparams_/{tag}').plugin_data.content
  return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_a_run_is_shown_with_settings_and_results(tmp_path):
  told = []
  results = train_and_evaluate(small(), tmp_path / 'run', on_record=told.append)
  reader = assert_shows(tmp_path / 'run', 3)
  assert len(told) == 3  # One's own hook is called all the same.
  for name in ('accuracy', 'loss', 'macro_f1', 'best_validation_accuracy'):
    event, = reader.Scalars(f'results/{name}')
    assert (event.step, event.value) == (results['best_epoch'], np.float32(results[name]))
  picture, = reader.Images('results/confusion_matrix')
  with PIL.Image.open(io.BytesIO(picture.encoded_image_string)) as image:
    assert image.size == (picture.width, picture.height) and picture.width > 500
  settings = plugin(reader, 'session_start_info').session_start_info.hparams
  assert settings['optim.learning_rate'].number_value == 1e-3
  assert settings['model'].string_value == 'MLP' and settings['model.hidden'].string_value == '8'
  assert settings['train.deterministic'].bool_value is False
  assert settings['train.seed'].number_value == 0
  assert 'data.data_dir' not in settings and 'train.tensorboard' not in settings
  assert plugin(reader, 'session_end_info').session_end_info.status == 1  # Success.
  assert 'tensorflow' not in sys.modules


class Killed(BaseException):
  """Nothing in the library catches it, as nothing catches kill -9."""


@pytest.mark.parametrize('when', ['before the event', 'after the event'])
def test_a_killed_run_goes_on_without_double_or_missing_epochs(tmp_path, monkeypatch, when):
  real = tensorboard.update

  def update(config, directory, known, results=None):
    last = known[-1]['epoch'] == 2 and not results
    if last and when == 'before the event':  # metrics.jsonl has it already.
      raise Killed
    real(config, directory, known, results)
    if last:  # There is no checkpoint of it yet: it is trained again, in other seconds.
      raise Killed

  monkeypatch.setattr(tensorboard, 'update', update)
  with pytest.raises(Killed):
    train_and_evaluate(small(), tmp_path / 'run')
  assert len(shown(tmp_path / 'run').Scalars('train_loss')) == (1 if 'before' in when else 2)
  assert len(records(tmp_path / 'run')) == 2
  watching = shown(tmp_path / 'run')
  monkeypatch.undo()
  train_and_evaluate(small(), tmp_path / 'run')
  assert_shows(tmp_path / 'run', 3)
  # Nor does one that was open all the time show any twice.
  assert [event.step for event in watching.Reload().Scalars('train_loss')] == [1, 2, 3]


@pytest.fixture(scope='module', name='done')
def _done(tmp_path_factory):
  """A finished run's config, directory, and the bytes of its event file."""
  directory = tmp_path_factory.mktemp('tensorboard') / 'run'
  train_and_evaluate(small(), directory)
  return read_config(directory), directory, events_of(directory).read_bytes()


def brought_up(config, directory):
  """The event file, once brought up to metrics.jsonl and results.json."""
  with Workdir(directory, config) as workdir:
    tensorboard.update(config, directory, workdir.history.read(), workdir.results())
  return events_of(directory)


def test_what_was_cut_short_is_completed_in_place(done):
  config, directory, whole = done
  file = events_of(directory)
  inode = file.stat().st_ino
  for length in (1, 5, 30, 200, len(whole) // 2, len(whole) - 1, len(whole)):
    os.truncate(file, length)
    assert brought_up(config, directory) == file and file.read_bytes() == whole
    assert file.stat().st_ino == inode  # Who follows it reads on.


@pytest.mark.parametrize('spoil', [
    lambda file: file.write_bytes(file.read_bytes() + b'more'),
    lambda file: file.write_bytes(b'\0' + file.read_bytes()[1:]),
    lambda file: os.truncate(file, 0),
    lambda file: file.unlink(),
    lambda file: file.with_name('events.out.tfevents.1.fmnist_jax').write_bytes(b'older')])
def test_whatever_else_is_found_is_replaced(done, spoil):
  config, directory, whole = done
  file = events_of(directory)
  spoil(file)
  assert brought_up(config, directory).read_bytes() == whole
  assert_shows(directory, 3)


def test_nothing_is_written_through_links(done, tmp_path):
  config, directory, whole = done
  file = events_of(directory)
  for link in (os.symlink, os.link):
    other = tmp_path / link.__name__
    other.write_bytes(whole[:100])
    file.unlink()
    link(other, file)
    file = brought_up(config, directory)
    assert other.read_bytes() == whole[:100] and file.read_bytes() == whole


def test_asked_for_later_it_tells_of_earlier_epochs_too(tmp_path):
  with pytest.raises(Killed):
    def leave(record):
      raise Killed
    train_and_evaluate(small(tensorboard=False), tmp_path / 'run', on_record=leave)
  assert not list((tmp_path / 'run').glob('events.*'))
  train_and_evaluate(small(), tmp_path / 'run')
  assert_shows(tmp_path / 'run', 3)


@pytest.mark.parametrize('mode', ['independent', 'vectorized'])
def test_members_are_shown(tmp_path, mode):
  train_population(small(), tmp_path / 'pair', seeds=2, mode=mode)
  for seed in (0, 1):
    reader = assert_shows(tmp_path / 'pair' / 'members' / f'seed-{seed}', 3)
    settings = plugin(reader, 'session_start_info').session_start_info.hparams
    assert settings['train.seed'].number_value == seed
  assert not list((tmp_path / 'pair').glob('events.*'))


def test_without_the_package_nothing_is_begun(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(ConfigError, match=r"pip install 'fmnist_jax\[tensorboard\]'"):
    train_and_evaluate(small(), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_without_it_a_run_is_the_same(done, tmp_path):
  train_and_evaluate(small(tensorboard=False), tmp_path / 'run')
  runs.assert_same_run(done[1], tmp_path / 'run')
  assert not list((tmp_path / 'run').glob('events.*'))
