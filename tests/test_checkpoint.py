import collections
import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmnist_jax.errors import CheckpointError
from fmnist_jax.storage import checkpoint as checkpoint_lib
from fmnist_jax.storage import manifest as manifest_lib
from fmnist_jax.storage.checkpoint import Checkpoints

ROOT = str(pathlib.Path(checkpoint_lib.__file__).parent.parent)
Moments = collections.namedtuple('Moments', 'mu nu empty')


def state(seed=0):
  """Every kind of array a run has, with bits that arithmetic would not preserve."""
  random = np.random.default_rng(seed)

  def bits(shape, dtype):
    return np.frombuffer(random.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize),
                         dtype).reshape(shape)
  return {
      'params': {'Dense_0': {'kernel': bits((7, 5), np.float32), 'bias': bits((5,), np.float32)}},
      'moments': [Moments(bits((7, 5), np.float32), bits((5,), jnp.bfloat16), ()), None],
      'step': np.int32(seed),
      'key': bits((2,), np.uint32),
      'flags': np.array([True, False]),
      'image': bits((2, 3, 1), np.uint8),
      'none': np.zeros((0, 4), np.float32),
      'special': np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32),
      'double': bits((3,), np.float64),
  }


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    x, y = np.asarray(x), np.asarray(y)
    assert x.dtype == y.dtype and x.shape == y.shape
    assert x.tobytes() == y.tobytes()


@pytest.fixture
def checkpoints(tmp_path):
  opened = Checkpoints(tmp_path / 'checkpoints')
  yield opened
  opened.close()


def files(directory):
  return sorted(p.relative_to(directory).as_posix() for p in directory.rglob('*') if p.is_file())


# What is saved comes back.

def test_round_trip_of_every_bit(checkpoints):
  assert checkpoints.steps() == [] and checkpoints.latest_good() is None
  progress = {'epoch': 3, 'best': 0.25, 'names': ['a', None], 'nested': {'x': True}}
  checkpoints.save(12, state(12), progress)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0))
  restored, restored_progress = checkpoints.restore(12, like)
  assert_same_bits(restored, state(12))
  assert restored_progress == progress
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(restored))
  assert checkpoints.steps() == [12] and checkpoints.latest_good() == 12


def test_states_of_different_seeds_differ():
  with pytest.raises(AssertionError):
    assert_same_bits(state(0), state(1))


def test_devices_do_not_matter(checkpoints):
  mesh = Mesh(np.array(jax.devices()), ('data',))
  value = np.arange(8, dtype=np.float32)
  for step, spec in enumerate([PartitionSpec(), PartitionSpec('data')]):
    array = jax.device_put(value, NamedSharding(mesh, spec))
    checkpoints.save(step, {'a': array}, {}, keep=[0])
    restored, _ = checkpoints.restore(step, {'a': jax.device_put(value, jax.devices()[1])})
    np.testing.assert_array_equal(restored['a'], value)


def test_a_state_may_be_changed_or_donated_while_it_is_saved(checkpoints, monkeypatch):
  write = checkpoint_lib._write_arrays
  monkeypatch.setattr(checkpoint_lib, '_write_arrays',
                      lambda *args: (time.sleep(0.2), write(*args)))
  original = np.arange(1000, dtype=np.float32)
  tree = {'host': original.copy(), 'device': jnp.asarray(original) + 0}
  checkpoints.save_async(1, tree, {})
  tree['host'] += 1
  donated = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)(tree['device'])
  donated.block_until_ready()
  checkpoints.wait()
  restored, _ = checkpoints.restore(1, {'host': original, 'device': original})
  np.testing.assert_array_equal(restored['host'], original)
  np.testing.assert_array_equal(restored['device'], original)


def test_orbax_alone_can_read_it(checkpoints):
  import orbax.checkpoint as ocp
  checkpoints.save(1, state(), {})
  arrays = ocp.PyTreeCheckpointHandler().restore(checkpoints.directory / '1' / 'state')
  np.testing.assert_array_equal(arrays['params/Dense_0/kernel'].view(np.uint32),
                                state()['params']['Dense_0']['kernel'].view(np.uint32))


def test_same_step_again_replaces(checkpoints):
  checkpoints.save(1, state(1), {'a': 1})
  checkpoints.save(1, state(2), {'a': 2})
  restored, progress = checkpoints.restore(1, state())
  assert_same_bits(restored, state(2))
  assert progress == {'a': 2}
  assert os.listdir(checkpoints.directory) == ['1']


