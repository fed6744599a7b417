"""A folder of pictures as a data set."""

import os
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

from fmnist_jax import data, photograph, predict
from fmnist_jax.config import Config, Data, validate
from fmnist_jax.data import folder, kept
from fmnist_jax.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))


def picture(seed, size=(12, 10)):
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def make(root, counts, part=''):
  """A folder of so many pictures a class."""
  for name, count in counts.items():
    place = root / part / name
    place.mkdir(parents=True, exist_ok=True)
    for i in range(count):
      picture([i, *part.encode(), *name.encode()]).save(place / f'{i}.png')
  return root


def load(root, **settings):
  return data.load(Data(**{'name': f'{root}/', 'size': 8, 'validation_examples': 4,
                           'batch_size': 2} | settings))


def names_of(dataset, root, split):
  """Which file each example of a split is, by its pixels."""
  known = {}
  for path in root.rglob('*.png'):
    with open(path, 'rb') as file:
      image = photograph.read(file, dataset.image_shape, '', lambda pixels, shape:
                              photograph.framed(pixels, shape, 'fit'))
    known[image.tobytes()] = str(path.relative_to(root))
  return [known[image.tobytes()] for image in split.arrays()[0]]


def test_classes_are_folders_and_every_picture_counts_once(tmp_path):
  root = make(tmp_path / 'photos', {'owl': 30, 'cat': 40, 'dog': 25})
  (root / '.git').mkdir()
  (root / 'cat/deeper').mkdir()
  picture(99).save(root / 'cat/deeper/x.BMP')
  dataset = load(root, validation_examples=0)
  assert dataset.class_names == ('cat', 'dog', 'owl') and dataset.image_shape == (8, 8, 3)
  assert dataset.name == f'{root}/' and not dataset.synthetic
  assert len(dataset.train) + len(dataset.test) == 96
  (root / 'cat/deeper/x.BMP').rename(root / 'cat/deeper/x.png')
  for split in (dataset.train, dataset.test):
    names = names_of(dataset, root, split)
    assert len(set(names)) == len(split)
    assert [dataset.class_names[label] for label in split.labels] == [
        name.split('/')[0] for name in names]
  assert 2 <= len(dataset.test) <= 22  # A tenth, as chance wills.


def test_adding_pictures_moves_none(tmp_path):
  root = make(tmp_path / 'photos', {'a': 40, 'b': 40})
  before = load(root, validation_examples=0)
  parts = [names_of(before, root, split) for split in (before.train, before.test)]
  make(root, {'a': 60, 'b': 60, 'aa': 20})
  after = load(root, validation_examples=0)
  assert after.class_names == ('a', 'aa', 'b') and after.sha256 != before.sha256
  for split, old in zip((after.train, after.test), parts):
    names = names_of(after, root, split)
    assert [name for name in names if name in set(old)] == old  # In their old order, too.
  assert parts[0] != sorted(parts[0])  # The first N are of all classes.


def test_a_test_folder_is_the_test_split(tmp_path):
  root = make(make(tmp_path / 'photos', {'a': 9, 'b': 7}, 'train'), {'b': 3, 'a': 1}, 'test')
  dataset = load(root)
  assert sorted(names_of(dataset, root, dataset.test)) == [
      'test/a/0.png', 'test/b/0.png', 'test/b/1.png', 'test/b/2.png']
  assert len(dataset.train) + len(dataset.validation) == 16


@pytest.mark.parametrize(('change', 'told'), [
    (lambda root: os.rename(root / 'test', root / 'val'), "in train/, and 'val' beside them"),
    (lambda root: (root / 'dog').mkdir(), "in train/ and test/, and 'dog' beside"),
    (lambda root: make(root, {'c': 1}, 'test'), "class 'c' in test/, but not in train/"),
    (lambda root: (root / 'train/c').mkdir(), "class 'c' of .* has no picture to train on"),
    (lambda root: [path.unlink() for path in (root / 'test').rglob('*.png')], 'no picture to test'),
    (lambda root: os.symlink('nowhere', root / 'train/a/x.png'), 'x.png cannot be read: No such'),
    (lambda root: [os.rename(root / 'train' / name, root / 'test' / f'{name}{name}')
                   for name in 'ab'], 'folders of classes in test/'),
])
def test_a_folder_that_is_laid_out_otherwise_is_told(tmp_path, change, told):
  root = make(make(tmp_path / 'photos', {'a': 4, 'b': 4}, 'train'), {'b': 1, 'a': 1}, 'test')
  change(root)
  with pytest.raises(DataError, match=told) as caught:
    load(root)
  assert '\n' not in str(caught.value) and not (tmp_path / 'tfds').exists()


