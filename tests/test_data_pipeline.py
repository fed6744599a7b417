"""Loading, dealing out, ordering and streaming; data of one's own."""

import dataclasses
import io
import threading
import zipfile

import data_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.model_selection

from fmnist_jax import data
from fmnist_jax.config import Data
from fmnist_jax.data import kept, npz, pipeline, splits
from fmnist_jax.data.dataset import MemorySource, Split
from fmnist_jax.errors import DataError


@pytest.fixture(autouse=True)
def published(monkeypatch, tmp_path):
  return data_files.publish(monkeypatch, tmp_path)


def synthetic(**settings):
  return Data(**{'name': 'synthetic', 'train_examples': 200, 'test_examples': 50,
                 'validation_examples': 40, 'batch_size': 16} | settings)


def images_of(split):
  return {image.tobytes() for image in split.arrays()[0]}


# Loading.

def test_splits_are_disjoint_whole_and_stratified():
  dataset = data.load(synthetic())
  assert dataset.synthetic and dataset.image_shape == (28, 28, 1) and dataset.num_classes == 10
  train, validation, test = (images_of(split) for split in
                             (dataset.train, dataset.validation, dataset.test))
  assert (len(train), len(validation), len(test)) == (160, 40, 50)
  assert not train & validation and not train & test and not validation & test
  assert images_of(dataset.clean_train) == train  # Fewer than 5,000: all.
  np.testing.assert_array_equal(np.bincount(dataset.validation.labels), [4] * 10)
  for split in (dataset.train, dataset.validation, dataset.test):
    images, labels = split.arrays()
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(split.fetch(np.array([3, 1])), images[[3, 1]])
    np.testing.assert_array_equal(split.labels, labels)


def test_published_data_comes_with_its_hashes(published, tmp_path):
  folder = data_files.write(tmp_path / 'mine', published['fashion_mnist'])
  dataset = data.load(Data(data_dir=str(folder), validation_examples=10, batch_size=8))
  assert list(dataset.sha256) == ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte',
                                  't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte']
  np.testing.assert_array_equal(dataset.test.arrays()[0][..., 0], published['fashion_mnist'][2])
  assert not dataset.synthetic and dataset.class_names[9] == 'Ankle boot'


def test_test_data_is_read_only_when_asked_for(monkeypatch):
  opened = []
  real = kept.Kept.open
  monkeypatch.setattr(kept.Kept, 'open',
                      lambda self, split: (opened.append(split), real(self, split))[1])
  dataset = data.load(synthetic())
  assert opened == ['train']
  assert dataset.test is dataset.test
  assert opened == ['train', 'test']


def test_examples_can_be_limited(published, tmp_path):
  folder = data_files.write(tmp_path / 'mine', published['fashion_mnist'])
  config = Data(data_dir=str(folder), train_examples=30, test_examples=7, validation_examples=10,
                batch_size=5)
  dataset = data.load(config)
  assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (20, 10, 7)
  first = {image.tobytes() for image in published['fashion_mnist'][0][:30]}
  assert images_of(dataset.train) | images_of(dataset.validation) == first
  everything = data.load(dataclasses.replace(config, train_examples=0, test_examples=0))
  assert (len(everything.train), len(everything.test)) == (50, 20)


def test_no_validation_is_allowed_and_too_much_is_not():
  dataset = data.load(synthetic(validation_examples=0))
  assert len(dataset.validation) == 0 and len(dataset.train) == 200
  assert dataset.validation.arrays()[0].shape == (0, 28, 28, 1)
  with pytest.raises(DataError, match='validation_examples=190'):
    data.load(synthetic(validation_examples=190))


def test_what_cannot_be_had_has_an_error_of_its_own(tmp_path):
  with pytest.raises(data.DataUnavailable):
    data.load(Data())
  with pytest.raises(DataError) as caught:  # A folder that is named and wrong is another matter.
    data.load(Data(data_dir=str(tmp_path)))
  assert not isinstance(caught.value, data.DataUnavailable)


def test_residency_goes_by_size(monkeypatch):
  assert data.is_resident('auto', pipeline.RESIDENT_BYTES)
  assert not data.is_resident('auto', pipeline.RESIDENT_BYTES + 1)
  assert data.is_resident('resident', 1 << 40) and not data.is_resident('streamed', 1)

  class Device:
    def memory_stats(self):
      return {'bytes_limit': 4000}
  monkeypatch.setattr(jax, 'local_devices', lambda: [Device()])
  assert data.is_resident('auto', 1000) and not data.is_resident('auto', 1001)


# Fixed choices.

