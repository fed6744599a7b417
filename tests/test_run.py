"""What a run writes, against scikit-learn; and loading it again."""

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import threading
import types

import numpy as np
import pytest
import runs
import sklearn.metrics

import fmnist_jax
from fmnist_jax import config as config_lib
from fmnist_jax import evaluation
from fmnist_jax import trainer as session
from fmnist_jax.errors import CheckpointError, DataError, DivergenceError, UserError, WorkdirError
from fmnist_jax.population import summary
from fmnist_jax.storage import files, manifest
from fmnist_jax.storage.workdir import History
from fmnist_jax.train import train_and_evaluate

# In float32 programs for other numbers of images or devices agree to 1e-6; in bfloat16 only to
# 0.002, because what is added up in another order can be rounded to the neighbour.
CONFIG = runs.full_config(devices=0, precision='float32')


@pytest.fixture(scope='module', name='finished')
def _finished(tmp_path_factory):
  directory = tmp_path_factory.mktemp('run') / 'finished'
  found = train_and_evaluate(CONFIG, directory)
  return directory, found


def test_results_agree_with_scikit_learn(finished):
  directory, found = finished
  assert found == files.read_json(directory / 'results.json', sealed=True)
  with np.load(directory / 'predictions.npz') as file:
    probabilities, labels = file['probabilities'], file['labels']
  assert probabilities.shape == (90, 10) and probabilities.dtype == np.float32
  predicted = probabilities.argmax(1)
  assert found['examples'] == 90 == sum(map(sum, found['confusion_matrix']))
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)
  close(found['accuracy'], sklearn.metrics.accuracy_score(labels, predicted))
  wide = probabilities.astype(np.float64)
  close(found['loss'], sklearn.metrics.log_loss(labels, wide / wide.sum(1, keepdims=True),
                                                labels=range(10)))
  np.testing.assert_array_equal(
      found['confusion_matrix'],
      sklearn.metrics.confusion_matrix(labels, predicted, labels=range(10)))
  scores = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=range(10),
                                                           zero_division=0)
  for name, values in zip(('precision', 'recall', 'f1', 'support'), scores):
    close([row[name] for row in found['per_class']], values)
  close(found['macro_f1'], scores[2].mean())


