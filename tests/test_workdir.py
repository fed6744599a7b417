import errno
import fcntl
import json
import os
import signal

import pytest
from faults import fail_with, kill, names, start

from fmnist_jax import config as config_lib
from fmnist_jax.errors import WorkdirError
from fmnist_jax.storage import workdir as workdir_lib
from fmnist_jax.storage.workdir import History, Workdir

# The history.

def records(count):
  return [{'epoch': i, 'step': 10 * i, 'loss': 1 / (i + 1)} for i in range(count)]


def test_history_round_trip_and_truncation(tmp_path):
  history = History(tmp_path / 'm.jsonl')
  assert history.read() == [] == history.truncate(5)
  for record in records(5):
    history.append(record)
  assert history.read() == records(5) == History(tmp_path / 'm.jsonl').read()
  assert history.truncate(29) == records(3) == history.read()
  history.append(records(4)[3])
  assert history.read() == records(4)
  assert history.truncate(-1) == [] == history.read()


@pytest.mark.parametrize('lost', [1, 2, 20])
def test_a_line_cut_short_is_dropped_and_overwritten(tmp_path, lost):
  path = tmp_path / 'm.jsonl'
  history = History(path)
  for record in records(3):
    history.append(record)
  path.write_bytes(path.read_bytes()[:-lost])
  assert History(path).read() == records(2)
  again = History(path)
  again.append(records(3)[2])
  assert again.read() == records(3)
  assert len(path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize('line', [b'{"step": 1,', b'\x00\xff', b'', b'[1]', b'{"step": "1"}', b'{}',
                                  b'{"step": 1, "loss": NaN}', b'{"step": true}'])
def test_a_damaged_line_is_named(tmp_path, line):
  path = tmp_path / 'm.jsonl'
  sealed: list[bytes] = []
  for body in (b'{"step": 0', line.removesuffix(b'}'), b'{"step": 2'):
    sealed.append(body + workdir_lib._SEAL % workdir_lib._seal(sealed, body))
  path.write_bytes(b''.join(sealed))
  before = path.read_bytes()
  for read in (lambda h: h.read(), lambda h: h.truncate(0)):
    with pytest.raises(WorkdirError, match=r'Line 2 of .*m\.jsonl is damaged'):
      read(History(path))
  assert path.read_bytes() == before


def test_history_refuses_nan(tmp_path):
  with pytest.raises(ValueError):
    History(tmp_path / 'm.jsonl').append({'step': 1, 'loss': float('nan')})
  assert names(tmp_path) == []


def test_a_failed_append_leaves_the_history_as_it_was(tmp_path, monkeypatch):
  history = History(tmp_path / 'm.jsonl')
  history.append(records(1)[0])
  monkeypatch.setattr(os, 'fsync', fail_with(errno.ENOSPC))
  with pytest.raises(WorkdirError, match='No space left'):
    history.append(records(2)[1])
  monkeypatch.undo()
  assert history.read() == records(1)
  assert (tmp_path / 'm.jsonl').read_bytes().count(b'\n') == 1
  history.append(records(2)[1])
  assert history.read() == records(2)


# The directory.

def test_new_directory_is_made_and_found_again(tmp_path):
  path = tmp_path / 'runs' / 'a'
  config = config_lib.Config()
  with Workdir(path, config) as workdir:
    workdir.history.append({'step': 1})
  assert config_lib.from_json(json.loads((path / 'config.json').read_text())) == config
  assert workdir_lib.read_config(path) == config
  with Workdir(path, config) as workdir:
    assert workdir.history.read() == [{'step': 1}]


def test_another_config_is_refused_but_for_where_data_lies(tmp_path):
  config = config_lib.Config()
  Workdir(tmp_path, config).close()
  config.data.data_dir = '/elsewhere'
  Workdir(tmp_path, config).close()
  config.train.epochs = 7
  config.model = config_lib.MLP()
  with pytest.raises(WorkdirError, match=r'train\.epochs: 20 -> 7.*another --workdir') as caught:
    Workdir(tmp_path, config)
  assert 'model: "CNN" -> "MLP"' in str(caught.value)
  assert 'absent' not in str(caught.value)
  assert '\n' not in str(caught.value)


def test_foreign_directory_is_refused_and_untouched(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(WorkdirError, match=r"thesis\.tex"):
    Workdir(tmp_path, config_lib.Config())
  assert names(tmp_path) == ['thesis.tex']


def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path):
  (tmp_path / '.lock').write_text('process 1 on nowhere')
  (tmp_path / '.config.json.partial-0123').write_text('{"da')
  (tmp_path / 'lost+found').mkdir()
  Workdir(tmp_path, config_lib.Config()).close()
  assert names(tmp_path) == ['.lock', 'config.json', 'lost+found']


@pytest.mark.parametrize('content', ['', '{"data": {', '{}', '[]', '{"name": "their app"}', '7'])
def test_damaged_or_foreign_config_is_refused(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(WorkdirError, match=r'config\.json'):
    Workdir(tmp_path, config_lib.Config())
  assert (tmp_path / 'config.json').read_text() == content


def test_a_file_in_place_of_the_directory_or_a_parent(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(WorkdirError, match='file is not a directory; choose'):
      Workdir(path, config_lib.Config())


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS])
def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch, number):
  original = os.open
  monkeypatch.setattr(os, 'open', lambda path, *a, **k: (
      fail_with(number)() if str(path).endswith('.lock') else original(path, *a, **k)))
  with pytest.raises(WorkdirError, match=f'{os.strerror(number)}; choose another'):
    Workdir(tmp_path, config_lib.Config())


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  monkeypatch.setattr(fcntl, 'flock', fail_with(errno.ENOLCK))
  with pytest.raises(WorkdirError, match='cannot lock files'):
    Workdir(tmp_path, config_lib.Config())


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
  first = start('import time\n'
                'from fmnist_jax.storage.workdir import Workdir\n'
                'from fmnist_jax.config import Config\n'
                f'workdir = Workdir({str(tmp_path)!r}, Config())\n'
                'print("ready", flush=True)\n'
                'time.sleep(60)\n')
  with pytest.raises(WorkdirError, match=f'in use by process {first.pid} on '):
    Workdir(tmp_path, config_lib.Config())
  kill(first)
  Workdir(tmp_path, config_lib.Config()).close()


