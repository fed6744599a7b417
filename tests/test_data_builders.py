"""Preparing through TFDS, decoding to array files and reading those."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import data_files
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from fmnist_jax.data import builders, formats, kept, mapped, prepared, sources, synthetic
from fmnist_jax.data.dataset import MemorySource
from fmnist_jax.errors import DataError
from fmnist_jax.storage import files as storage

FASHION = 'fmnist_jax_fashion_mnist/1.0.0'
ARRAYS = 'fmnist_jax_arrays/fashion_mnist'


@pytest.fixture
def published(monkeypatch, tmp_path):
  return data_files.publish(monkeypatch, tmp_path)


@pytest.fixture
def files(published, tmp_path):
  folder = data_files.write(tmp_path / 'mine', published['fashion_mnist'])
  return sources.named('fashion_mnist', str(folder))


def fashion(files=None):
  return prepared.published('fashion_mnist', files)


def test_names_do_not_collide_with_those_of_tfds():
  names = {builder.name for builder in builders.BUILDERS.values()}
  assert names == {'fmnist_jax_synthetic', *(f'fmnist_jax_{name}' for name in sources.ORIGINALS)}
  registered = set(tfds.core.registered.list_imported_builders())
  assert names | {'fashion_mnist', 'mnist', 'cifar10'} <= registered
  assert not {'builder', '_builder', 'published', '_published'} & registered


def test_read_back_in_the_original_order(published, files):
  dataset = fashion(files)
  for split, first in ((dataset.train, 0), (dataset.test, 2)):
    assert isinstance(split._source, mapped.MappedSource)
    np.testing.assert_array_equal(split.labels, published['fashion_mnist'][first + 1])
    chosen = np.array([7, 3, 3, 0])
    images, some = split._source.fetch(chosen)
    np.testing.assert_array_equal(images[..., 0], published['fashion_mnist'][first][chosen])
    np.testing.assert_array_equal(some, split.labels[chosen])
    assert images.dtype == np.uint8 and some.dtype == split.labels.dtype == np.int32
  assert dataset.sha256 == dict(zip(formats.FILES, sources.ORIGINALS['fashion_mnist'].sha256))


def test_the_stock_api_of_tfds_works_too(published, files, tmp_path):
  data_files.write(tmp_path / 'data/FashionMNIST/raw', published['fashion_mnist'])
  builder = tfds.builder('fmnist_jax_fashion_mnist', data_dir=tmp_path / 'elsewhere',
                         file_format='array_record')
  with builders._quiet():
    builder.download_and_prepare()
  example = builder.as_data_source('test')[5]
  np.testing.assert_array_equal(example['image'][..., 0], published['fashion_mnist'][2][5])
  assert example['label'] == 5


def test_an_existing_copy_needs_no_files(published, files, tmp_path):
  fashion(files)
  np.testing.assert_array_equal(fashion().test.arrays()[0][..., 0], published['fashion_mnist'][2])
  shutil.rmtree(tmp_path / 'tfds' / ARRAYS)  # It is decoded again from what TFDS prepared.
  np.testing.assert_array_equal(fashion().test.arrays()[0][..., 0], published['fashion_mnist'][2])


def test_the_arrays_are_plain_files_of_numpy(published, files, tmp_path):
  fashion(files)
  folder = tmp_path / 'tfds' / ARRAYS
  assert sorted(path.name for path in folder.iterdir()) == [
      'arrays.json', *sorted(f'{array}.npy' for array in kept.ARRAYS)]
  images, labels = (np.load(folder / f'test-{kind}.npy') for kind in ('images', 'labels'))
  np.testing.assert_array_equal(images[..., 0], published['fashion_mnist'][2])
  np.testing.assert_array_equal(labels, published['fashion_mnist'][3])
  assert [path.name for path in folder.parent.iterdir() if path != folder] == [
      '.fashion_mnist.lock']


def test_nothing_to_prepare_from(published):
  with pytest.raises(sources.DataUnavailable):
    fashion()


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 255
  path.write_bytes(content)


def cut(path):
  os.truncate(path, path.stat().st_size // 2)


def remove(path):
  path.unlink()


def empty(path):
  os.truncate(path, 0)


def lie(path):
  """A header that claims more than the file holds."""
  content = path.read_bytes()
  path.write_bytes(content.replace(b"'shape': (60,", b"'shape': (61,", 1))


def link(path):
  path.rename(path.with_suffix('.elsewhere'))
  os.mkfifo(path)


@pytest.mark.parametrize('damage', [flip, cut, remove, empty, lie, link])
@pytest.mark.parametrize('file', ['train-images.npy', 'train-labels.npy'])
def test_damaged_arrays_are_made_anew(published, files, tmp_path, damage, file):
  fashion(files)
  damage(tmp_path / 'tfds' / ARRAYS / file)
  dataset = fashion()  # From what TFDS prepared.
  np.testing.assert_array_equal(dataset.train.arrays()[0][..., 0], published['fashion_mnist'][0])
  assert isinstance(dataset.train._source, mapped.MappedSource)
  np.testing.assert_array_equal(dataset.train.labels, np.load(tmp_path / 'tfds' / ARRAYS /
                                                              'train-labels.npy'))


@pytest.mark.parametrize('damage', [flip, cut, remove])
def test_a_damaged_list_of_hashes_is_made_anew(published, files, tmp_path, damage):
  fashion(files)
  damage(tmp_path / 'tfds' / ARRAYS / 'arrays.json')
  assert fashion().sha256 == fashion(files).sha256
  assert (tmp_path / 'tfds' / ARRAYS / 'arrays.json').stat().st_size


def test_poisoned_arrays_are_not_believed(published, files, tmp_path):
  fashion(files)
  # Whole arrays of other data, and a sealed list of their hashes: the digits in place of garments.
  data_files.write(tmp_path / 'digits', published['mnist'])
  prepared.published('mnist', sources.named('mnist', str(tmp_path / 'digits')))
  shutil.rmtree(tmp_path / 'tfds' / ARRAYS)
  (tmp_path / 'tfds/fmnist_jax_arrays/mnist').rename(tmp_path / 'tfds' / ARRAYS)
  np.testing.assert_array_equal(fashion().train.arrays()[0][..., 0], published['fashion_mnist'][0])
  # One split under the name of the other.
  for kind in ('images', 'labels'):
    shutil.copy(tmp_path / 'tfds' / ARRAYS / f'test-{kind}.npy', tmp_path / 'tfds' / ARRAYS /
                f'train-{kind}.npy')
  np.testing.assert_array_equal(fashion().train.arrays()[0][..., 0], published['fashion_mnist'][0])


def test_drawn_arrays_of_another_version_are_made_anew(published, tmp_path):
  first = prepared.drawn(20, 10)
  note = tmp_path / 'tfds/fmnist_jax_arrays/synthetic_20_10/arrays.json'
  noted = storage.read_json(note, sealed=True)
  storage.write_json(note, noted | {'made_of': 'drawing 0.9.0'}, sealed=True)
  assert prepared.drawn(20, 10).sha256 == first.sha256
  assert storage.read_json(note, sealed=True) == noted


def damage_info(folder):
  (folder / 'dataset_info.json').write_text('{')


def damage_no_info(folder):
  (folder / 'dataset_info.json').unlink()


def damage_records(damage):
  return lambda folder: damage(next(folder.glob('*train*array_record*')))


@pytest.mark.parametrize('damage', [*map(damage_records, (flip, cut, remove)), damage_info,
                                    damage_no_info])
def test_a_damaged_copy_of_tfds_is_prepared_anew(published, files, tmp_path, damage):
  folder = tmp_path / 'tfds' / FASHION
  fashion(files)
  damage(folder)
  fashion()  # Needs it no more.
  shutil.rmtree(tmp_path / 'tfds' / ARRAYS)
  with pytest.raises(sources.DataUnavailable):  # Never believed; here there is nothing else.
    fashion()
  assert not folder.exists() and not (tmp_path / 'tfds' / ARRAYS).exists()
  dataset = fashion(files)
  np.testing.assert_array_equal(dataset.train.arrays()[0][..., 0], published['fashion_mnist'][0])
  damage(folder)
  shutil.rmtree(tmp_path / 'tfds' / ARRAYS)
  np.testing.assert_array_equal(fashion(files).test.arrays()[0][..., 0],
                                published['fashion_mnist'][2])
  assert folder.exists()


def test_a_whole_copy_of_other_data_is_not_believed(published, files, tmp_path, monkeypatch):
  fashion(files)
  # As if the copy had been prepared, and its hash noted, from something else.
  monkeypatch.setitem(sources.ORIGINALS, 'fashion_mnist', sources.ORIGINALS['mnist'])
  with pytest.raises(sources.DataUnavailable):
    fashion()


@pytest.mark.parametrize('damage', [flip, cut])
def test_damage_met_later_is_told(files, tmp_path, damage):
  dataset = fashion(files)
  dataset.train.fetch(np.arange(3))
  path = tmp_path / 'tfds' / ARRAYS / 'train-images.npy'
  damage(path)
  os.utime(path, ns=(0, 1))  # Clocks of file systems are coarse.
  with pytest.raises(DataError, match=r'train-images.npy was changed .* made anew'):
    dataset.train.fetch(np.arange(3))


def test_what_is_replaced_stays_with_those_who_read_it(published, files, tmp_path):
  dataset = fashion(files)
  shutil.rmtree(tmp_path / 'tfds')
  np.testing.assert_array_equal(dataset.train.arrays()[0][..., 0], published['fashion_mnist'][0])


def test_a_folder_that_cannot_be_written_is_done_without(published, files, tmp_path):
  (tmp_path / 'tfds').write_text('a file in the way')
  for dataset in (fashion(files), prepared.drawn(*data_files.EXAMPLES)):
    assert isinstance(dataset.train._source, MemorySource)
    np.testing.assert_array_equal(dataset.train.labels, np.arange(60) % 10)
    assert dataset.train.fetch(np.array([1])).shape == (1, 28, 28, 1)
    assert dataset.train.labels.dtype == np.int32
    assert list(dataset.sha256) == list(formats.FILES)
  held = dataset.sha256
  (tmp_path / 'tfds').unlink()
  assert prepared.drawn(*data_files.EXAMPLES).sha256 == held


def test_memory_is_not_taken_beyond_its_half(tmp_path, monkeypatch):
  (tmp_path / 'tfds').write_text('a file in the way')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  monkeypatch.setattr(kept.machine, 'memory', lambda: 2 * 784 * 19)
  with pytest.raises(DataError, match='more than half of the memory'):
    prepared.drawn(20, 10)


def test_the_drawn_set_is_prepared_by_its_size(published, tmp_path):
  small, large = (prepared.drawn(n, 10) for n in (20, 30))
  np.testing.assert_array_equal(small.train.arrays()[0], large.train.fetch(np.arange(20)))
  np.testing.assert_array_equal(small.train.arrays()[0], synthetic.draw(np.arange(20))[0])
  np.testing.assert_array_equal(large.test.arrays()[0],
                                synthetic.draw(np.arange(10), split='test')[0])
  assert small.sha256 != large.sha256
  assert small.sha256 == prepared.drawn(20, 10).sha256


def test_labels_of_many_classes_are_kept_whole():
  # Bytes tell 256 classes apart.
  def content():
    images = np.zeros((300, 2, 3, 3), np.uint8)
    yield kept.Content({split: lambda: iter([(images, np.arange(300))])
                        for split in kept.SPLITS}, {})
  for _ in range(2):
    dataset = kept.Kept('many', 'many', 'nothing', content).dataset(list(map(str, range(300))))
    np.testing.assert_array_equal(dataset.train.labels, np.arange(300))
    assert dataset.train.labels.dtype == np.int32 and dataset.image_shape == (2, 3, 3)


def test_preparing_is_quiet_and_leaves_nothing_behind(published, files, tmp_path, capfd,
                                                      monkeypatch):
  monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
  monkeypatch.setattr('tempfile.tempdir', None)
  (tmp_path / 'tmp').mkdir()
  fashion(files)
  prepared.drawn(20, 10)
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
dataset = prepared.drawn(int(sys.argv[1]), 10)
print(len(dataset.train), dataset.sha256['train-images-idx3-ubyte'], 'tensorflow' in sys.modules)
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
  assert [sum(word in log for _, log in outputs) for word in ('Preparing', 'Decoding')] == [1, 1]


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


def test_data_that_has_been_decoded_is_read_without_tfds(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  prepared.drawn(20, 10)
  code = ('import sys; from fmnist_jax.data import prepared; prepared.drawn(20, 10).test; '
          'print([m for m in ("tensorflow_datasets", "tensorflow") if m in sys.modules])')
  output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          env=environment(tmp_path), cwd=pathlib.Path(__file__).parents[1])
  assert output.stdout.strip() == '[]'


def test_what_is_fetched_is_used_by_jax_as_it_lies(published, files):
  dataset = fashion(files)
  for chosen in (np.arange(1), np.arange(17)[::-1], np.arange(60)):
    images = dataset.train.fetch(chosen)
    assert images.ctypes.data % 64 == 0 and images.flags['C_CONTIGUOUS']
    placed = jax.device_put(images, jax.devices()[0])
    assert placed.unsafe_buffer_pointer() == images.ctypes.data  # No copy.


def test_large_files_are_read_and_not_mapped(published, files, monkeypatch, tmp_path):
  monkeypatch.setattr(mapped, '_MOST_MAPPED', 0)
  monkeypatch.setattr(mapped.np, 'take', None)
  dataset = fashion(files)
  for chosen in (np.array([7, 3, 3, 59, 0]), np.arange(0), np.arange(60, dtype=np.int32)):
    np.testing.assert_array_equal(dataset.train.fetch(chosen)[..., 0],
                                  published['fashion_mnist'][0][chosen])
  cut(tmp_path / 'tfds' / ARRAYS / 'train-images.npy')
  with pytest.raises(DataError, match='was changed while'):
    dataset.train.fetch(np.arange(3))
