"""Public sets whose files are not those of MNIST: small ones in the same formats."""

import dataclasses
import gzip
import hashlib
import io
import pathlib
import pickle
import shutil
import tarfile
import zipfile

import data_files
import numpy as np
import pytest

from fmnist_jax import config_file, data, train
from fmnist_jax.config import Config, Data, Flip, Shift
from fmnist_jax.data import formats, idx, prepared, sources
from fmnist_jax.errors import DataError

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


@pytest.fixture(autouse=True)
def published(monkeypatch, tmp_path):
  return data_files.publish(monkeypatch, tmp_path)


def publish(monkeypatch, folder, name, contents):
  """Puts files in place of a set's published ones; returns their folder."""
  original = sources.ORIGINALS[name]
  folder.mkdir()
  for file, content in zip(original.files, contents):
    (folder / file).write_bytes(content)
  monkeypatch.setitem(sources.ORIGINALS, name, dataclasses.replace(
      original, mirrors=(), packed_bytes=tuple(map(len, contents)),
      packed_sha256=tuple(hashlib.sha256(content).hexdigest() for content in contents)))
  return folder


def tar(members):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w:gz') as archive:
    for name, content in members.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return file.getvalue()


def records(images, *labels):
  """As the page of CIFAR describes them: labels, 1,024 red bytes, green ones, blue ones."""
  return b''.join(bytes(label) + image.transpose(2, 0, 1).tobytes()
                  for label, image in zip(zip(*labels), images))


def pictures(count, seed, shape=(32, 32, 3)):
  return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def load(name, folder):
  return data.load(Data(name=name, data_dir=str(folder), validation_examples=0, batch_size=4))


def publish_cifar10(monkeypatch, folder, images, labels):
  """Five batches for training, and the first ten images for testing."""
  parts = {f'cifar-10-batches-bin/data_batch_{i + 1}.bin':
           records(images[12 * i:12 * i + 12], labels[12 * i:12 * i + 12]) for i in range(5)}
  parts['cifar-10-batches-bin/test_batch.bin'] = records(images[:10], labels[:10])
  return publish(monkeypatch, folder, 'cifar10', [tar(parts)])


@pytest.mark.parametrize('name', ['cifar10_speed', 'cifar10_resnet'])
def test_the_configs_of_cifar10_fit_its_files(monkeypatch, tmp_path, name):
  folder = publish_cifar10(monkeypatch, tmp_path / 'mine', pictures(60, 0), np.arange(60) % 10)
  config = config_file.load(str(CONFIGS / f'{name}.py'))
  config.data.data_dir = str(folder)
  config.data.validation_examples, config.data.batch_size = 10, 8
  found, _, dataset, _ = train.prepare(config, tmp_path / 'run')
  assert dataset.image_shape == (32, 32, 3) and len(dataset.train) == 50
  assert found.data.augment == (Flip(), Shift(4)), 'what they show may be mirrored'


def test_cifar10(monkeypatch, tmp_path):
  images, labels = pictures(60, 0), np.arange(60) % 10
  folder = publish_cifar10(monkeypatch, tmp_path / 'mine', images, labels)
  for _ in range(2):  # From the file, and from the arrays.
    dataset = load('cifar10', folder)
    np.testing.assert_array_equal(dataset.train.arrays()[0], images)
    np.testing.assert_array_equal(dataset.train.labels, labels)
    np.testing.assert_array_equal(dataset.test.arrays()[0], images[:10])
    assert dataset.image_shape == (32, 32, 3) and dataset.class_names[8] == 'ship'
    assert list(dataset.sha256) == ['train-images', 'train-labels', 'test-images', 'test-labels']
    assert dataset.sha256['train-images'] == idx.sha256(images)
    assert dataset.mirrored_alike
  np.testing.assert_array_equal(  # Without the file: the copy that was prepared will do.
      prepared.published('cifar10', None).test.arrays()[0], images[:10])


def batch(images, labels, name='labels'):
  """As Python 2 pickled it."""
  rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  content = pickle.dumps({'data': rows, name: labels.tolist()}, protocol=2)
  return content.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')


def test_what_keras_and_torchvision_downloaded_is_found(monkeypatch, tmp_path):
  images, labels = pictures(60, 0), np.arange(60) % 10
  folder = publish_cifar10(monkeypatch, tmp_path / 'mine', images, labels)
  expected = load('cifar10', folder)
  (folder / 'cifar-10-binary.tar.gz').unlink()
  parts = {f'cifar-10-batches-py/data_batch_{i + 1}': batch(images[12 * i:12 * i + 12],
                                                           labels[12 * i:12 * i + 12])
           for i in range(5)}
  content = tar(parts | {'cifar-10-batches-py/test_batch': batch(images[:10], labels[:10])})
  monkeypatch.setitem(sources.ORIGINALS, 'cifar10', dataclasses.replace(
      sources.ORIGINALS['cifar10'], python_bytes=len(content),
      python_sha256=hashlib.sha256(content).hexdigest()))
  (folder / 'cifar-10-python.tar.gz').write_bytes(content)
  keras = tmp_path / 'keras' / 'datasets'
  keras.mkdir(parents=True)
  (keras / 'cifar-10-batches-py-target_archive').write_bytes(content)
  monkeypatch.setenv('KERAS_HOME', str(tmp_path / 'keras'))
  for place in (folder, ''):
    shutil.rmtree(sources.tfds_folder())
    found = load('cifar10', place)
    assert found.sha256 == expected.sha256
    np.testing.assert_array_equal(found.train.arrays()[0], images)
    np.testing.assert_array_equal(found.train.labels, labels)
  (folder / 'cifar-10-python.tar.gz').write_bytes(content[:-1])
  with pytest.raises(DataError, match=r'cifar-10-python.tar.gz is not the published CIFAR-10'):
    load('cifar10', folder)