def test_the_same_process_cannot_open_it_twice(tmp_path):
  first = Workdir(tmp_path, config_lib.Config())
  with pytest.raises(WorkdirError, match=f'process {os.getpid()} '):
    Workdir(tmp_path, config_lib.Config())
  first.close()
  Workdir(tmp_path, config_lib.Config()).close()


def test_a_refused_config_does_not_keep_the_lock(tmp_path):
  Workdir(tmp_path, config_lib.Config()).close()
  other = config_lib.Config()
  other.train.epochs = 3
  with pytest.raises(WorkdirError):
    Workdir(tmp_path, other)
  Workdir(tmp_path, config_lib.Config()).close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
  parent = start('import os, time\n'
                 'from fmnist_jax.storage.workdir import Workdir\n'
                 'from fmnist_jax.config import Config\n'
                 f'workdir = Workdir({str(tmp_path)!r}, Config())\n'
                 'pid = os.fork()\n'
                 'if not pid:\n'
                 '  time.sleep(60)\n'
                 '  os._exit(0)\n'
                 'time.sleep(0.2)\n'
                 'print("ready", flush=True)\n'
                 'print(pid, flush=True)\n'
                 'time.sleep(60)\n')
  child = int(parent.stdout.readline())
  kill(parent)
  try:
    Workdir(tmp_path, config_lib.Config()).close()
  finally:
    os.kill(child, signal.SIGKILL)
