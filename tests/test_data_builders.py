"""Preparing through TFDS and reading back."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import data_files
import numpy as np
import pytest
import tensorflow_datasets as tfds

from fmnist_jax.data import builders, prepared, records, sources, synthetic
from fmnist_jax.data.dataset import MemorySource
from fmnist_jax.errors import DataError

FASHION = 'fmnist_jax_fashion_mnist/1.0.0'


@pytest.fixture
def published(monkeypatch, tmp_path):
  return data_files.publish(monkeypatch, tmp_path)


@pytest.fixture
def files(published, tmp_path):
  folder = data_files.write(tmp_path / 'mine', published['fashion_mnist'])
  return sources.named('fashion_mnist', str(folder))


def fashion(files=None):
  return prepared.Prepared('fashion_mnist', files, *data_files.EXAMPLES)


def test_names_do_not_collide_with_those_of_tfds():
  names = {builder.name for builder in builders.BUILDERS.values()}
  assert names == {'fmnist_jax_fashion_mnist', 'fmnist_jax_mnist', 'fmnist_jax_synthetic'}
  registered = set(tfds.core.registered.list_imported_builders())
  assert names | {'fashion_mnist', 'mnist'} <= registered
  assert not {'builder', '_builder', 'published', '_published'} & registered


@pytest.mark.parametrize('in_memory', [True, False])
def test_read_back_in_the_original_order(published, files, in_memory):
  opened = fashion(files)
  for split, first in (('train', 0), ('test', 2)):
    source, labels = opened.open(split, in_memory)
    assert isinstance(source, MemorySource) == in_memory
    np.testing.assert_array_equal(labels, published['fashion_mnist'][first + 1])
    chosen = np.array([7, 3, 3, 0])
    images, some = source.fetch(chosen)
    np.testing.assert_array_equal(images[..., 0], published['fashion_mnist'][first][chosen])
    np.testing.assert_array_equal(some, labels[chosen])
    assert images.dtype == np.uint8 and some.dtype == labels.dtype == np.int32
  assert opened.sha256() == dict(zip(sources.FILES, sources.ORIGINALS['fashion_mnist'].sha256))


def test_the_quick_decoder_agrees_with_that_of_tfds(files):
  fashion(files).open('train', False)
  builder = builders.builder('fashion_mnist', None, 0, 0)
  examples = list(builder.as_data_source('train'))
  images, labels = builders.source(builder, 'train').fetch(np.arange(len(examples)))
  np.testing.assert_array_equal(images, [example['image'] for example in examples])
  np.testing.assert_array_equal(labels, [example['label'] for example in examples])
  assert builder.info.features['label'].names == list(builder.CLASS_NAMES)


def test_the_stock_api_of_tfds_works_too(published, files, tmp_path):
  data_files.write(tmp_path / 'data/FashionMNIST/raw', published['fashion_mnist'])
  builder = tfds.builder('fmnist_jax_fashion_mnist', data_dir=tmp_path / 'elsewhere',
                         file_format='array_record')
  with builders._quiet():
    builder.download_and_prepare()
  example = builder.as_data_source('test')[5]
  np.testing.assert_array_equal(example['image'][..., 0], published['fashion_mnist'][2][5])
  assert example['label'] == 5


def test_records_of_any_layout_are_read():
  features = builders.builder('synthetic', None, 1, 1).info.features
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (6, 28, 28, 1), np.uint8)
  images[0] = 0
  usual = [features.serialize_example({'image': image, 'label': i})
           for i, image in enumerate(images)]
  # The same message with its two features the other way round: each is a field of its own.
  outer = len(usual[0]) - 803 - 16  # Tag and length of the whole.
  swapped = []
  for record in usual:
    body = record[outer:]
    first = 16 if body[1] == 14 else len(body) - 16
    swapped.append(record[:outer] + body[first:] + body[:first])
  assert len({*usual, *swapped}) == 12
  decoded = []

  def decode(record):
    decoded.append(record)
    return features.deserialize_example_np(record)

  mixed = [pair[i % 2] for i, pair in enumerate(zip(usual, swapped))]
  for some in (usual, swapped, mixed):
    found, labels = records.parse(some, (28, 28, 1), decode)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, np.arange(6))
  assert not decoded
  # An unknown field makes a record longer, and none of the layouts fits.
  longer = [usual[0], usual[1] + b'\x7a\x01x', *usual[2:]]
  found, labels = records.parse(longer, (28, 28, 1), decode)
  np.testing.assert_array_equal(found, images)
  np.testing.assert_array_equal(labels, np.arange(6))
  assert decoded


def test_an_existing_copy_needs_no_files(published, files):
  fashion(files).open('train', True)
  source, _ = fashion().open('test', True)
  np.testing.assert_array_equal(source.images[..., 0], published['fashion_mnist'][2])


def test_nothing_to_prepare_from(published):
  with pytest.raises(sources.DataUnavailable):
    fashion().open('train', True)


def damage_bytes(folder):
  path = next(folder.glob('*train*array_record*'))
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 255
  path.write_bytes(content)


def damage_cut(folder):
  path = next(folder.glob('*train*array_record*'))
  os.truncate(path, path.stat().st_size // 2)


def damage_removed(folder):
  next(folder.glob('*train*array_record*')).unlink()


def damage_info(folder):
  (folder / 'dataset_info.json').write_text('{')


def damage_no_info(folder):
  (folder / 'dataset_info.json').unlink()


@pytest.mark.parametrize('damage', [damage_bytes, damage_cut, damage_removed, damage_info,
                                    damage_no_info])
def test_a_damaged_copy_is_made_anew(published, files, tmp_path, damage):
  folder = tmp_path / 'tfds' / FASHION
  fashion(files).open('train', True)
  damage(folder)
  with pytest.raises(sources.DataUnavailable):  # Never believed; here there is nothing else.
    fashion().open('train', True)
  assert not folder.exists()
  source, _ = fashion(files).open('train', True)
  np.testing.assert_array_equal(source.images[..., 0], published['fashion_mnist'][0])
  damage(folder)
  source, _ = fashion(files).open('train', False)
  np.testing.assert_array_equal(source.fetch(np.arange(60))[0][..., 0],
                                published['fashion_mnist'][0])
  assert folder.exists()


def test_a_whole_copy_of_other_data_is_not_believed(published, files, tmp_path, monkeypatch):
  fashion(files).open('train', True)
  # As if the copy had been prepared, and its hash noted, from something else.
  monkeypatch.setitem(sources.ORIGINALS, 'fashion_mnist', sources.ORIGINALS['mnist'])
  with pytest.raises(sources.DataUnavailable):
    fashion().open('train', True)


def test_damage_met_later_is_told(files, tmp_path):
  source, _ = fashion(files).open('train', False)
  source._data_source.data_source.__exit__(None, None, None)  # Closes the files.
  damage_removed(tmp_path / 'tfds' / FASHION)
  with pytest.raises(DataError, match=r'cannot be read .* prepared anew'):
    source.fetch(np.arange(3))


@pytest.mark.parametrize('name', ['fashion_mnist', 'synthetic'])
def test_a_folder_that_cannot_be_written_is_done_without(files, tmp_path, name):
  (tmp_path / 'tfds').write_text('a file in the way')
  opened = prepared.Prepared(name, files, *data_files.EXAMPLES)
  source, labels = opened.open('train', False)
  np.testing.assert_array_equal(labels, np.arange(60) % 10)
  assert source.fetch(np.array([1]))[0].shape == (1, 28, 28, 1)
  assert labels.dtype == np.int32
  assert list(opened.sha256()) == list(sources.FILES)


def test_the_drawn_set_is_prepared_by_its_size(published, tmp_path):
  small, large = (prepared.Prepared('synthetic', None, n, 10) for n in (20, 30))
  few, _ = small.open('train', True)
  many, _ = large.open('train', False)
  np.testing.assert_array_equal(few.images, many.fetch(np.arange(20))[0])
  np.testing.assert_array_equal(few.images, synthetic.draw(np.arange(20))[0])
  np.testing.assert_array_equal(large.open('test', True)[0].images,
                                synthetic.draw(np.arange(10), split='test')[0])
  assert small.sha256() != large.sha256()
  assert small.sha256() == prepared.Prepared('synthetic', None, 20, 10).sha256()


def test_preparing_is_quiet_and_leaves_nothing_behind(published, files, tmp_path, capfd,
                                                      monkeypatch):
  monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
  monkeypatch.setattr('tempfile.tempdir', None)
  (tmp_path / 'tmp').mkdir()
  fashion(files).open('train', True)
  prepared.Prepared('synthetic', None, 20, 10).open('test', True)
  assert capfd.readouterr() == ('', '')
  assert not list((tmp_path / 'tmp').iterdir())
  assert not list((tmp_path / 'tfds').glob('**/incomplete*'))


# Several processes.

def environment(tmp_path):
  return {**os.environ, 'TFDS_DATA_DIR': str(tmp_path / 'tfds'), 'HOME': str(tmp_path)}


PREPARE = '''
import sys
from absl import logging
logging.set_verbosity(logging.INFO)
from fmnist_jax.data import prepared
opened = prepared.Prepared('synthetic', None, int(sys.argv[1]), 10)
source, labels = opened.open('train', True)
print(len(labels), opened.sha256()['train-images-idx3-ubyte'], 'tensorflow' in sys.modules)
'''


def start(tmp_path, examples):
  return subprocess.Popen([sys.executable, '-c', PREPARE, str(examples)], text=True,
                          env=environment(tmp_path), cwd=pathlib.Path(__file__).parents[1],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_prepare_once(tmp_path):
  processes = [start(tmp_path, 3000) for _ in range(2)]
  outputs = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert outputs[0][0] == outputs[1][0]
  assert outputs[0][0].split()[::2] == ['3000', 'False']
  assert sum('Preparing' in log for _, log in outputs) == 1


def test_a_killed_preparation_leaves_nothing_that_looks_whole(tmp_path):
  folder = tmp_path / 'tfds' / 'fmnist_jax_synthetic' / '20000_10'
  process = start(tmp_path, 20_000)
  deadline = time.monotonic() + 60
  while not list(folder.glob('incomplete*')):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(0.2)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  left = [path.name for path in folder.iterdir()]
  assert not [name for name in left if name[0].isdigit()]
  assert [name for name in left if name.startswith('incomplete')]
  again = start(tmp_path, 20_000)
  output, log = again.communicate(timeout=120)
  assert again.returncode == 0, log
  assert output.startswith('20000 ')
  assert sorted(path.name for path in folder.iterdir()) == ['.lock', synthetic.VERSION]


def test_importing_data_does_not_import_tfds():
  code = ('import sys; from fmnist_jax import data; from fmnist_jax.data import augmentations; '
          'print([m for m in ("tensorflow_datasets", "tensorflow") if m in sys.modules])')
  output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          cwd=pathlib.Path(__file__).parents[1])
  assert output.stdout.strip() == '[]'