def test_as_many_of_each_class_where_there_are_as_many():
  labels = np.repeat(np.arange(10), 60)
  for count in (0, 1, 9, 10, 100, 305, 600):
    chosen = splits.stratified(labels, count, splits.VALIDATION)
    assert len(np.unique(chosen)) == count and (np.diff(chosen) > 0).all()
    given = np.bincount(labels[chosen], minlength=10)
    np.testing.assert_array_equal(given, count // 10 + (np.arange(10) < count % 10))


def given(sizes, count):
  """Of each class, of so many."""
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
  chosen = splits.stratified(labels, count, splits.VALIDATION)
  assert len(np.unique(chosen)) == len(chosen) == count
  return np.bincount(labels[chosen], minlength=len(sizes)).tolist()


@pytest.mark.parametrize('sizes', [(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
                                   (1234, 777, 91, 40), (50, 350)])
@pytest.mark.parametrize('count', [37, 123, 391])
def test_classes_give_in_proportion_as_in_scikit_learn(sizes, count):
  labels = np.repeat(np.arange(len(sizes)), sizes)
  _, theirs = sklearn.model_selection.train_test_split(
      labels, test_size=count, stratify=labels, random_state=0)
  assert given(sizes, count) == np.bincount(theirs).tolist()


def test_rare_classes_give_one_and_keep_one():
  assert given([50, 3, 2, 1], 10) == [8, 1, 1, 0]  # Without the bounds [9, 1, 0, 0].
  assert given([50, 2, 1], 50) == [49, 1, 0]
  assert given([50, 2, 1], 53) == [50, 2, 1]
  assert given([5, 5, 5], 2) == [1, 1, 0]  # Too few for each to give one.


def test_classes_too_rare_to_be_validated_are_named(tmp_path, caplog):
  sizes = [400, 30, 4, 1]
  images = np.zeros((sum(sizes), 4, 4), np.uint8)
  path = own(tmp_path, images=images, labels=np.repeat(np.arange(4), sizes),
             test_images=images[:4], test_labels=np.arange(4),
             class_names=np.array(['cat', 'dog', 'lynx', 'yeti']))
  dataset = load_own(path, validation_examples=60)
  np.testing.assert_array_equal(np.bincount(dataset.validation.labels, minlength=4),
                                [55, 4, 1, 0])
  np.testing.assert_array_equal(np.bincount(dataset.train.labels), [345, 26, 3, 1])
  assert caplog.messages == [f"Classes of {path} with fewer than 5 validation examples: "
                             "'dog' (4), 'lynx' (1), 'yeti' (0)."]
  caplog.clear()
  load_own(path, validation_examples=3)  # Fewer than classes: none can have more than one.
  assert caplog.messages == [f"Classes of {path} with fewer than 1 validation examples: "
                             "'yeti' (0)."]
  caplog.clear()
  load_own(path, validation_examples=60, train_examples=430)
  assert "fewer than 1 training examples: 'lynx' (0), 'yeti' (0)" in caplog.messages[0]
  caplog.clear()
  data.load(synthetic(validation_examples=20))  # Two of each class, as many as were asked for.
  assert not caplog.messages


def test_choices_never_change():
  # Runs on other machines and later versions must hold out the same images.
  labels = np.arange(60_000) % 10
  chosen = splits.stratified(labels, 5000, splits.VALIDATION)
  assert chosen[:8].tolist() == [3, 5, 24, 27, 43, 54, 66, 78]
  other = splits.stratified(labels, 5000, splits.CLEAN_TRAIN)
  assert 300 < len(np.intersect1d(chosen, other)) < 540  # Independent: 417 expected.


# Order.

@pytest.mark.parametrize(('examples', 'batch'), [(1, 1), (2, 1), (100, 7), (65_537, 64)])
def test_an_epoch_is_a_permutation_without_its_remainder(examples, batch):
  order = np.asarray(data.epoch_order(3, 5, examples, batch))
  assert order.shape == (examples // batch, batch) and order.dtype == np.int32
  assert len(np.unique(order)) == order.size
  assert order.min() >= 0 and order.max() < examples
  if examples % batch == 0:
    np.testing.assert_array_equal(np.sort(order.ravel()), np.arange(examples))


def test_order_is_a_pure_function_of_seed_and_epoch():
  order = lambda seed, epoch: np.asarray(data.epoch_order(seed, epoch, 500, 50))
  np.testing.assert_array_equal(order(1, 2), order(1, 2))
  np.testing.assert_array_equal(order(1, 2), order(jax.random.key(1), 2))
  for other in (order(1, 3), order(2, 2), order(2, 1)):
    assert (order(1, 2) == other).mean() < 0.02
  compiled = jax.jit(data.epoch_order, static_argnums=(2, 3))
  np.testing.assert_array_equal(order(7, 8), compiled(jnp.int32(7), jnp.int32(8), 500, 50))
  seeds = jnp.arange(3)
  together = jax.vmap(lambda seed: data.epoch_order(seed, 4, 500, 50))(seeds)
  for seed in range(3):
    np.testing.assert_array_equal(together[seed], order(seed, 4))


@pytest.mark.parametrize('examples', [6, 1 << 17])  # One shuffle, and two.
def test_every_place_is_equally_likely(examples):
  orders = np.asarray(jax.vmap(lambda epoch: data.epoch_order(0, epoch, examples, examples))(
      jnp.arange(2000 if examples == 6 else 3)))[:, 0]
  if examples == 6:
    counts = np.stack([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    # 36 cells of 333 expected; chi-squared with 25 degrees of freedom, 99.99 %.
    assert ((counts - 2000 / 6) ** 2 / (2000 / 6)).sum() < 60
    # Neighbours are not kept together.
    follows = (np.diff(orders, axis=1) == 1).mean()
    assert abs(follows - 5 / 30) < 0.015
  else:
    for order in orders:
      # Neither the examples' places nor their neighbourhood survive.
      assert abs(np.corrcoef(order, np.arange(examples))[0, 1]) < 0.015
      assert (np.abs(np.diff(order)) < 100).mean() < 0.003


# Streaming.

def split_of(n):
  images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
  return Split(MemorySource(images, np.arange(n, dtype=np.int32)), np.arange(n),
               np.arange(n, dtype=np.int32))


def threads():
  return [thread for thread in threading.enumerate() if thread.name.startswith('prefetch')]


@pytest.mark.parametrize('start', [0, 1, 4, 5, 9, 10])
@pytest.mark.parametrize('size', [1, 4, 64])
def test_streamed_batches_are_the_same_in_the_same_order(start, size):
  split = split_of(50)
  order = np.asarray(data.epoch_order(0, 0, 50, 5))
  ends, at = [], start
  with data.stream(split, order, start, size, lambda arrays: arrays) as chunks:
    for images, labels in chunks:
      steps = len(labels)
      np.testing.assert_array_equal(labels, order[at:at + steps])
      np.testing.assert_array_equal(images[:, :, 0, 0, 0], order[at:at + steps])
      assert images.shape == (steps, 5, 2, 3, 1) and images.dtype == np.uint8
      at += steps
      ends.append(at)
  assert at == 10 and start not in ends
  # Wherever one begins, chunks end at the same steps.
  assert all(end % size == 0 or end == 10 for end in ends)
  assert not threads()


def test_streaming_places_chunks_on_the_devices():
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'data'))
  order = np.asarray(data.epoch_order(0, 0, 48, 8))
  with data.stream(split_of(48), order, 0, 4,
                   lambda arrays: jax.device_put(arrays, sharding)) as chunks:
    images, labels = next(chunks)
    assert images.sharding == sharding and labels.shape == (4, 8)


def test_leaving_early_ends_the_thread():
  order = np.asarray(data.epoch_order(0, 0, 250, 5))
  placed = []
  with data.stream(split_of(250), order, 0, 1, lambda arrays: placed.append(1)) as chunks:
    next(chunks)
    assert threads()
  assert not threads()
  assert len(placed) <= 5  # One used, two ready, one waiting for room, one begun: no more.
  with (pytest.raises(KeyboardInterrupt),
        data.stream(split_of(250), order, 0, 1, lambda arrays: arrays) as chunks):
    raise KeyboardInterrupt
  assert not threads()


def test_errors_in_the_thread_reach_the_caller():
  class Broken:
    shape = (2, 3, 1)

    def __len__(self):
      return 50

    def fetch(self, indices):
      if 37 in indices:
        raise DataError('the disk is gone')
      return split_of(50).fetch(indices), None

  order = np.arange(50).reshape(10, 5)
  split = Split(Broken(), np.arange(50), np.arange(50, dtype=np.int32))
  seen = 0
  with (pytest.raises(DataError, match='the disk is gone'),
        data.stream(split, order, 0, 1, lambda arrays: arrays) as chunks):
    for _ in chunks:
      seen += 1
  assert seen == 7 and not threads()


# One's own data.

def own(tmp_path, **arrays):
  """A sound file, with some arrays replaced, or left out (None)."""
  random = np.random.default_rng(0)
  arrays = {'images': random.integers(0, 256, (40, 6, 5), np.uint8),
            'labels': np.arange(40) % 4} | arrays
  path = tmp_path / 'own.npz'
  np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
  return str(path)


def load_own(path, **settings):
  return data.load(Data(**{'name': path, 'validation_examples': 8, 'batch_size': 4} | settings))


def test_own_data_without_test_arrays(tmp_path):
  dataset = load_own(own(tmp_path))
  assert dataset.image_shape == (6, 5, 1) and dataset.class_names == ('0', '1', '2', '3')
  assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (28, 8, 4)
  np.testing.assert_array_equal(np.sort(dataset.test.labels), np.arange(4))
  assert not images_of(dataset.train) & images_of(dataset.test)
  assert not dataset.synthetic and list(dataset.sha256) == ['own.npz']
  again = load_own(own(tmp_path))
  np.testing.assert_array_equal(again.test.arrays()[0], dataset.test.arrays()[0])


def test_own_data_with_test_arrays_channels_and_names(tmp_path):
  random = np.random.default_rng(1)
  images = random.integers(0, 256, (5, 6, 5, 3), np.uint8)
  path = own(tmp_path, images=np.repeat(images, 8, axis=0), labels=np.arange(40)[:, None] % 2,
             test_images=images, test_labels=np.zeros(5, np.uint8),
             class_names=np.array(['hat', 'glove']))
  dataset = load_own(path, test_examples=3)
  assert dataset.image_shape == (6, 5, 3) and dataset.class_names == ('hat', 'glove')
  np.testing.assert_array_equal(dataset.test.arrays()[0], images[:3])


def test_own_data_with_the_names_keras_uses(tmp_path):
  path = tmp_path / 'keras.npz'
  images = np.zeros((20, 4, 4), np.uint8)
  np.savez(path, x_train=images, y_train=np.arange(20) % 2, x_test=images[:4],
           y_test=np.arange(4) % 2)
  assert len(load_own(str(path), validation_examples=2).test) == 4


ZEROS = np.zeros((40, 6, 5), np.uint8)


@pytest.mark.parametrize(('arrays', 'told'), [
    ({'images': None}, "no array 'images'"),
    ({'labels': None}, "no array 'labels'"),
    ({'images': ZEROS.astype(np.float32)}, 'images are float32'),
    ({'images': ZEROS[0]}, r'images are uint8 \[6, 5\]'),
    ({'images': ZEROS[:39]}, '39 images, but 40 labels'),
    ({'images': ZEROS[:0], 'labels': np.arange(0)}, 'images is empty'),
    ({'images': ZEROS[:, :0]}, 'images is empty'),
    ({'labels': np.arange(40) % 4.0}, 'labels are float64'),
    ({'labels': np.eye(40, dtype=int)}, r'labels are int64 \[40, 40\]'),
    ({'labels': np.arange(40) % 4 - 1}, 'from -1 to 2'),
    ({'labels': np.arange(40) * 1000}, 'from 0 to 39000'),
    ({'labels': np.arange(40) % 2 * 2}, 'class 1 has no training example'),
    ({'labels': np.zeros(40, int)}, 'two classes'),
    ({'test_images': ZEROS}, 'one of test_images and test_labels'),
    ({'test_images': ZEROS[:, :3], 'test_labels': np.arange(40) % 4}, 'make them alike'),
    ({'test_images': ZEROS, 'test_labels': np.arange(40) % 5}, 'class 4 has no training'),
    ({'class_names': np.array(['a', 'b'])}, 'one string for each of the 4 classes'),
    ({'class_names': np.arange(4)}, 'one string for each of the 4 classes'),
    ({'labels': np.array([{}] * 40)}, 'not a sound .npz'),
])
def test_wrong_own_data_is_told_in_one_sentence(tmp_path, arrays, told):
  path = own(tmp_path, **arrays)
  with pytest.raises(DataError, match=told) as caught:
    load_own(path)
  assert path in str(caught.value) and '\n' not in str(caught.value)


def test_unreadable_own_data(tmp_path):
  path = own(tmp_path)
  content = (tmp_path / 'own.npz').read_bytes()
  with pytest.raises(DataError, match='No such file'):
    load_own(str(tmp_path / 'missing.npz'))
  for bad in (b'', b'text', content[:-30], content[:len(content) // 2],
              content[:300] + b'xxxx' + content[304:]):
    (tmp_path / 'own.npz').write_bytes(bad)
    with pytest.raises(DataError, match='not a sound'):
      load_own(path)


def test_a_header_that_lies_costs_no_memory(tmp_path):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      header, {'descr': '|u1', 'fortran_order': False, 'shape': (1 << 45,)})
  with zipfile.ZipFile(tmp_path / 'liar.npz', 'w') as archive:
    archive.writestr('images.npy', header.getvalue())
  with pytest.raises(DataError, match='not a sound'):
    npz.read(str(tmp_path / 'liar.npz'))