def test_only_the_new_and_the_kept_stay(checkpoints):
  for step, keep in [(10, []), (20, [10]), (30, [10, 20]), (40, [20])]:
    checkpoints.save(step, state(step), {}, keep=keep)
  assert checkpoints.steps() == [20, 40]
  assert sorted(os.listdir(checkpoints.directory)) == ['20', '40']
  assert_same_bits(checkpoints.restore(20, state())[0], state(20))


def test_progress_must_be_json_and_names_unique(checkpoints):
  with pytest.raises(ValueError):
    checkpoints.save(1, state(), {'loss': float('nan')})
  with pytest.raises(ValueError, match='same path'):
    checkpoints.save(1, {'a/b': np.zeros(1), 'a': {'b': np.zeros(1)}}, {})
  assert checkpoints.steps() == []


# Damage is seen and never loaded.

def damage(path, how):
  content = path.read_bytes()
  if how == 'removed':
    path.unlink()
  elif how == 'emptied':
    path.write_bytes(b'')
  elif how == 'truncated':
    path.write_bytes(content[:-1])
  elif how == 'longer':
    path.write_bytes(content + b'\n')
  else:
    where = {'first': 0, 'middle': len(content) // 2, 'last': len(content) - 1}[how]
    path.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1:])


def test_every_file_damaged_in_turn_is_named_and_passed_over(checkpoints, caplog):
  for step in (1, 2):
    checkpoints.save(step, state(step), {'step': step}, keep=[1])
  newest = checkpoints.directory / '2'
  aside = checkpoints.directory.parent / 'intact'
  shutil.copytree(newest, aside)
  tried = 0
  for name in files(newest):
    for how in ('removed', 'emptied', 'truncated', 'longer', 'first', 'middle', 'last'):
      damage(newest / name, how)
      for attempt in (checkpoints.verify, lambda step: checkpoints.restore(step, state())):
        with pytest.raises(CheckpointError) as caught:
          attempt(2)
        assert name in str(caught.value) and str(newest) in str(caught.value)
        assert '\n' not in str(caught.value)
      caplog.clear()
      assert checkpoints.latest_good() == 1
      assert name in caplog.text and 'Falling back' in caplog.text
      shutil.rmtree(newest)
      shutil.copytree(aside, newest)
      tried += 1
  assert tried >= 7 * 5  # Manifest, progress, and at least three files of Orbax.
  assert checkpoints.latest_good() == 2


def test_every_bit_of_the_manifest_counts(checkpoints):
  checkpoints.save(1, {'a': np.zeros(3)}, {})
  path = checkpoints.directory / '1' / 'manifest.json'
  content = path.read_bytes()
  for i in range(len(content)):
    path.write_bytes(content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1:])
    with pytest.raises(CheckpointError):
      checkpoints.verify(1)


def test_what_does_not_belong_is_seen(checkpoints):
  checkpoints.save(1, state(), {})
  directory = checkpoints.directory / '1'
  (directory / 'state' / 'more').write_text('x')
  with pytest.raises(CheckpointError, match='state/more'):
    checkpoints.verify(1)
  (directory / 'state' / 'more').unlink()
  (directory / 'progress.json').rename(directory.parent / 'elsewhere')
  (directory / 'progress.json').symlink_to(directory.parent / 'elsewhere')
  with pytest.raises(CheckpointError, match=r'progress\.json is not a regular file'):
    checkpoints.verify(1)
  (directory / 'progress.json').unlink()
  os.mkfifo(directory / 'progress.json')
  with pytest.raises(CheckpointError, match=r'progress\.json is not a regular file'):
    checkpoints.verify(1)


def test_with_none_intact_it_says_so(checkpoints):
  for step in (1, 2):
    checkpoints.save(step, state(), {}, keep=[1])
    damage(checkpoints.directory / str(step) / 'progress.json', 'first')
  with pytest.raises(CheckpointError, match=r'None of the checkpoints .*steps 1, 2.* is intact'):
    checkpoints.latest_good()


def test_a_missing_step_names_those_present(checkpoints):
  checkpoints.save(4, state(), {})
  with pytest.raises(CheckpointError, match=r'no checkpoint of step 5 .*present: 4'):
    checkpoints.restore(5, state())


def test_a_checkpoint_under_another_name_is_refused(checkpoints):
  checkpoints.save(4, state(), {})
  (checkpoints.directory / '4').rename(checkpoints.directory / '5')
  with pytest.raises(CheckpointError, match='really that of step 4'):
    checkpoints.verify(5)


