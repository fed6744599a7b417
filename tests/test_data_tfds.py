"""Sets that TFDS has prepared: what TensorFlow leaves, made here without it."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fmnist_jax import data
from fmnist_jax.config import Config, Data, validate
from fmnist_jax.data import builders
from fmnist_jax.errors import ConfigError, DataError


class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Images of an encoding that only TensorFlow writes: here they are files already."""
  VERSION = tfds.core.Version('1.2.0')
  FEATURES = {'picture': tfds.features.Image(), 'note': tfds.features.Text(),
              'kind': tfds.features.ClassLabel(names=['cat', 'dog', 'owl'])}
  SPLITS = {'train': [], 'test': []}

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES),
                                 disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {split: enumerate(examples) for split, examples in self.SPLITS.items()}

  def _generate_examples(self):
    raise NotImplementedError


def files(folder, count, shape=None):
  """So many examples, PNG files of noise, of a shape or of any."""
  folder.mkdir()
  random, found = np.random.default_rng(count), []
  for i in range(count):
    pixels = random.integers(0, 256, shape or (9 + i % 3, 10, 3), np.uint8)
    Image.fromarray(pixels.squeeze()).save(folder / f'{i}.png')
    found.append({'picture': str(folder / f'{i}.png'), 'note': 'so', 'kind': i % 3})
  return found


@pytest.fixture(name='prepare')
def _prepare(monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))

  def prepare(file_format='array_record', config=None, features=None, **splits):
    own = {'SPLITS': splits, 'FEATURES': Own.FEATURES | (features or {})}
    kind = type('OwnPictures', (Own,), own, skip_registration=True)
    with builders._quiet():
      kind(data_dir=tmp_path / 'tfds', file_format=file_format, config=config
           ).download_and_prepare()
  return prepare


def load(name='tfds:own_pictures', **settings):
  return data.load(Data(**{'name': name, 'size': 8, 'validation_examples': 3, 'batch_size': 2}
                        | settings))


def test_images_of_one_shape_are_read_as_they_are(prepare, tmp_path):
  shape = (12, 10, 1)
  prepare(features={'picture': tfds.features.Image(shape=shape)},
          train=files(tmp_path / 'a', 20, shape), test=files(tmp_path / 'b', 6, shape))
  for _ in range(2):
    dataset = load()
    assert dataset.image_shape == shape and dataset.class_names == ('cat', 'dog', 'owl')
    assert len(dataset.train) == 17
    for i, image in enumerate(dataset.test.arrays()[0]):
      np.testing.assert_array_equal(image[..., 0], Image.open(tmp_path / 'b' / f'{i}.png'))
    np.testing.assert_array_equal(dataset.test.labels, np.arange(6) % 3)


def test_images_of_several_shapes_are_framed(prepare, tmp_path):
  prepare(train=files(tmp_path / 'a', 20), test=files(tmp_path / 'b', 6))
  first = load()
  assert first.image_shape == (8, 8, 3)
  assert load(size=9, channels=1).image_shape == (9, 9, 1)
  assert load().sha256 == first.sha256 != load(frame='crop').sha256


def test_without_a_test_split_another_takes_its_place(prepare, tmp_path):
  some, more = files(tmp_path / 'a', 20), files(tmp_path / 'b', 6)
  prepare(train=some, config=tfds.core.BuilderConfig(name='alone'))
  assert [len(split) for split in (load('tfds:own_pictures:alone').train,
                                   load('tfds:own_pictures:alone').test)] == [15, 2]
  prepare(train=some, validation=more, config=tfds.core.BuilderConfig(name='pair'))
  assert len(load('tfds:own_pictures:pair').test) == 6
  with pytest.raises(DataError, match='there is tfds:own_pictures:alone, tfds:own_pictures:pair'):
    load()
  prepare(test=more, config=tfds.core.BuilderConfig(name='none'))
  with pytest.raises(DataError, match='has no split train, but test'):
    load('tfds:own_pictures:none')


def test_what_is_no_set_of_labelled_images_is_told(prepare, tmp_path):
  with pytest.raises(DataError, match=r'TFDS has not prepared tfds:nothing: .*array_record'):
    load('tfds:nothing')
  with pytest.raises(ConfigError, match='or tfds:NAME or tfds:NAME:CONFIG'):
    validate(Config(data=Data(name='tfds:../../etc')))
  some = files(tmp_path / 'a', 4)
  prepare(features={'kind': tfds.features.Text()}, train=[one | {'kind': 'x'} for one in some],
          config=tfds.core.BuilderConfig(name='unlabelled'))
  with pytest.raises(DataError, match='has 1 images and 0 class labels an example'):
    load('tfds:own_pictures:unlabelled')


def test_a_split_without_examples_or_of_no_class_is_told(prepare, tmp_path):
  some, few = files(tmp_path / 'a', 20), files(tmp_path / 'b', 6)
  prepare(train=few, config=tfds.core.BuilderConfig(name='few'))
  with pytest.raises(DataError, match='few has no example in its split test; it must have some'):
    load('tfds:own_pictures:few').test  # noqa: B018
  prepare(train=some, test=[one | {'kind': -1} for one in few],
          config=tfds.core.BuilderConfig(name='secret'))
  with pytest.raises(DataError, match='secret has examples of no class in its split test'):
    load('tfds:own_pictures:secret').test  # noqa: B018


@pytest.mark.parametrize('damage', ['info', 'records', 'format'])
def test_a_damaged_set_is_told(prepare, tmp_path, damage):
  prepare(train=files(tmp_path / 'a', 20), test=files(tmp_path / 'b', 6))
  folder = tmp_path / 'tfds/own_pictures/1.2.0'
  info = folder / 'dataset_info.json'
  if damage == 'info':
    info.write_text('{')
    told = 'cannot be opened .* prepare it again'
  elif damage == 'format':
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    told = "file_format='array_record'"
  else:
    path = next(folder.glob('*train*array_record*'))
    path.write_bytes(path.read_bytes()[:200])
    told = 'Nothing that tfds:own_pictures could be decoded from is sound'
  with pytest.raises(DataError, match=told) as caught:
    load()
  assert '\n' not in str(caught.value)
