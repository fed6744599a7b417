"""Files of a run, read back as if they came from an enemy: never more than one sentence."""

import io
import json
import os
import pathlib
import pickle
import sys
import tracemalloc
import zipfile

import fuzzing
import hypothesis
import numpy as np
import pytest
import test_compare

from fmnist_jax import command as command_lib
from fmnist_jax import config as config_lib
from fmnist_jax import config_file
from fmnist_jax.data import npz
from fmnist_jax.errors import DataError, UserError, WorkdirError
from fmnist_jax.population import comparison, summary
from fmnist_jax.storage import files, readback, workdir

# Forms.

@pytest.mark.parametrize(('value', 'form', 'says'), [
    (1, float, None), (1.5, float, None), ('a', str, None), (None, (float, None), None),
    ([1, 2], [range(3)], None), ({'a': 1, 'b': 2}, {'a': float}, None),
    ({'x': 1.0, 'y': 2}, {str: float}, None), ([], [str], None),
    (True, float, 'the whole is no number'), (10**400, float, 'the whole is no number'),
    (float('inf'), float, 'the whole is no number'),
    (float('nan'), float, 'the whole is no number'),
    (3, range(3), 'the whole is no such number'), (True, range(3), 'the whole is no such number'),
    (1, str, 'the whole is no printable string'), (1, bool, 'the whole is no true or false'),
    ('a', (float, None), 'the whole is no number'),
    ({'a': [{'b': 1}, {}]}, {'a': [{'b': float}]}, 'a[1].b is missing'),
    ({'a': {'b': [1, 'x']}}, {'a': {'b': [float]}}, 'a.b[1] is no number'),
    ({}, [str], 'the whole is no list'), ([], {'a': str}, 'the whole is no object'),
    ({'a\nb': 1}, {str: str}, 'a\\nb is no printable string'),
])
def test_a_problem_is_named_by_its_place(value, form, says):
  assert readback.problem(value, form) == says


def records(count, validated=True):
  names = ['clean_train_loss', 'clean_train_accuracy']
  names += ['validation_loss', 'validation_accuracy'] * validated
  return [{'epoch': n, 'step': 10 * n, **dict.fromkeys(names, 0.5)} for n in range(1, count + 1)]


def test_the_history_counts_epochs_and_every_record_has_the_same_numbers():
  for validated in (True, False):
    good = records(4, validated)
    assert readback.history_problem(good) is None
    assert 'line 2: epoch 2 should be there, not 3' in readback.history_problem(
        [good[0], good[2]])
    assert 'line 3: clean_train_loss is missing' in readback.history_problem(
        [*good[:2], {'epoch': 3, 'step': 30}])
    assert 'line 4: note is no number' in readback.history_problem(
        [*good[:3], {**good[3], 'note': 'x'}])
  assert 'line 2: validation_loss is missing' in readback.history_problem(
      [records(1)[0], records(2, False)[1]])


# Arrays.

def packed(**arrays):
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return file.getvalue()


def read_arrays(tmp_path, content, *names):
  (tmp_path / 'x.npz').write_bytes(content)
  with readback.open_regular(tmp_path / 'x.npz') as file:
    return readback.arrays(file, names)


def test_arrays_that_are_wanted_are_read(tmp_path):
  found = read_arrays(tmp_path, packed(a=np.arange(6).reshape(2, 3), b=np.zeros(3)), 'a', 'c')
  assert list(found) == ['a'] and found['a'].tolist() == [[0, 1, 2], [3, 4, 5]]


def npy(shape, descr='|u1', data=b''):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      header, {'descr': descr, 'fortran_order': False, 'shape': shape})
  return header.getvalue() + data


def zipped(content, name='a.npy', pack=zipfile.ZIP_DEFLATED):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', pack) as archive:
    archive.writestr(name, content)
  return file.getvalue()


