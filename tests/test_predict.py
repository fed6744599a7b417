"""Pictures of all kinds, and what the command says of them."""

import csv
import io
import json
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fmnist_jax import config_file, data, interrupt, photograph, predict, train_and_evaluate
from fmnist_jax.errors import DataError, UserError

SHAPE = (28, 28, 1)


def saved(path, array, **how):
  Image.fromarray(array).save(path, **how)
  return str(path)


def read(path):
  with open(path, 'rb') as file:
    return photograph.read(file, SHAPE, str(path))


@pytest.fixture(scope='module', name='run')
def _run(tmp_path_factory):
  directory = tmp_path_factory.mktemp('predict') / 'run'
  config = config_file.load('smoke', ['data.train_examples=600', 'data.test_examples=40',
                                      'data.validation_examples=100', 'train.epochs=1'])
  train_and_evaluate(config, directory)
  images, labels = data.load(config.data).test.arrays()
  return directory, images, labels


def call(capsys, *arguments):
  """Exit code, standard output and error of the command."""
  code = 0
  try:
    predict.main(interrupt.Interrupt(), list(map(str, arguments)))
  except UserError as error:
    assert error.told
    code = 1
  out, err = capsys.readouterr()
  return code, out, err


# The specification.

@pytest.mark.parametrize('mode', ['L', 'RGB', 'P'])
def test_an_image_of_the_data_set_passes_through_unchanged(tmp_path, mode):
  image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
  Image.fromarray(image).convert(mode).save(tmp_path / 'a.png')
  np.testing.assert_array_equal(read(tmp_path / 'a.png')[..., 0], image)


def test_a_photograph_is_trimmed_fitted_centred_and_negated(tmp_path):
  photo = np.full((300, 200, 3), 250, np.uint8)
  photo[40:240, 60:160] = (10, 20, 30)  # 200 x 100: becomes 28 x 14.
  found = read(saved(tmp_path / 'a.png', photo))[..., 0]
  assert found.shape == (28, 28)
  assert (found[:, :7] == 5).all() and (found[:, 21:] == 5).all(), 'the background, negated'
  assert (found[:, 8:20] == 255 - round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)).all()


def test_by_hand():
  # A white 1 x 2 object on black, enlarged to 4 x 8 of 8 x 8: sharpening leaves its inside alone.
  pixels = np.zeros((5, 5, 3), np.uint8)
  pixels[2, 1:3] = 200
  found = photograph.to_input(pixels, (8, 8, 1))[..., 0]
  expected = np.zeros((8, 8), np.uint8)
  expected[2:6] = 200
  np.testing.assert_array_equal(found, expected)
  # Means of areas: of 3 pixels onto 2 each takes one and a half.
  np.testing.assert_allclose(photograph._areas(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
  # Sharpening a step: the Gaussian's weights are 1 and exp(-1/2), over their sum.
  outer = np.exp(-0.5) / (1 + 2 * np.exp(-0.5))
  step = np.array([0, 0, 100, 100.0])[None, :, None] * np.ones((4, 1, 3))
  np.testing.assert_allclose(photograph._sharpened(step)[1, :, 0],
                             [0, -100 * outer, 100 + 100 * outer, 100])


@pytest.mark.parametrize('shape', [(1, 1), (1, 400), (400, 1), (3000, 3), (27, 28)])
@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_of_every_size(shape, channels):
  pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  assert photograph.to_input(pixels, (28, 20, channels)).shape == (28, 20, channels)
  plain = np.full((*shape, 3), 77, np.uint8)
  assert np.ptp(photograph.to_input(plain, (28, 20, channels))) == 0


def test_orientation_transparency_and_sixteen_bits(tmp_path):
  picture = np.zeros((20, 40, 3), np.uint8)
  picture[:, :10] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned a quarter clockwise.
  upright = read(saved(tmp_path / 'a.png', np.rot90(picture, -1).copy()))
  turned = read(saved(tmp_path / 'b.png', picture, exif=exif))
  np.testing.assert_array_equal(turned, upright)
  clear = np.zeros((28, 28, 4), np.uint8)
  clear[10:18, 10:18] = (9, 9, 9, 255)
  found = read(saved(tmp_path / 'c.png', clear))
  assert found.max() == 255 and found[14, 14, 0] == 9, 'on white, of the right size already'
  deep = np.linspace(0, 65535, 28 * 28).reshape(28, 28).astype('<u2')
  Image.frombytes('I;16', (28, 28), deep.tobytes()).save(tmp_path / 'd.png')
  found = read(tmp_path / 'd.png')[..., 0]
  np.testing.assert_array_equal(found, np.floor(deep / 257 + 0.5))


# What is no picture.

def bomb(width, height):
  """A PNG of a kilobyte that claims a size."""
  chunk = lambda kind, body: (struct.pack('>I', len(body)) + kind + body
                              + struct.pack('>I', zlib.crc32(kind + body)))
  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
          + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))