def test_what_is_no_data_set_is_told(tmp_path):
  for name, told in (('nowhere', 'cannot be read: No such file'), ('', '0 folders of classes')):
    (tmp_path / 'empty').mkdir(exist_ok=True)
    with pytest.raises(DataError, match=told):
      load(tmp_path / 'empty' / name)
  with pytest.raises(DataError, match='1 folders of classes'):
    load(make(tmp_path / 'one', {'a': 3}))
  with pytest.raises(DataError, match='no folders of classes in them'):
    load(make(tmp_path / 'flat', {'train': 3, 'test': 3}))
  with pytest.raises(ConfigError, match='with a / at its end'):
    Data(name=str(tmp_path)).check_settings('data')
  with pytest.raises(DataError, match='control characters'):
    load(make(tmp_path / 'odd', {'a\x1b[31m': 20, 'b': 20}))


def test_settings_are_checked():
  for wrong, told in (({'channels': 2}, 'channels is 2; it must be one of 1, 3'),
                      ({'size': 0}, 'size is 0'), ({'frame': 'tile'}, 'one of fit, crop')):
    with pytest.raises(ConfigError, match=told):
      validate(Config(data=Data(name='photos/', **wrong)))


# Pictures.

def test_fit_shows_all_and_crop_fills():
  pixels = np.zeros((10, 20, 3), np.uint8)
  pixels[:, 5:15] = 200  # The middle square.
  fit = photograph.framed(pixels, (10, 10, 3), 'fit')
  assert fit.shape == (10, 10, 3)
  assert not fit[:2].any() and not fit[-3:].any() and (fit[4, 4:6] == 200).all()
  assert (photograph.framed(pixels, (10, 10, 3), 'crop') == 200).all()
  for shape in ((1, 3000, 3), (3000, 1, 3)):
    for frame in ('fit', 'crop'):
      found = photograph.framed(np.full(shape, 9, np.uint8), (8, 8, 1), frame)
      assert found.shape == (8, 8, 1) and found.max() == 9
  own = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  for frame in ('fit', 'crop'):
    np.testing.assert_array_equal(photograph.framed(own, (8, 8, 3), frame), own)


def test_all_kinds_of_pictures(tmp_path):
  root = make(tmp_path / 'photos', {'a': 2, 'b': 2}, 'train')
  place = root / 'test/a'
  place.mkdir(parents=True)
  red = np.zeros((8, 8, 3), np.uint8)
  red[..., 0] = 255
  half = red.copy()
  half[4:] = 0
  Image.fromarray(red).quantize(4).save(place / 'palette.png')
  Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(place / 'deep.png')
  Image.fromarray(np.dstack([red, np.zeros((8, 8), np.uint8)])).save(place / 'clear.webp',
                                                                   lossless=True)
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned clockwise: what is above goes to the right.
  Image.fromarray(half).save(place / 'turned.png', exif=exif)
  Image.fromarray(red[..., 0]).save(place / 'grey.bmp')
  Image.fromarray(red).convert('CMYK').save(place / 'print.jpg')
  (place / 'notes.txt').write_text('no picture')
  listed = [os.path.basename(entry.path) for entry in folder.listing(f'{root}/').splits['test']]
  dataset = load(root, validation_examples=0)
  found = dict(zip(listed, dataset.test.arrays()[0]))
  np.testing.assert_array_equal(found['palette.png'], red)
  for name in ('deep.png', 'clear.webp', 'grey.bmp'):  # Laid on white where it is transparent.
    assert (found[name] == 255).all()
  np.testing.assert_array_equal(found['turned.png'][:, 4:], red[:, 4:])
  assert not found['turned.png'][:, :4].any()
  assert found['print.jpg'][..., 0].min() > 240 and found['print.jpg'][..., 1].max() < 15
  assert load(root, channels=1, validation_examples=0).image_shape == (8, 8, 1)