@pytest.mark.parametrize(('content', 'says'), [
    (zipped(npy((1 << 45,))), 'claims 35,184,372,088,832 bytes, which are not there'),
    (zipped(npy((1 << 62, 1 << 62))), 'which are not there'),
    (zipped(npy((1 << 30,), data=b'short')), 'which are not there'),
    (zipped(npy((-3,), data=bytes(9))), 'negative'),
    (zipped(npy((2,), data=bytes(9))), 'goes on after its array'),
    (zipped(npy((2,), '|O', data=bytes(16))), 'could execute code'),
    (zipped(npy((2,), '<U100000000', data=bytes(16))), 'which are not there'),
    (zipped(npy((2,), data=bytes(2)), pack=zipfile.ZIP_LZMA), 'packed in another way'),
    (zipped(b'\x93NUMPY\x09\x00' + bytes(50)), 'version'),
    (zipped(b'junk'), 'magic'),
    (b'', 'not a zip file'),
    (npy((2,), data=bytes(2)), 'not a zip file'),
    (pickle.dumps({}), 'not a zip file'),
])
def test_arrays_that_lie_or_could_execute_are_refused(tmp_path, content, says):
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=says) as caught:
      read_arrays(tmp_path, content, 'a')
    assert '\n' not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
  finally:
    tracemalloc.stop()


def test_a_bomb_costs_what_its_header_claims(tmp_path):
  bomb = zipped(npy((1000,), data=bytes(64 << 20)))  # 65 kB that unpack to 64 MiB.
  assert len(bomb) < 100_000
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match='goes on after its array'):
      read_arrays(tmp_path, bomb, 'a')
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('kind', ['pipe', 'directory', 'missing'])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
  for name in ('results.json', 'metrics.jsonl', 'predictions.npz', 'own.npz'):
    if kind == 'pipe':
      os.mkfifo(tmp_path / name)
    elif kind == 'directory':
      (tmp_path / name).mkdir()
  with pytest.raises(WorkdirError):
    files.read_json(tmp_path / 'results.json')
  with pytest.raises(WorkdirError):
    summary.read(tmp_path)
  with pytest.raises(DataError):
    npz.read(str(tmp_path / 'own.npz'))
  if kind != 'missing':
    with pytest.raises(WorkdirError):
      workdir.History(tmp_path / 'metrics.jsonl').read()