def test_what_is_no_picture_is_told_in_a_sentence(tmp_path):
  good = io.BytesIO()
  Image.fromarray(np.zeros((50, 50), np.uint8)).save(good, 'PNG')
  for name, content in {'empty.png': b'', 'text.png': b'hello', 'half.png': good.getvalue()[:-30],
                        'bomb.png': bomb(60_000, 60_000), 'short.png': bomb(5000, 5000),
                        'page.gif': b'GIF89a' + bytes(20)}.items():
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf'{name} is no picture that can be read \(.+\)\.$'):
      read(tmp_path / name)


def test_a_broken_picture_never_ends_in_anything_else(tmp_path):
  random, made = np.random.default_rng(0), []
  picture = random.integers(0, 256, (40, 30, 3), np.uint8)
  for kind in ('PNG', 'JPEG', 'BMP', 'WEBP'):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    made.append(file.getvalue())
  for number in range(400):
    content = bytearray(made[number % 4])
    for _ in range(random.integers(1, 6)):
      content[random.integers(len(content))] = random.integers(256)
    try:
      assert photograph.read(io.BytesIO(bytes(content)), SHAPE, 'x').shape == SHAPE
    except DataError as error:
      assert '\n' not in str(error)


# The command.

def test_the_command_agrees_with_the_model_in_every_format(run, tmp_path, capsys):
  from fmnist_jax import load_run
  directory, images, _ = run
  model = load_run(directory)
  expected = model.predict(images[:3])
  files = [saved(tmp_path / f'{k}.png', images[k, ..., 0]) for k in range(3)]
  code, out, err = call(capsys, '--workdir', directory, '--format=json', *files)
  assert (code, err) == (0, '')
  found = json.loads(out)
  assert [entry['file'] for entry in found] == files
  np.testing.assert_allclose([list(entry['probabilities'].values()) for entry in found], expected,
                             rtol=1e-6)
  code, out, _ = call(capsys, '--workdir', directory, '--format=csv', tmp_path)
  rows = list(csv.DictReader(io.StringIO(out)))
  assert code == 0 and [row['class'] for row in rows] == [
      model.class_names[k] for k in expected.argmax(-1)]
  code, out, _ = call(capsys, '--workdir', directory, files[0])
  assert out.startswith(f'{files[0]}: {model.class_names[expected[0].argmax()]} ')
  np.savez(tmp_path / 'all.npz', images=images[:3])
  code, out, _ = call(capsys, '--workdir', directory, '--format=json', tmp_path / 'all.npz')
  np.testing.assert_allclose([list(entry['probabilities'].values()) for entry in json.loads(out)],
                             expected, rtol=1e-6)


def test_files_that_are_none_are_told_and_the_others_answered(run, tmp_path, capsys, monkeypatch):
  directory, images, _ = run
  good = saved(tmp_path / 'good.png', images[0, ..., 0])
  (tmp_path / 'bad\x1b[2J.png').write_bytes(b'no')
  (tmp_path / 'empty').mkdir()
  np.savez(tmp_path / 'other.npz', labels=np.zeros(3))
  code, out, err = call(capsys, '--workdir', directory, tmp_path / 'absent.png', tmp_path,
                        tmp_path / 'empty', tmp_path / 'other.npz', good)
  assert code == 1 and len(out.splitlines()) == 2
  assert len(err.splitlines()) == 4 and all(line.startswith('error: ') for line in err.splitlines())
  assert '\x1b' not in out + err
  with open(good, 'rb') as file:
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(file))
    assert call(capsys, '--workdir', directory, '-')[0] == 0
  np.savez(tmp_path / 'fractions.npz', images=images[:2] / 255)
  with open(tmp_path / 'fractions.npz', 'rb') as file:
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(file))
    code, out, _ = call(capsys, '--workdir', directory, good, '-', good)
  assert code == 0 and len(out.splitlines()) == 4


@pytest.mark.parametrize('form', predict.WRITERS)
def test_names_of_files_are_not_obeyed_by_a_terminal(run, tmp_path, capsys, form):
  directory, images, _ = run
  saved(tmp_path / 'a\x1b[2J.png', images[0, ..., 0])
  code, out, _ = call(capsys, '--workdir', directory, '--format', form, tmp_path)
  assert code == 0 and out and '\x1b' not in out