@pytest.mark.parametrize('change, sentence', [
    (lambda s: s['params'].pop('Dense_0'), 'it has params/Dense_0/bias, which this model has not'),
    (lambda s: s.update(new=np.zeros(3)), 'it has no new'),
    (lambda s: s.update(key=np.zeros(3, np.uint32)),
     r'its key is uint32\[2\] where this model has uint32\[3\]'),
    (lambda s: s.update(key=np.zeros(2, np.int32)),
     r'its key is uint32\[2\] where this model has int32\[2\]'),
    (lambda s: s.update(none=np.zeros((1, 4), np.float32)), 'it has no none'),
])
def test_another_model_is_told_apart(checkpoints, change, sentence):
  checkpoints.save(1, state(), {})
  other = state()
  change(other)
  with pytest.raises(CheckpointError, match='is of another model: ' + sentence):
    checkpoints.restore(1, other)


def rewrite_manifest(directory, **changes):
  contents = json.loads((directory / 'manifest.json').read_bytes())['contents'] | changes
  (directory / 'manifest.json').write_bytes(manifest_lib.seal(contents))


def test_a_newer_format_is_no_damage(checkpoints):
  for step in (1, 2):
    checkpoints.save(step, state(), {}, keep=[1])
  rewrite_manifest(checkpoints.directory / '2', format=manifest_lib.FORMAT + 1)
  for call in (checkpoints.latest_good, lambda: checkpoints.restore(2, state())):
    with pytest.raises(CheckpointError, match=r'newer fmnist_jax.*upgrade'):
      call()


@pytest.mark.parametrize('changes', [
    {'format': 0}, {'format': '1'}, {'format': None}, {'step': '1'},
    {'files': None}, {'files': ['progress.json']}, {'files': {'progress.json': 7}},
    {'files': {'progress.json': {'size': 1}}}, {'versions': 3}])
def test_a_sealed_manifest_of_nonsense_is_refused(checkpoints, changes):
  checkpoints.save(1, state(), {})
  rewrite_manifest(checkpoints.directory / '1', **changes)
  with pytest.raises(CheckpointError, match='damaged'):
    checkpoints.restore(1, state())


@pytest.mark.parametrize('text', ['{"contents": {"format": NaN}, "sha256": ""}', '[' * 100_000,
                                  '[]', '7', '{"contents": 7}'])
def test_a_manifest_that_is_none_is_refused(checkpoints, text):
  checkpoints.save(1, state(), {})
  path = checkpoints.directory / '1' / 'manifest.json'
  path.write_text(text)
  with pytest.raises(CheckpointError, match=r'manifest\.json is not as it was written'):
    checkpoints.verify(1)
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(CheckpointError, match=r'manifest\.json is not as it was written'):
    checkpoints.verify(1)


@pytest.mark.parametrize('text', ['', '[]', '[' * 100_000])
def test_progress_of_a_stranger_is_refused(checkpoints, text):
  checkpoints.save(1, state(), {})
  directory = checkpoints.directory / '1'
  (directory / 'progress.json').write_text(text)
  (directory / 'manifest.json').unlink()
  manifest_lib.write(directory, 1)
  for read in (checkpoints.progress, lambda step: checkpoints.restore(step, state())):
    with pytest.raises(CheckpointError, match='no progress of a run'):
      read(1)


def test_what_orbax_cannot_read_is_one_sentence(checkpoints):
  checkpoints.save(1, state(), {})
  directory = checkpoints.directory / '1'
  (directory / 'state' / '_METADATA').write_text('{}')
  (directory / 'manifest.json').unlink()
  manifest_lib.write(directory, 1)
  with pytest.raises(CheckpointError, match=r'intact but cannot be read.*orbax-checkpoint') as e:
    checkpoints.restore(1, state())
  assert '\n' not in str(e.value)


def test_loading_executes_nothing(checkpoints):
  checkpoints.save(1, state(), {})
  checkpoints.restore(1, state())  # Imports what it needs.
  seen = []
  watching = True

  def hook(event, _):
    if watching and event in ('pickle.find_class', 'os.system', 'subprocess.Popen', 'compile',
                              'exec', 'marshal.loads'):
      seen.append(event)
  sys.addaudithook(hook)
  checkpoints.restore(1, state())
  watching = False
  assert seen == []


# Killed or failing between any two steps of saving.

class Killed(BaseException):
  """What no handler of ours treats: the process is gone."""


STAGES = [(os, 'mkdir'), (os, 'rename'), (os, 'rmdir'), (pathlib.Path, 'write_bytes'),
          (checkpoint_lib, '_write_arrays'), (manifest_lib, 'write')]
EVERYTHING = [*STAGES, (os, 'fsync'), (os, 'unlink')]