@pytest.mark.parametrize('path', ['a\0b', '\ud800', 'x' * 5000, 'x/' * 3000, '', '.', '/'])
def test_paths_that_cannot_be(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for read in (workdir.read_config, lambda path: summary.read(pathlib.Path(path)),
               lambda path: comparison.read([path]), lambda path: npz.read(path or 'x'),
               config_file.load):
    with pytest.raises(UserError):
      read(path)
  if path:
    with pytest.raises(WorkdirError, match=r'cannot be (used|stored)|holds files but no run'):
      workdir.Workdir(path if path != '.' else '/', config_lib.Config())


# Fuzzing.

@pytest.mark.parametrize('config', [config_lib.Config(), config_lib.Config(
    model=config_lib.MLP(), optim=config_lib.SGD(schedule=config_lib.Step()))])
def test_broken_configs(tmp_path, config):
  good = config_lib.to_json(config)

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    (tmp_path / 'config.json').write_bytes(fuzzing.broken(chance, good))
    try:
      found = workdir.read_config(tmp_path)
    except WorkdirError as error:
      fuzzing.assert_one_sentence(error)
      return
    assert config_lib.from_json(json.loads(json.dumps(config_lib.to_json(found)))) == found

  check()


OVERRIDES = [name for name, _, _ in config_lib.leaves(config_lib.Config(
    optim=config_lib.AdamW(schedule=config_lib.Cosine())))]
OVERRIDES += ['model', 'optim', 'optim.schedule', 'train', 'data', 'data.augment',
              'data.augment.0.probability', 'data.augment.7.x', 'data.augment.0',
              'data.__class__.name', '__class__.data', 'train.epochs.real', 'model.channels.0', '',
              '.', '..']


def test_overrides_nobody_expects(monkeypatch):
  parsed = config_file.load('smoke')
  monkeypatch.setattr(config_file, '_written', lambda _: parsed)

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    overrides = []
    for _ in range(chance.randint(1, 3)):
      name = chance.choice(OVERRIDES) if chance.random() < 0.8 else fuzzing.text(chance)
      equals = '=' if chance.random() < 0.95 else ''
      overrides.append(f'{name}{equals}{fuzzing.text(chance)}')
    try:
      found = config_file.load('smoke', overrides)
    except UserError as error:
      fuzzing.assert_one_sentence(error.__class__(command_lib.one_line(str(error))))
      return
    assert config_lib.from_json(json.loads(json.dumps(config_lib.to_json(found)))) == found

  check()


def test_a_history_cut_at_every_byte_has_its_whole_lines(tmp_path):
  good = records(4)
  for record in good:
    workdir.History(tmp_path / 'metrics.jsonl').append(record)
  content = (tmp_path / 'metrics.jsonl').read_bytes()
  for length in range(len(content) + 1):
    (tmp_path / 'metrics.jsonl').write_bytes(content[:length])
    whole = content[:length].count(b'\n')
    history = workdir.History(tmp_path / 'metrics.jsonl')
    assert history.read() == good[:whole]
    if length % 50 == 0 or length == len(content) - 1:
      history.append({'step': 100, 'epoch': 9})
      assert history.read() == [*good[:whole], {'step': 100, 'epoch': 9}]


def test_broken_histories(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for record in records(4):
    workdir.History(path).append(record)
  good = path.read_bytes()

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    if chance.random() < 0.5:
      content = fuzzing.mutated_bytes(chance, good)
    else:
      lines = good.splitlines(keepends=True)
      at = chance.randrange(4)
      lines[at] = fuzzing.mutated_json(chance, json.loads(lines[at])) + b'\n'
      if chance.random() < 0.3:
        chance.shuffle(lines)
      content = b''.join(lines)
    path.write_bytes(content)
    try:
      found = workdir.History(path).read()
    except WorkdirError as error:
      fuzzing.assert_one_sentence(error)
      return
    steps = [record['step'] for record in found]
    assert steps == sorted(set(steps))
    readback.history_problem(found)
    # Going on from the middle keeps what was before, and changes nothing else.
    kept = workdir.History(path).truncate(20)
    assert kept == [record for record in found if record['step'] <= 20]

  check()


@pytest.fixture(scope='module', name='run')
def _run(tmp_path_factory):
  """A finished run, as far as `summary` looks; its files' contents by name."""
  directory = tmp_path_factory.mktemp('finished') / 'run'
  labels = np.random.default_rng(0).integers(0, 10, 50).astype(np.int32)
  test_compare.write_run(directory, labels, labels > 2, seed=0)
  return directory, {path.name: path.read_bytes() for path in directory.iterdir()}


def use(directory):
  """All that reads a finished run's files, but for drawing."""
  system, = comparison.read([directory])
  table = comparison.cells([comparison.row(system)])
  found = comparison.difference(system, system)
  assert len(table) == 2 and found['words']


@pytest.mark.parametrize('name', ['results.json', 'metrics.jsonl', 'predictions.npz'])
def test_broken_runs(run, name):
  directory, files = run
  content = files[name]
  use(directory)

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    broken = (fuzzing.broken(chance, json.loads(content)) if name == 'results.json'
              else fuzzing.mutated_bytes(chance, content))
    (directory / name).write_bytes(broken)
    try:
      use(directory)
    except UserError as error:
      fuzzing.assert_one_sentence(error)

  try:
    check()
  finally:
    (directory / name).write_bytes(content)


def test_results_of_other_predictions_are_refused(run):
  directory, files = run
  with np.load(directory / 'predictions.npz') as file:
    probabilities, labels = file['probabilities'], file['labels']
  try:
    np.savez(directory / 'predictions.npz', probabilities=probabilities[:, ::-1].copy(),
             labels=labels)
    with pytest.raises(WorkdirError, match='computed from other predictions'):
      summary.read(directory)
    np.savez(directory / 'predictions.npz', probabilities=probabilities.astype(object),
             labels=labels)
    with pytest.raises(WorkdirError, match='could execute code'):
      summary.read(directory)
  finally:
    (directory / 'predictions.npz').write_bytes(files['predictions.npz'])


def test_broken_populations(run, tmp_path):
  directory, _ = run
  good = {'groups': [{'settings': {'optim.learning_rate': 0.1}, 'members': ['run']}]}
  (tmp_path / 'members').symlink_to(directory.parent)
  (tmp_path / 'population.json').write_text(json.dumps(good))
  assert comparison.read([tmp_path])[0].members

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    (tmp_path / 'population.json').write_bytes(fuzzing.broken(chance, good))
    try:
      comparison.read([tmp_path])
    except UserError as error:
      fuzzing.assert_one_sentence(error)

  check()


def test_broken_own_data(tmp_path):
  random = np.random.default_rng(0)
  arrays = {'images': random.integers(0, 256, (12, 3, 2), np.uint8), 'labels': np.arange(12) % 3,
            'class_names': np.array(['a', 'b', 'c'])}
  stored = io.BytesIO()
  np.savez(stored, **arrays)
  contents = [stored.getvalue(), packed(**arrays)]
  path = tmp_path / 'own.npz'

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    path.write_bytes(fuzzing.mutated_bytes(chance, chance.choice(contents)))
    try:
      found = npz.read(str(path))
    except DataError as error:
      fuzzing.assert_one_sentence(error)
      return
    images, labels = found.train.arrays()
    assert images.dtype == np.uint8 and len(images) == len(labels)
    assert set(labels) == set(range(len(found.class_names)))

  check()


KINDS = ('u1', 'i8', 'f2', 'f4', 'f8', 'g', 'c8', '?', 'O', 'U3', 'S2', 'M8[s]', 'm8', 'V4')


def test_images_nobody_expects():
  from fmnist_jax.trained_model import check_images

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    shape = chance.choice([(), (2,), (0, 4, 3), (2, 4, 3), (2, 4, 3, 1), (2, 4, 3, 3), (2, 3, 4),
                           (1, 2, 4, 3, 1), (0, 0, 0), (3, 0, 3)])
    value = chance.choice([0, 1, 0.5, 2, -1e-9, 1e300, -1e300, float('nan'), float('inf')])
    images = np.zeros(shape, chance.choice(KINDS))
    if images.dtype.kind in 'uifc' and images.size:
      with np.errstate(all='ignore'):
        images.flat[chance.randrange(images.size)] = np.array(value).astype(images.dtype)
    if chance.random() < 0.3:
      images = images.tolist()
    elif chance.random() < 0.05:
      images = chance.choice([None, 'x', {}, [[1], [1, 2]], [[[10**400]]], object(), iter([])])
    try:
      found = check_images(images, (4, 3, 1))
    except DataError as error:
      fuzzing.assert_one_sentence(error)
      return
    assert found.shape[1:] == (4, 3, 1) and found.dtype in (np.uint8, np.float32)
    assert not found.size or (found.dtype == np.uint8) or (0 <= found.min() <= found.max() <= 1)

  check()


# Arguments.

ARGUMENTS = ('--workdir', '--split', '--checkpoint', '--data_dir', '--config', '--seeds', '--vary',
             '--mode', '--at_once', '--output', '--import', '--coordinator', '--processes',
             '--process', '--format',
             '--config.train.epochs', '--', '-h5', '-', '--x',
             '--config.', '--config.x')


@pytest.mark.parametrize('program', ['main', 'evaluate', 'predict', 'population', 'compare'])
def test_arguments_nobody_expects(program, tmp_path, monkeypatch):
  import importlib
  place = f'{program}.__main__' if program == 'population' else program
  module = importlib.import_module(f'fmnist_jax.{place}')
  monkeypatch.chdir(tmp_path)
  settings = hypothesis.settings(fuzzing.SETTINGS, max_examples=min(
      fuzzing.SETTINGS.max_examples, 20_000))

  @settings
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    argv = []
    for _ in range(chance.randint(1, 4)):
      name = chance.choice(ARGUMENTS)
      # What an operating system can pass on: bytes other than 0.
      value = fuzzing.text(chance).replace('\0', '').replace('\ud800', '\udcff')
      argv += chance.choice([[name], [f'{name}={value}'], [name, value], [value]])
    try:
      if program == 'main':
        args, overrides, _ = module.parse(argv)
        command_lib.load_config(args, overrides)
        assert '--config.train.epochs' in ' '.join(argv) or not overrides
      elif program == 'population':
        # No config of that name: all arguments are read, and nothing is trained.
        monkeypatch.setattr(sys, 'argv', ['population', *argv, '--config=nothing'])
        module.main(None)
      else:
        module.main(None, argv)
        raise AssertionError('there is nothing to read')
    except UserError as error:
      fuzzing.assert_one_sentence(error.__class__(command_lib.one_line(str(error))), 2001)
    except SystemExit as left:
      assert left.code == 0, 'only --help leaves'

  check()
  assert not list(tmp_path.iterdir())
