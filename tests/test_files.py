"""Files that are whole or absent."""

import errno
import os
import pathlib

import pytest
from faults import fail_with, kill, names, start

from fmnist_jax.errors import WorkdirError
from fmnist_jax.storage.files import (
    atomic_writer,
    read_json,
    remove_leftovers,
    replace_folder,
    write_json,
)


def test_json_round_trip(tmp_path):
  value = {'a': [1, 2.5, None, True, 'é'], 'b': {}}
  write_json(tmp_path / 'x.json', value)
  assert read_json(tmp_path / 'x.json') == value
  assert names(tmp_path) == ['x.json']


@pytest.mark.parametrize('value', [float('nan'), [1.0, float('inf')]])
def test_json_refuses_what_is_not_json(tmp_path, value):
  write_json(tmp_path / 'x.json', 1)
  with pytest.raises(ValueError):
    write_json(tmp_path / 'x.json', value)
  assert read_json(tmp_path / 'x.json') == 1
  (tmp_path / 'x.json').write_text('{"a": NaN}')
  with pytest.raises(WorkdirError, match='NaN'):
    read_json(tmp_path / 'x.json')


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe', b'[' * 100_000])
def test_damaged_json_is_named(tmp_path, content):
  (tmp_path / 'x.json').write_bytes(content)
  with pytest.raises(WorkdirError, match=r'x\.json is damaged'):
    read_json(tmp_path / 'x.json')


def test_a_body_that_fails_changes_nothing(tmp_path):
  (tmp_path / 'x').write_bytes(b'old')
  with pytest.raises(ZeroDivisionError), atomic_writer(tmp_path / 'x') as file:
    file.write(b'new')
    file.flush()
    raise ZeroDivisionError
  assert (tmp_path / 'x').read_bytes() == b'old'
  assert names(tmp_path) == ['x']


@pytest.mark.parametrize('call', ['fsync', 'rename'])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_fails_changes_nothing(tmp_path, monkeypatch, call, number):
  write_json(tmp_path / 'x.json', 1)
  monkeypatch.setattr(os, call, fail_with(number))
  with pytest.raises(WorkdirError, match=os.strerror(number)):
    write_json(tmp_path / 'x.json', 2)
  monkeypatch.undo()
  assert read_json(tmp_path / 'x.json') == 1
  assert names(tmp_path) == ['x.json']


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path):
  (tmp_path / 'report').mkdir()
  (tmp_path / '.hidden').write_text('not ours')
  killed = [start('import time\n'
                  'from fmnist_jax.storage.files import atomic_writer\n'
                  f'with atomic_writer({str(path)!r}):\n'
                  '  print("ready", flush=True)\n'
                  '  time.sleep(60)\n') for path in (tmp_path / 'a', tmp_path / 'report' / 'b')]
  for process in killed:
    kill(process)
  assert len(names(tmp_path)) == 3 and len(names(tmp_path / 'report')) == 1
  with atomic_writer(tmp_path / 'c') as file:
    file.write(b'alive')
    remove_leftovers(tmp_path)
  assert names(tmp_path) == ['.hidden', 'c', 'report'] and names(tmp_path / 'report') == []
  assert (tmp_path / 'c').read_bytes() == b'alive'


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
  folder = tmp_path / 'report'
  replace_folder(folder, {'a': b'old', 'b': b'old'})
  write_bytes = pathlib.Path.write_bytes

  def disk_full(path, data):
    if path.name == 'b':
      raise OSError('disk full')
    return write_bytes(path, data)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_bytes', disk_full)
    with pytest.raises(WorkdirError, match='disk full'):
      replace_folder(folder, {'a': b'new', 'b': b'new'})
  assert [path.name for path in tmp_path.iterdir()] == ['report']
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == {'a': b'old', 'b': b'old'}

  (tmp_path / '.report.new').mkdir()  # as a killed process leaves it
  (tmp_path / '.report.new' / 'c').touch()
  replace_folder(folder, {'a': b'new'})
  assert [path.name for path in tmp_path.iterdir()] == ['report']
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == {'a': b'new'}


@pytest.mark.parametrize('killed', [False, True])
def test_between_two_renames_a_folder_is_not_lost(tmp_path, monkeypatch, killed):
  folder = tmp_path / 'report'
  replace_folder(folder, {'a': b'old'})
  if killed:
    folder.rename(tmp_path / '.report.old')
  rename = pathlib.Path.rename

  def refused(path, target):
    if path.name == '.report.new':
      raise OSError('no rename')
    return rename(path, target)

  monkeypatch.setattr(pathlib.Path, 'rename', refused)
  with pytest.raises(WorkdirError, match='no rename'):
    replace_folder(folder, {'a': b'new'})
  assert [path.name for path in tmp_path.iterdir()] == ['report']
  assert (folder / 'a').read_bytes() == b'old'