class Saboteur:
  """Raises instead of the nth thing that saving does to the disk, or of all from the nth on."""

  def __init__(self, monkeypatch, calls, error, at, lasting=False):
    self.error, self.at, self.lasting, self.count = error, at, lasting, 0
    for owner, name in calls:
      monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

  def wrap(self, function):
    def wrapped(*args, **kwargs):
      self.count += 1
      if self.count == self.at or (self.lasting and self.count > self.at):
        raise self.error
      return function(*args, **kwargs)
    return wrapped


@pytest.fixture
def two_saved(tmp_path):
  """A directory with the checkpoints of steps 1 and 2, the state of which is known."""
  directory = tmp_path / 'template'
  checkpoints = Checkpoints(directory)
  for step in (1, 2):
    checkpoints.save(step, {'a': np.full(3, step)}, {'step': step}, keep=[1])
  checkpoints.close()
  return directory


@pytest.mark.parametrize('step', [2, 3])
def test_killed_at_any_point_something_loads_and_nothing_piles_up(two_saved, tmp_path, step):
  at, reached_the_end = 0, False
  while not reached_the_end:
    at += 1
    directory = tmp_path / 'work'
    shutil.copytree(two_saved, directory)
    checkpoints = Checkpoints(directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
      saboteur = Saboteur(monkeypatch, STAGES, Killed(), at)
      with contextlib.suppress(Killed):
        checkpoints.save(step, {'a': np.full(3, 30)}, {'step': 30}, keep=[])
    reached_the_end = saboteur.count < at
    checkpoints.close()
    # Without cleaning, as an evaluation would read it.
    reader = Checkpoints(directory)
    newest = reader.latest_good()
    assert newest in {2, step}
    for there in reader.steps():  # None half removed.
      reader.verify(there)
    restored, progress = reader.restore(newest, {'a': np.zeros(3, int)})
    assert progress['step'] in ({30} if newest == 3 else {2} if step == 3 else {2, 30})
    np.testing.assert_array_equal(restored['a'], np.full(3, progress['step']))
    if reached_the_end:
      assert progress['step'] == 30
    # The run goes on.
    again = Checkpoints(directory)
    again.save(4, {'a': np.full(3, 4)}, {'step': 4}, keep=[newest])
    assert sorted(os.listdir(directory)) == sorted([str(newest), '4'])
    np.testing.assert_array_equal(again.restore(newest, {'a': np.zeros(3, int)})[0]['a'],
                                  np.full(3, progress['step']))
    again.close()
    shutil.rmtree(directory)
  assert at > 10


@pytest.mark.parametrize('step, calls, lasting', [
    (2, STAGES, True), pytest.param(3, EVERYTHING, False, marks=pytest.mark.slow)])
def test_failing_at_any_point_keeps_what_is_there(two_saved, tmp_path, step, calls, lasting):
  at, reached_the_end, failures = 0, False, 0
  while not reached_the_end:
    at += 1
    directory = tmp_path / 'work'
    shutil.copytree(two_saved, directory)
    checkpoints = Checkpoints(directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
      error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      saboteur = Saboteur(monkeypatch, calls, error, at, lasting)
      try:
        checkpoints.save(step, {'a': np.full(3, 30)}, {'step': 30})
        saved = True
      except CheckpointError as error:
        saved = False
        failures += 1
        assert 'No space left on device' in str(error) and '\n' not in str(error)
        assert f'checkpoint of step {step} could not be written' in str(error)
        assert 'is intact' in str(error)
    reached_the_end = saboteur.count < at
    newest = checkpoints.latest_good()
    restored, progress = checkpoints.restore(newest, {'a': np.zeros(3, int)})
    # When the last fsync fails, the new one is there but may not survive a loss of power.
    assert progress['step'] in ({30} if saved else {2, 30})
    np.testing.assert_array_equal(restored['a'], np.full(3, progress['step']))
    # Once there is room, the same object saves.
    checkpoints.save(4, {'a': np.full(3, 4)}, {'step': 4})
    assert checkpoints.latest_good() == 4
    assert os.listdir(directory) == ['4']
    checkpoints.close()
    shutil.rmtree(directory)
  assert failures > 5


def test_a_failure_in_the_background_is_told_once(checkpoints, monkeypatch):
  checkpoints.save(1, state(), {})
  monkeypatch.setattr(checkpoint_lib, '_write_arrays', lambda *_: 1 / 0)
  checkpoints.save_async(2, state(), {})
  with pytest.raises(CheckpointError, match=r'step 2 could not be written.*division by zero'):
    checkpoints.save_async(3, state(), {})
  monkeypatch.undo()
  checkpoints.wait()
  assert checkpoints.latest_good() == 1
  checkpoints.save(3, state(), {})
  assert checkpoints.steps() == [3]


def test_a_save_is_due_so_many_seconds_after_the_last(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(checkpoint_lib.time, 'perf_counter', lambda: now[0])
  checkpoints = Checkpoints(tmp_path / 'c')
  due = lambda seconds: (now.append(now.pop() + seconds), checkpoints.due(5))[1]
  assert [due(1), due(4), due(2)] == [False, False, True]
  checkpoints.save(1, state(), {})
  assert [due(4), due(2)] == [False, True] and not checkpoints.due(0)
  checkpoints.close()


def test_an_unwritable_place_is_one_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  checkpoints = Checkpoints(tmp_path / 'file' / 'checkpoints')
  with pytest.raises(CheckpointError, match=r'Not a directory; there is none before it'):
    checkpoints.save(1, state(), {})
  checkpoints.close()


def start(code, *arguments):
  return subprocess.Popen([sys.executable, '-c', code, *map(str, arguments)], text=True,
                          stdout=subprocess.PIPE, env=os.environ | {
                              'PYTHONPATH': ROOT, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'})


SAVE_FOR_EVER = """
import sys
import numpy as np
from fmnist_jax.storage.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = checkpoints.latest_good() or 0
while True:
  step += 1
  checkpoints.save(step, {'a': np.full((50, 50), step)}, {'step': step}, keep=[step - 1])
  print(step, flush=True)
"""


@pytest.mark.slow
def test_sigkill_loses_nothing_that_was_saved(tmp_path):
  last = 0
  for kill in range(4):
    process = start(SAVE_FOR_EVER, tmp_path / 'c')
    for _ in range(3 + kill):
      last = int(process.stdout.readline())
    time.sleep(0.011 * kill)
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    last = int(said[-1]) if said else last
    checkpoints = Checkpoints(tmp_path / 'c')
    newest = checkpoints.latest_good()
    assert newest in (last, last + 1)
    restored, progress = checkpoints.restore(newest, {'a': np.zeros((50, 50), int)})
    assert progress == {'step': newest}
    np.testing.assert_array_equal(restored['a'], np.full((50, 50), newest))
  assert len(os.listdir(tmp_path / 'c')) <= 4


TWO_PROCESSES = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[3]))
from fmnist_jax import processes
from fmnist_jax.errors import CheckpointError
from fmnist_jax.storage import checkpoint
assert processes.largest_of_all(15 * jax.process_index()) == 15
late = processes.Late()
assert [late(value * (1 + jax.process_index())) for value in (3, 0, 5, 0)] == [0, 6, 0, 10]
tree = {'a': np.array([-0.0, np.nan, 1], np.float32), 'b': np.array(3, np.int8), 'c': np.ones(0)}
found = processes.arrays_of_primary(lambda: tree, tree)
assert all(found[name].tobytes() == tree[name].tobytes() for name in tree)
checkpoints = checkpoint.Checkpoints(sys.argv[1])
assert checkpoints.latest_good() is None
sharding = NamedSharding(Mesh(np.array(jax.devices()), ('data',)), PartitionSpec())
value = np.arange(6, dtype=np.float32)
state = {'a': jax.make_array_from_callback((6,), sharding, lambda index: value[index])}
checkpoints.save(1, state, {'step': 1})
assert checkpoints.latest_good() == 1 and checkpoints.intact() == [1]
# The clock of process 0 is known to the other one call late.
assert [checkpoints.due(every) for every in (1e-9, 1e-9, 1e9, 1e9)] == [False, True, True, False]
restored, progress = checkpoints.restore(1, state)
assert progress == {'step': 1} and restored['a'].tolist() == value.tolist()
split = jax.make_array_from_callback((6,), NamedSharding(sharding.mesh, PartitionSpec('data')),
                                     lambda index: value[index])
try:
  checkpoints.save(2, {'a': split}, {})
  print('saved a part')
except ValueError:
  print('refused', end=' ')
checkpoint._write_arrays = lambda *_: 1 / 0
try:
  checkpoints.save(3, state, {})
  print('not told')
except CheckpointError as error:
  print('told', end=' ')
assert checkpoints.steps() == [1]
checkpoints.close()
print('done')
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  processes = [start(TWO_PROCESSES, tmp_path / 'c', port, index) for index in range(2)]
  for process in processes:
    assert process.communicate(timeout=120)[0].endswith('refused told done\n')
    assert process.returncode == 0