def spoil(root):
  """Three files that are no pictures; returns their names."""
  content = (root / 'a/1.png').read_bytes()
  (root / 'a/cut.png').write_bytes(content[:len(content) // 2])
  (root / 'b/empty.jpg').write_bytes(b'')
  (root / 'b/text.png').write_text('<html>')
  return ('cut.png', 'empty.jpg', 'text.png')


def test_pictures_that_cannot_be_read_are_named(tmp_path, caplog):
  root = make(tmp_path / 'photos', {'a': 30, 'b': 30})
  bad = spoil(root)
  with pytest.raises(DataError, match=r'3 of the pictures in .* cannot be read, .*damaged=skip'):
    load(root)
  assert all(name in caplog.text for name in bad)
  assert [path.name for path in (tmp_path / 'tfds/fmnist_jax_arrays').iterdir()
          if not path.name.endswith('.lock')] == []
  caplog.clear()
  dataset = load(root, damaged='skip', validation_examples=0)
  assert all(name in caplog.text for name in bad) and 'left out' in caplog.text
  assert len(dataset.train) + len(dataset.test) == 60


def test_a_picture_that_is_too_large_is_named(tmp_path, monkeypatch):
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  picture(0, (40, 40)).save(root / 'a/large.png')
  monkeypatch.setattr(photograph, 'MOST_PIXELS', 1000)
  with pytest.raises(DataError, match=r'1 of the pictures .*large.png .*40 x 40 pixels'):
    load(root)


def test_a_class_of_damaged_pictures_is_told(tmp_path):
  root = make(tmp_path / 'photos', {'a': 30, 'b': 30, 'c': 9})
  for path in (root / 'c').iterdir():
    path.write_bytes(b'no picture')
  with pytest.raises(DataError, match=r"class 'c' .* has no picture to train on"):
    load(root, damaged='skip')
  for path in root.rglob('*.png'):
    path.write_bytes(b'no picture')
  with pytest.raises(DataError, match='leaves none of train'):
    load(root, damaged='skip')


# Keeping what was decoded.

@pytest.fixture(name='decoded')
def _decoded(monkeypatch):
  """Names of pictures as they are decoded."""
  found = []
  real = photograph.read
  monkeypatch.setattr(photograph, 'read', lambda file, shape, name, *args: (
      found.append(os.path.basename(name)), real(file, shape, name, *args))[1])
  return found


def test_a_folder_is_decoded_once(tmp_path, decoded):
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  first = load(root)
  assert len(decoded) == 40 and isinstance(first.train._source, kept.MappedSource)
  again = load(root)
  assert len(decoded) == 40 and again.sha256 == first.sha256
  np.testing.assert_array_equal(again.test.arrays()[0], first.test.arrays()[0])
  load(root, size=9)
  assert len(decoded) == 80
  load(root)  # Each size keeps its own.
  assert len(decoded) == 80


def test_a_folder_that_changed_is_told_by_its_digest(tmp_path, decoded):
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  first = load(root).sha256
  os.utime(root / 'a/1.png')
  assert load(root).sha256 == first and len(decoded) == 80  # Looked at again: the same.
  status = os.stat(root / 'a/1.png')
  changed = np.array(Image.open(root / 'a/1.png'))
  changed[0, 0] ^= 255
  Image.fromarray(changed).save(root / 'a/1.png')
  os.utime(root / 'a/1.png', ns=(status.st_atime_ns, status.st_mtime_ns))  # As if it had not.
  second = load(root).sha256
  assert {name for name in first if first[name] != second[name]} <= {'train-images', 'test-images'}
  assert second != first
  os.rename(root / 'a', root / 'aa')
  assert load(root).sha256['class_names'] != first['class_names']


def test_a_run_goes_on_with_what_it_began_with(tmp_path):
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  first, whole = load(root), load(root).test.arrays()[0]
  make(root, {'a': 40, 'b': 40, 'c': 30})
  assert len(load(root).test) > len(whole)  # Another run, meanwhile: the folder's arrays are new.
  np.testing.assert_array_equal(first.test.arrays()[0], whole)
  gone = load(root, size=9)
  shutil.rmtree(tmp_path / 'tfds')
  assert len(gone.test) > len(whole)


def test_test_images_that_changed_with_their_folder_are_not_tested_on(tmp_path):
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  dataset = load(root)
  arrays, = (tmp_path / 'tfds/fmnist_jax_arrays').glob('folder-*')
  (arrays / 'test-images.npy').write_bytes(b'damaged')
  for path in root.rglob('*.png'):
    picture(0).save(path)
  with pytest.raises(DataError, match=r'photos/ has changed since it was trained on'):
    _ = dataset.test


def test_where_nothing_can_be_kept_it_is_decoded_each_time(tmp_path, decoded):
  (tmp_path / 'tfds').write_text('a file in the way')
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  first = load(root).sha256
  assert load(root).sha256 == first and len(decoded) == 80


def test_pictures_are_predicted_as_they_were_trained_on(tmp_path):
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  dataset = load(root, frame='crop', validation_examples=0)
  seen = []
  run = types.SimpleNamespace(
      image_shape=dataset.image_shape, config=Config(data=Data(name=f'{root}/', frame='crop')),
      predict=lambda images: (seen.extend(images), np.zeros((len(images), 2)))[1])
  files = [entry.path for entry in folder.listing(f'{root}/').splits['train']]
  assert len(list(predict.answers(run, files, []))) == len(dataset.train)
  np.testing.assert_array_equal(seen, dataset.train.arrays()[0])


def test_a_bar_is_drawn_on_a_terminal_alone(tmp_path, monkeypatch, capfd):
  root = make(tmp_path / 'photos', {'a': 20, 'b': 20})
  load(root)
  assert capfd.readouterr().err == ''
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  load(root, size=9)
  assert f'decoding {root}/ (train)' in capfd.readouterr().err