def test_cifar100_is_of_fine_labels(monkeypatch, tmp_path):
  images, fine = pictures(100, 1), np.arange(100)
  folder = publish(monkeypatch, tmp_path / 'mine', 'cifar100', [tar({
      'cifar-100-binary/train.bin': records(images, fine // 5, fine),
      'cifar-100-binary/test.bin': records(images[:3], fine[:3] // 5, fine[:3])})])
  dataset = load('cifar100', folder)
  np.testing.assert_array_equal(dataset.train.labels, fine)
  np.testing.assert_array_equal(dataset.train.arrays()[0], images)
  assert list(dataset.class_names) == sorted(dataset.class_names)
  assert dataset.class_names[::33] == ('apple', 'forest', 'raccoon', 'worm')
  (folder / 'python').write_bytes(tar({
      'cifar-100-python/train': batch(images, fine, 'fine_labels')}))
  for found, known in zip(
      sources.ORIGINALS['cifar100'].arrays((str(folder / 'python'),), 'train'), (images, fine)):
    np.testing.assert_array_equal(found, known)
  (folder / 'evil').write_bytes(tar({
      f'cifar-100-python/{name}': pickle.dumps({'data': print}) for name in ('train', 'test')}))
  with pytest.raises(pickle.UnpicklingError, match=r'builtins\.print'):
    sources.ORIGINALS['cifar100'].arrays((str(folder / 'evil'),), 'train')


@pytest.mark.parametrize(('part', 'first', 'classes'), [('letters', 1, 26), ('balanced', 0, 47)])
def test_emnist_stands_upright(monkeypatch, tmp_path, part, first, classes):
  images, labels = pictures(classes, 2, (28, 28)), np.arange(classes)
  images[0] = 0
  images[0, 3] = 255  # A line from left to right, as it is read.
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    for split in ('train', 'test'):
      for kind, array in (('images-idx3', images.transpose(0, 2, 1)),
                          ('labels-idx1', (labels + first).astype(np.uint8))):
        archive.writestr(f'gzip/emnist-{part}-{split}-{kind}-ubyte.gz', gzip.compress(
            idx.header(array.shape) + array.tobytes()))
  folder = publish(monkeypatch, tmp_path / 'mine', f'emnist_{part}', [file.getvalue()])
  dataset = load(f'emnist_{part}', folder)
  np.testing.assert_array_equal(dataset.train.arrays()[0][..., 0], images)
  np.testing.assert_array_equal(dataset.test.labels, labels)
  assert dataset.class_names[10 if part == 'balanced' else 0] == 'A'
  assert not dataset.mirrored_alike


def test_kmnist_is_known_by_its_packed_files(monkeypatch, tmp_path, published):
  arrays = data_files.arrays(5)
  packed = [data_files.packed(array) for array in arrays]
  folder = publish(monkeypatch, tmp_path / 'mine', 'kmnist', packed)
  dataset = load('kmnist', folder)
  np.testing.assert_array_equal(dataset.train.arrays()[0][..., 0], arrays[0])
  assert dataset.sha256 == dict(zip(formats.FILES, map(idx.sha256, arrays)))
  file = folder / sources.ORIGINALS['kmnist'].files[0]
  for content, told in ((gzip.compress(b'', 1), 'ends after 0'),
                        (gzip.compress(gzip.decompress(packed[0]), 1), 'as Kuzushiji-MNIST was'),
                        (data_files.packed(published['mnist'][0]), 'is MNIST .*, not Kuzushiji')):
    file.write_bytes(content)
    with pytest.raises(DataError, match=told):
      load('kmnist', folder)


def test_another_archive_is_refused(monkeypatch, tmp_path):
  folder = publish(monkeypatch, tmp_path / 'mine', 'cifar10', [tar({})])
  (folder / 'cifar-10-binary.tar.gz').write_bytes(b'poison')
  with pytest.raises(DataError, match=r'cifar-10-binary.tar.gz is not the published CIFAR-10 file'):
    load('cifar10', folder)
  with pytest.raises(DataError, match='holds no CIFAR-100 files; it must hold cifar-100-binary'):
    load('cifar100', folder)
  with pytest.raises(data.DataUnavailable, match=r'put its files \(gzip.zip\) in a folder'):
    data.load(Data(name='emnist_letters'))


def test_digits_are_not_mirrored_without_being_told(published, tmp_path):
  folders = {name: str(data_files.write(tmp_path / name, arrays))
             for name, arrays in published.items()}
  config = Config(data=Data(augment=(Flip(), Shift(2))))
  for name, probability in (('fashion_mnist', 0.5), ('mnist', 0.0)):
    config.data.name, config.data.data_dir = name, folders[name]
    config.data.validation_examples, config.data.batch_size = 10, 8
    found, *_ = train.prepare(config, tmp_path / 'run')
    assert found.data.augment == (Flip(probability), Shift(2))
