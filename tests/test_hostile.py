"""What others, or an accident, put where a run expects its own."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import runs
import test_main

from fmnist_jax import config as config_lib
from fmnist_jax import data, evaluation, machine, processes, report, train
from fmnist_jax.data import sources
from fmnist_jax.errors import (
  BackendError,
  CheckpointError,
  ConfigError,
  DataError,
  UserError,
  WorkdirError,
)
from fmnist_jax.storage import files, manifest, readback
from fmnist_jax.storage.checkpoint import Checkpoints
from fmnist_jax.storage.workdir import History, Workdir


def content(folder):
  """Every file below a folder, with its bytes."""
  return {path.relative_to(folder): path.read_bytes()
          for path in sorted(folder.rglob('*')) if path.is_file() and path.name != '.lock'}


# Links and pipes.

@pytest.mark.parametrize('name', ['.lock', 'checkpoints', 'report', 'metrics.jsonl', 'members'])
def test_a_link_in_a_run_is_refused_and_its_target_untouched(tmp_path, name):
  Workdir(tmp_path / 'run', config_lib.Config()).close()
  target = tmp_path / 'target'
  (target / '7').mkdir(parents=True)
  (target / '7' / 'thesis.tex').write_text('years of work')
  before = content(target)
  (tmp_path / 'run' / name).unlink(missing_ok=True)
  (tmp_path / 'run' / name).symlink_to(target / '7' / 'thesis.tex' if name == '.lock' else target)
  with pytest.raises(WorkdirError, match='is a symbolic link, which no run makes'):
    Workdir(tmp_path / 'run', config_lib.Config())
  assert content(target) == before


@pytest.mark.parametrize('name', ['.lock', '.config.json.partial-00ff', 'results.json'])
def test_a_pipe_in_a_run_keeps_nobody_waiting(tmp_path, name):
  Workdir(tmp_path, config_lib.Config()).close()
  (tmp_path / name).unlink(missing_ok=True)
  os.mkfifo(tmp_path / name)
  code = ('from fmnist_jax.storage.workdir import Workdir; from fmnist_jax.config import Config; '
          'Workdir(".", Config()).results()')
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                        timeout=120,
                        env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1])})
  if 'partial' in name:
    assert done.returncode == 0, done.stderr
  else:
    assert 'is of another kind, which no run makes' in done.stderr


def test_a_folder_that_is_no_checkpoint_stays(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  (tmp_path / '3').mkdir()
  (tmp_path / '3' / 'thesis.tex').write_text('years of work')
  checkpoints.save(5, {'w': np.ones(2)}, {})
  checkpoints.save(6, {'w': np.ones(2)}, {})
  assert (tmp_path / '3' / 'thesis.tex').exists() and not (tmp_path / '5').exists()
  with pytest.raises(UserError, match='no checkpoint'):
    checkpoints.save(3, {'w': np.ones(2)}, {})
  assert (tmp_path / '3' / 'thesis.tex').read_text() == 'years of work'


def test_a_hard_linked_copy_goes_on_without_the_original(tmp_path):
  with Workdir(tmp_path / 'a', config_lib.Config()) as first:
    first.history.append({'step': 1})
  before = content(tmp_path / 'a')
  shutil.copytree(tmp_path / 'a', tmp_path / 'b', copy_function=os.link)
  with (Workdir(tmp_path / 'b', config_lib.Config()) as copy,
        Workdir(tmp_path / 'a', config_lib.Config())):
    copy.history.append({'step': 2})
    assert len(copy.history.read()) == 2
  assert content(tmp_path / 'a') == before


@pytest.mark.parametrize('how', ['removed', 'moved', 'replaced'])
def test_a_run_whose_directory_is_gone_writes_nothing_more(tmp_path, how):
  with Workdir(tmp_path / 'run', config_lib.Config()) as old:
    if how == 'moved':
      (tmp_path / 'run').rename(tmp_path / 'elsewhere')
    else:
      shutil.rmtree(tmp_path / 'run')
    if how == 'replaced':
      new = Workdir(tmp_path / 'run', config_lib.Config())
      new.history.append({'step': 7})
      before = content(tmp_path / 'run')
    checkpoints = Checkpoints(old.path / 'checkpoints', held=old.held)
    for write in (lambda: old.history.append({'step': 1}),
                  lambda: checkpoints.save(1, {'w': np.ones(1)}, {})):
      with pytest.raises(WorkdirError, match='was removed, moved or replaced meanwhile'):
        write()
    if how == 'replaced':
      assert content(tmp_path / 'run') == before
      new.close()


@pytest.mark.parametrize('name', ['back\\slash', os.fsdecode(b'bytes-\xff'), 'escape-\x1b[31m'])
def test_a_path_that_arrays_cannot_be_stored_under_is_refused_at_once(tmp_path, name):
  with pytest.raises(WorkdirError, match='with which arrays cannot be stored'):
    Workdir(tmp_path / name, config_lib.Config())
  assert not list(tmp_path.iterdir())


# Damage.

def test_every_bit_of_a_history_is_sealed_and_a_refusal_changes_none(tmp_path):
  history = History(tmp_path / 'm.jsonl')
  good = [{'epoch': n, 'step': n, 'clean_train_loss': 0.125 * n, 'clean_train_accuracy': 0.5}
          for n in (1, 2, 3)]
  for record in good:
    history.append(record)
  whole = (tmp_path / 'm.jsonl').read_bytes()
  assert History(tmp_path / 'm.jsonl').read() == good
  History(tmp_path / 'm.jsonl').rewind(3, 3)
  assert (tmp_path / 'm.jsonl').read_bytes() == whole
  random = np.random.default_rng(0)
  for place in random.integers(0, len(whole), 60):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << random.integers(0, 8)
    (tmp_path / 'm.jsonl').write_bytes(damaged)
    with pytest.raises(UserError):
      History(tmp_path / 'm.jsonl').rewind(3, 3)
    assert (tmp_path / 'm.jsonl').read_bytes() == bytes(damaged)
  (tmp_path / 'm.jsonl').write_bytes(whole)
  with pytest.raises(UserError):
    History(tmp_path / 'm.jsonl').rewind(3, 2)  # Two epochs are there up to step 2.
  assert (tmp_path / 'm.jsonl').read_bytes() == whole


def test_results_that_were_changed_are_not_believed(tmp_path):
  files.write_json(tmp_path / 'r.json', {'accuracy': 0.9}, sealed=True)
  assert files.read_json(tmp_path / 'r.json', {'accuracy': float}, sealed=True) == {'accuracy': 0.9}
  text = (tmp_path / 'r.json').read_text()
  for changed in (text.replace('0.9', '0.99'), '{"accuracy": 0.9}'):
    (tmp_path / 'r.json').write_text(changed)
    with pytest.raises(WorkdirError, match='it is not as it was written'):
      files.read_json(tmp_path / 'r.json', {'accuracy': float}, sealed=True)


@pytest.mark.slow
def test_a_damaged_best_checkpoint_does_not_keep_a_run_from_its_end(tmp_path, no_report, caplog):
  # Nothing improves: patience ends it, and the best epoch is never the last.
  config = config_lib.replace(runs.full_config(epochs=30), {'optim.learning_rate': 1e-12})
  results = train.train_and_evaluate(config, tmp_path / 'run')
  records = History(tmp_path / 'run' / 'metrics.jsonl').read()
  best = records[results['best_epoch'] - 1]['step']
  assert best < records[-1]['step']
  (tmp_path / 'run' / 'results.json').unlink()
  (tmp_path / 'run' / 'checkpoints' / str(best) / 'progress.json').write_text('{}')
  with caplog.at_level('WARNING', logger='absl'):
    again = train.train_and_evaluate(config, tmp_path / 'run')
  assert 'takes its place' in caplog.text
  assert again['lost_epoch'] == results['best_epoch'] != again['best_epoch']
  assert evaluation.evaluate_run(tmp_path / 'run')['accuracy'] == again['accuracy']


@pytest.mark.parametrize('change', [
    lambda record: record['members'].update(b={'epoch': 2, 'clean_train_loss': 'low'}),
    lambda record: record['members']['a'].pop('epoch'),
    lambda record: record.update(members=['a'])])
def test_a_wrong_key_in_the_history_of_a_group(tmp_path, change):
  history = History(tmp_path / 'm.jsonl')
  own = {'step': 5, 'clean_train_loss': 0.5, 'clean_train_accuracy': 0.5}
  records = [{'step': n, 'members': {name: {**own, 'epoch': n} for name in 'ab'}} for n in (1, 2)]
  history.replace(records)
  history.rewind(2, 2)
  change(records[1])
  history.replace(records)
  before = content(tmp_path)
  with pytest.raises(CheckpointError, match='damaged'):
    History(tmp_path / 'm.jsonl').rewind(2, 2)
  assert content(tmp_path) == before


# Names.

def test_names_that_a_terminal_would_obey_or_nobody_could_tell_apart(tmp_path):
  images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
  for names in (['a', 'b\x1b[2J'], ['a', 'a']):
    with pytest.raises(DataError, match=r'control characters|two classes of the name'):
      data.Dataset.of_arrays('d', images, labels, class_names=names)
  assert readback.problem({'name': 'x\x1b[2J'}, {'name': str}) == 'name is no printable string'


def test_one_image_is_too_few():
  with pytest.raises(DataError, match='one image'):
    data.Dataset.of_arrays('d', np.zeros((1, 4, 4), np.uint8), np.zeros(1, int))


# Small files that claim much.

def test_the_header_of_an_array_is_bounded(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('images.npy', b'\x93NUMPY\x02\x00' + (2**27).to_bytes(4, 'little')
                     + b' ' * 2**20)
  with (open(tmp_path / 'a.npz', 'rb') as file,
        pytest.raises(ValueError, match='longer than any')):
    readback.arrays(file, ['images'])


def test_predictions_are_never_packed(tmp_path):
  np.savez_compressed(tmp_path / 'p.npz', labels=np.zeros(10**6))
  with (open(tmp_path / 'p.npz', 'rb') as file, pytest.raises(ValueError, match='packed')):
    readback.arrays(file, ['labels'], packed=False)


@pytest.mark.parametrize('lie', ['pieces', 'list'])
def test_a_checkpoint_that_claims_much(tmp_path, lie):
  import tensorstore
  like = {'w': np.zeros(4, np.float32)}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, like, {})
  checkpoints.close()
  folder = tmp_path / '1'
  if lie == 'list':
    with open(folder / 'state' / '_METADATA', 'r+b') as file:
      file.truncate(2**29)  # Without a byte more on the disk.
  else:
    store = tensorstore.KvStore.open(
        {'driver': 'ocdbt', 'base': f'file://{folder}/state/'}).result()
    form = json.loads(store.read(b'w/.zarray').result().value)
    store.write(b'w/.zarray', json.dumps({**form, 'chunks': [10**9]})).result()
  (folder / manifest.NAME).unlink()
  manifest.write(folder, 1)
  with pytest.raises(CheckpointError, match=r'damaged: its .* larger than'):
    Checkpoints(tmp_path).restore(1, like)


def test_json_is_bounded(tmp_path):
  with open(tmp_path / 'a.json', 'wb') as file:
    file.truncate(10**12)  # Without a byte of it on the disk.
  with pytest.raises(WorkdirError, match='larger than'):
    files.read_json(tmp_path / 'a.json')


# The machine.

def test_files_of_the_system_in_the_cache_are_no_obstacle(tmp_path):
  (tmp_path / 'version').mkdir()
  for name in ('.nfs000000000', '.DS_Store', '.123-nothex', 'program'):
    (tmp_path / 'version' / name).write_text('x')
  machine._shrink(tmp_path, 0)
  assert sorted(path.name for path in (tmp_path / 'version').iterdir()) == [
      '.123-nothex', '.DS_Store', '.nfs000000000']


def test_a_cache_that_others_could_swap_is_not_used(tmp_path):
  (tmp_path / 'shared').mkdir()
  os.chmod(tmp_path / 'shared', 0o777)
  with pytest.raises(PermissionError, match='others can write in'):
    machine.make_private(tmp_path / 'shared' / 'own')
  os.chmod(tmp_path / 'shared', 0o1777)
  machine.make_private(tmp_path / 'shared' / 'own')


@pytest.mark.parametrize(('name', 'value'), [
    ('jax_enable_x64', True), ('jax_disable_jit', True), ('jax_debug_nans', True),
    ('jax_numpy_dtype_promotion', 'strict'), ('jax_transfer_guard', 'disallow'),
    ('jax_transfer_guard_host_to_device', 'disallow_explicit')])
def test_settings_that_change_results_are_refused(name, value):
  import jax
  before = jax.config.values[name]
  jax.config.update(name, value)
  try:
    with pytest.raises(BackendError, match=f'{name.upper()} is {value}'):
      machine.check()
  finally:
    jax.config.update(name, before)
  machine.check()


def test_memory_is_that_of_the_control_group(monkeypatch, tmp_path):
  real = type(tmp_path)  # `Path` itself cannot be made once its name is taken.
  group = tmp_path / 'sys/fs/cgroup/a'
  group.mkdir(parents=True)
  (group / 'memory.max').write_text('max\n')
  (group.parent / 'memory.max').write_text('123456789\n')
  (tmp_path / 'proc/self').mkdir(parents=True)
  (tmp_path / 'proc/self/cgroup').write_text('0::/a\n')
  monkeypatch.setattr(machine.pathlib, 'Path', lambda first, *rest: real(
      tmp_path / str(first).lstrip('/'), *rest))
  assert machine.memory() == 123456789


@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason='run under nohup')
def test_a_hang_up_saves_as_a_request_to_end_does(tmp_path):
  process = test_main.start([*test_main.TINY, '--config.train.epochs=2000',
                             '--config.train.early_stopping_patience=0'], tmp_path)
  for line in process.stdout:
    if line.startswith('epoch'):
      break
  process.send_signal(signal.SIGHUP)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGHUP and 'saving at the next safe point' in err


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no /dev/full')
def test_output_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  with open('/dev/full', 'w') as full:
    done = subprocess.run(
        [sys.executable, '-m', 'fmnist_jax.main', *test_main.TINY], cwd=tmp_path, stdout=full,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': root, 'XLA_FLAGS': ''})
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert done.stderr.startswith('error: The output could not be written: No space left')


def test_a_user_without_a_home(monkeypatch):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  assert machine.cache_root().is_absolute()
  with pytest.raises(DataError, match='no home directory; set TFDS_DATA_DIR'):
    sources.tfds_folder()


def test_a_workdir_without_a_name_of_its_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = config_lib.Config(data=config_lib.Data(offline_fallback=True))
  unavailable = data.DataUnavailable('not to be had')
  loaded = iter([unavailable, 'drawn'] * 2)
  def load(_):
    found = next(loaded)
    if found is unavailable:
      raise found
    return found
  monkeypatch.setattr(data, 'load', load)
  expected = tmp_path.with_name(f'{tmp_path.name}-synthetic')
  assert train.load(config, pathlib.Path('.'))[1] == expected
  with pytest.raises(ConfigError, match='--workdir is /'):
    train.load(config, pathlib.Path('/'))


# The network.

def test_a_port_that_is_taken_is_told_before_anything_starts():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(BackendError, match=f'localhost:{port} cannot be listened on'):
      processes.start(f'localhost:{port}', 2, 0)


def test_other_versions_are_told(monkeypatch):
  here = {name: machine.versions()[name] for name in ('fmnist_jax', 'jax', 'jaxlib')}
  monkeypatch.setattr(processes, '_exchange',
                      lambda text, sources: [json.dumps({**here, 'jax': '0.11.2'})])
  with pytest.raises(BackendError, match=f'jax 0.11.2 and {here["jax"]}'):
    processes._check_versions()


# Reports stay small.

@pytest.mark.slow
@pytest.mark.parametrize(('classes', 'shape'), [(300, (8, 8, 1)), (3, (3000, 1, 1)),
                                                (3, (1, 3000, 3))])
def test_a_report_is_bounded_whatever_the_data(tmp_path, classes, shape):
  from fmnist_jax import metrics
  labels = np.arange(2 * classes) % classes
  images = np.zeros((len(labels), *shape), np.uint8)
  probabilities = np.full((len(labels), classes), 1 / classes, np.float32)
  names = [str(i) for i in range(classes)]
  record = {'epoch': 1, 'step': 1, 'train_loss': 1.0, 'train_accuracy': 0.5,
            'clean_train_loss': 1.0, 'clean_train_accuracy': 0.5}
  results = {'dataset': 'd', 'synthetic': False, 'split': 'test', 'parameters': 1, 'seed': 0,
             **metrics.summarize(probabilities, labels, names), 'best_epoch': 1, 'epochs': 1,
             'best_validation_accuracy': None, 'data_sha256': {}, 'versions': {}, 'device': 'x',
             'seconds': {'data': 0.0, 'compile': 0.0, 'train': 0.0, 'evaluate': 0.0}}
  report.write(tmp_path, history=[record], results=results, probabilities=probabilities,
               labels=labels, images=images, train_images=images[:1000], train_labels=labels,
               class_names=names, config={'model': {'type': 'MLP'}}, network='There is none.')
  assert (tmp_path / 'report' / 'report.html').stat().st_size < 4e6
  assert sum(path.stat().st_size for path in (tmp_path / 'report').iterdir()) < 10e6