def test_compiling_is_not_booked_as_training(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(session.time, 'perf_counter', lambda: now[0])
  programs = types.SimpleNamespace(compile_seconds=7.0, paused_seconds=8.0)
  watch, seconds = session.Stopwatch(programs), {'data': 1.0, 'compile': 2.0, 'train': 3.0}

  def pass_time(wall, compiling, waiting=0):
    now[0] += wall
    programs.compile_seconds += compiling
    programs.paused_seconds += compiling + waiting

  pass_time(50, 4)
  watch.start(seconds)
  assert seconds == {'data': 1.0, 'compile': 6.0, 'train': 3.0}
  pass_time(10, 3)
  watch.book(seconds)
  watch.book(seconds)
  assert seconds == {'data': 1.0, 'compile': 9.0, 'train': 10.0}
  pass_time(10, 0, waiting=6)  # Another member compiled what this one needs too, and books it.
  watch.book(seconds)
  assert seconds == {'data': 1.0, 'compile': 9.0, 'train': 14.0}


def test_results_and_history_have_the_promised_fields(finished):
  directory, found = finished
  assert set(found) == {
      'dataset', 'synthetic', 'split', 'examples', 'accuracy', 'balanced_accuracy', 'loss',
      'macro_f1',
      'expected_calibration_error', 'confusion_matrix', 'per_class', 'parameters', 'best_epoch',
      'best_validation_accuracy', 'epochs', 'seed', 'seconds', 'data_sha256', 'versions', 'device',
      'precision', 'operations'}
  assert found['synthetic'] is True and found['split'] == 'test'
  assert set(found['seconds']) == {'data', 'compile', 'train', 'evaluate'}
  assert all(value > 0 for value in found['seconds'].values())
  records = History(directory / 'metrics.jsonl').read()
  assert [record['epoch'] for record in records] == list(range(1, found['epochs'] + 1))
  assert [record['step'] for record in records] == [20 * n for n in range(1, found['epochs'] + 1)]
  for record in records:
    assert set(record) == {
        'epoch', 'step', 'seconds', 'images_per_second', 'learning_rate', 'train_loss',
        'train_accuracy', 'clean_train_loss', 'clean_train_accuracy', 'validation_loss',
        'validation_accuracy'}
  best = max(records, key=lambda record: (record['validation_accuracy'], -record['epoch']))
  assert best['epoch'] == found['best_epoch']
  assert best['validation_accuracy'] == found['best_validation_accuracy']


def test_the_report_is_there(finished):
  directory, _ = finished
  pictures = {path.stem for path in (directory / 'report').glob('*.png')}
  assert pictures >= {'curves', 'confusion_matrix', 'samples', 'mistakes', 'class_distribution',
                      'per_class'}
  page = (directory / 'report' / 'report.html').read_text()
  assert 'synthetic' in page.lower() and 'Ankle boot' in page


def test_evaluating_the_checkpoint_gives_the_results_of_the_run(finished):
  directory, found = finished
  again = fmnist_jax.evaluate_run(directory, 'test', 'best')
  assert runs.without_times(again) == runs.without_times(found)
  assert files.read_json(directory / 'results-test-best.json', sealed=True) == again
  validation = fmnist_jax.evaluate_run(directory, 'validation', 'best')
  assert validation['accuracy'] == pytest.approx(found['best_validation_accuracy'], abs=1e-9)
  assert validation['examples'] == 100
  latest = fmnist_jax.evaluate_run(directory, 'test', 'latest')
  assert (directory / 'results-test-latest.json').exists() and latest['examples'] == 90


@pytest.mark.parametrize('devices', [1, 2])
def test_the_number_of_devices_does_not_matter_to_evaluation(finished, devices, monkeypatch):
  import jax
  directory, found = finished
  few = jax.devices()[:devices]
  monkeypatch.setattr(jax, 'devices', lambda: few)
  again = fmnist_jax.evaluate_run(directory)
  assert again['confusion_matrix'] == found['confusion_matrix']
  assert again['loss'] == pytest.approx(found['loss'], abs=1e-6)
  assert again['device'].startswith(f'{devices} x cpu')


def test_predict_takes_bytes_and_fractions_in_either_shape(finished):
  directory, _ = finished
  run = fmnist_jax.load_run(directory)
  dataset = fmnist_jax.data.load(run.config.data)
  images, labels = dataset.test.arrays()
  with np.load(directory / 'predictions.npz') as file:
    expected = file['probabilities']
  np.testing.assert_allclose(run.predict(images), expected, atol=1e-6)
  np.testing.assert_allclose(run.predict(images[..., 0]), expected, atol=1e-6)
  np.testing.assert_allclose(run.predict(images[..., 0] / 255.0), expected, atol=1e-6)
  np.testing.assert_allclose(run.predict(images[:3]), expected[:3], atol=1e-6)
  assert run.predict(images[:0]).shape == (0, 10)
  assert run.class_names[9] == 'Ankle boot' and run.results['accuracy'] >= 0
  assert len(run.history) == run.results['epochs'] and (labels >= 0).all()


@pytest.mark.parametrize(('images', 'says'), [
    (np.zeros((28, 28), np.uint8), r'shape \[28, 28\]; this model takes \[N, 28, 28\] or'),
    (np.zeros((2, 27, 28), np.uint8), r'this model takes'),
    (np.zeros((2, 28, 28, 3), np.uint8), r'this model takes'),
    (np.zeros((2, 28, 28), np.int64), r'are int64; give uint8'),
    (np.full((2, 28, 28), 'a'), r'give uint8'),
    (np.full((2, 28, 28), np.nan), r'not finite or outside'),
    (np.full((2, 28, 28), 200.0), r'scale floating point images to \[0, 1\]'),
    ([[1, 2], [3]], r'not an array'),
])
def test_predict_refuses_what_it_would_get_wrong(finished, images, says):
  run = fmnist_jax.load_run(finished[0])
  with pytest.raises(DataError, match=says):
    run.predict(images)


def test_what_cannot_be_loaded_says_why(finished, tmp_path):
  with pytest.raises(WorkdirError, match=r'is not the directory of a run'):
    fmnist_jax.load_run(tmp_path)
  with pytest.raises(CheckpointError, match=r'There is no checkpoint of step 7'):
    fmnist_jax.load_run(finished[0], '7')
  with pytest.raises(CheckpointError, match=r'must be best, latest or a step'):
    fmnist_jax.load_run(finished[0], 'newest')


def test_without_validation_the_last_epoch_is_kept(tmp_path, no_report):
  config = config_lib.replace(runs.full_config(epochs=2, early_stopping_patience=0),
                              {'data.validation_examples': 0})
  found = train_and_evaluate(config, tmp_path / 'run')
  assert found['best_epoch'] == 2 and found['best_validation_accuracy'] is None
  assert not any('validation' in name for record in runs.history(tmp_path / 'run')
                 for name in record)


def test_the_validation_split_can_be_the_one_measured(tmp_path, no_report):
  config = config_lib.replace(runs.full_config(epochs=1), {'evaluate.split': 'validation'})
  found = train_and_evaluate(config, tmp_path / 'run')
  assert found['split'] == 'validation' and found['examples'] == 100
  assert found['accuracy'] == pytest.approx(found['best_validation_accuracy'], abs=1e-9)


# Runs of strangers.

def sealed(checkpoint):
  """Makes a changed checkpoint verify again: whoever changes one can do so."""
  (checkpoint / 'manifest.json').unlink()
  manifest.write(checkpoint, int(checkpoint.name))


def newest(directory):
  return max((directory / 'checkpoints').glob('[0-9]*'), key=lambda path: int(path.name))


@pytest.mark.parametrize(('change', 'says'), [
    ({'data': None}, 'data is no object'), ({'seconds': {}}, 'seconds.data is missing'),
    ({'best_step': '20'}, 'best_step is no such number'), ({'epoch': -1}, 'epoch is no such'),
    ({'epoch': 10**400}, 'epoch is no such number'), ({'finished': 1}, 'finished is no true or'),
])
def test_progress_of_another_form_is_refused(finished, tmp_path, change, says):
  directory = tmp_path / 'run'
  shutil.copytree(finished[0], directory)
  for checkpoint in (directory / 'checkpoints').glob('[0-9]*'):
    path = checkpoint / 'progress.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    sealed(checkpoint)
  (directory / 'results.json').unlink()
  for use in (fmnist_jax.load_run,
              lambda directory: train_and_evaluate(CONFIG, directory)):
    with pytest.raises(CheckpointError, match=says):
      use(directory)


@pytest.mark.parametrize(('change', 'says'), [
    ({'image_shape': [28, 28]}, 'there must be three axes'),
    ({'image_shape': [60_000, 60_000, 60_000]}, 'another model|too many|larger than any'),
    ({'image_shape': [1, 1, 1]}, 'leaves no pixel'),
    ({'class_names': ['one']}, 'two classes'),
    ({'class_names': ['a'] * 11}, 'another model'),
    ({'train_examples': 2**31 - 1}, 'another model|may be at most|takes|epochs'),
])
def test_data_that_the_model_does_not_fit_is_refused(finished, tmp_path, change, says):
  directory = tmp_path / 'run'
  shutil.copytree(finished[0], directory)
  for checkpoint in (directory / 'checkpoints').glob('[0-9]*'):
    path = checkpoint / 'progress.json'
    progress = json.loads(path.read_text())
    progress['data'] |= change
    path.write_text(json.dumps(progress))
    sealed(checkpoint)
  if 'train_examples' in change:
    saved = json.loads((directory / 'config.json').read_text())
    saved['train']['epochs'] = 10**6
    (directory / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(UserError, match=says):
    fmnist_jax.load_run(directory)


class Malice:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


def test_loading_a_run_from_a_stranger_executes_no_code(finished, tmp_path):
  trap = tmp_path / 'executed'
  poison = pickle.dumps(Malice(trap))
  array = np.empty(1, object)
  array[0] = Malice(trap)
  file = io.BytesIO()
  np.savez(file, probabilities=array, labels=array)
  with contextlib.suppress(TypeError):
    pickle.loads(poison)
  assert trap.is_dir(), 'the trap works'
  trap.rmdir()
  whole = finished[0]
  names = [path.relative_to(whole).as_posix() for path in sorted(whole.rglob('*'))
           if path.is_file() and 'report' not in path.parts
           and not path.name.startswith(('.lock', 'results-'))]
  assert {'config.json', 'metrics.jsonl', 'results.json', 'predictions.npz'} < set(names)
  latest = newest(whole)
  names = [name for name in names if 'checkpoints' not in name or f'/{latest.name}/' in name]
  assert len(names) > 8
  refused = set()
  for name in names:
    for content in (poison, file.getvalue()):
      directory = tmp_path / 'run'
      shutil.copytree(whole, directory)
      (directory / name).write_bytes(content)
      if 'checkpoints' in name and not name.endswith('manifest.json'):
        sealed(newest(directory))
      uses = (lambda at: fmnist_jax.load_run(at, 'latest'),
              lambda at: fmnist_jax.load_run(at).results, summary.read)
      for use in uses:
        with contextlib.suppress(UserError):
          use(directory)
          continue
        refused.add(name)
      assert not trap.exists(), name
      shutil.rmtree(directory)
  # A checkpoint with another manifest is passed over for the one before it, and of what a process
  # wrote under ocdbt.process_*, only some files hold what the whole is read from.
  behind = {name for name in names if '/ocdbt.process_' in name}
  assert refused | behind | {f'checkpoints/{latest.name}/manifest.json'} == set(names)
  assert refused & behind


def test_predictions_that_are_no_probabilities_are_told(finished):
  run = fmnist_jax.load_run(finished[0])
  with pytest.raises(DivergenceError, match=r'validation images probabilities that are not finite'):
    evaluation.results(described=run.progress['data'], split='validation',
                     probabilities=np.full((3, 10), np.nan, np.float32), labels=np.arange(3),
                     parameters=1, trained=1, progress=run.progress, config=CONFIG,
                     seconds={}, mesh=run.programs.mesh)


def test_results_of_another_form_are_refused(finished, tmp_path):
  directory = tmp_path / 'run'
  shutil.copytree(finished[0], directory)
  (directory / 'results.json').write_text('{"accuracy": 1}')
  for use in (lambda at: fmnist_jax.load_run(at).results,
              lambda at: train_and_evaluate(CONFIG, at)):
    with pytest.raises(WorkdirError, match=r'results.json is damaged.*dataset is missing'):
      use(directory)


def test_a_run_on_a_disk_that_cannot_be_written_can_be_loaded_and_not_gone_on_with(finished,
                                                                                   tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = lambda *arguments: subprocess.run(['mount', *arguments, disk], capture_output=True)
  if shutil.which('mount') is None or mount('-t', 'tmpfs', '-o', 'size=64m', 'tmpfs').returncode:
    pytest.skip('only root may mount a disk')
  try:
    shutil.copytree(finished[0], disk / 'run')
    assert not mount('-o', 'remount,ro').returncode
    run = fmnist_jax.load_run(disk / 'run')
    assert run.predict(np.zeros((2, 28, 28), np.uint8)).shape == (2, 10)
    sentence = r'Read-only file system; choose another --workdir or give permission\.$'
    for name in ('run', 'new'):
      with pytest.raises(WorkdirError, match=sentence):
        train_and_evaluate(CONFIG, disk / name)
    with pytest.raises(WorkdirError, match='could not be written: Read-only file system'):
      fmnist_jax.evaluate_run(disk / 'run')
  finally:
    subprocess.run(['umount', disk], check=True)


def test_a_model_is_loaded_while_checkpoints_come_and_go(finished, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(finished[0], run)
  folder, stop = run / 'checkpoints', threading.Event()

  def save():
    while not stop.wait(0.1):
      steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
      shutil.copytree(folder / str(steps[-1]), folder / '.new')
      (folder / '.new' / manifest.NAME).unlink()
      manifest.write(folder / '.new', steps[-1] + 1)
      (folder / '.new').rename(folder / str(steps[-1] + 1))
      (folder / str(steps[-1])).rename(folder / '.trash')
      shutil.rmtree(folder / '.trash')

  trainer = threading.Thread(target=save)
  trainer.start()
  try:
    found = [fmnist_jax.load_run(run, 'latest').step for _ in range(5)]
  finally:
    stop.set()
    trainer.join()
  assert found == sorted(found)
