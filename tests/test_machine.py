import errno
import hashlib
import logging
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmnist_jax import machine
from fmnist_jax.errors import BackendError

ROOT = str(pathlib.Path(machine.__file__).parent.parent)

TRAIN = """
import hashlib, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')
from fmnist_jax import machine
machine.prepare_environment()
import jax, jax.numpy as jnp
logging.getLogger('jax').setLevel(logging.WARNING)  # Before the import, jax would take it for C++.
machine.setup(compile_cache=True)
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith('/cache_hits') else None)

@jax.jit
def step(w, x):
  loss = lambda w: jnp.sum(jnp.tanh(x @ w) ** 2) + jnp.sum(jnp.exp(-w ** 2))
  return jax.lax.fori_loop(0, 20, lambda _, w: w - 1e-3 * jax.grad(loss)(w), w)

w = step(jnp.linspace(-1, 1, 64 * 32).reshape(64, 32),
         jnp.linspace(-1, 2, 128 * 64).reshape(128, 64))
print('hits', len(hits), hashlib.sha256(memoryview(jax.device_get(w))).hexdigest())
"""


def run(code, cache, **environment):
  process = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True,
                           text=True, env=os.environ | {
                               'PYTHONPATH': ROOT, 'XDG_CACHE_HOME': str(cache), 'XLA_FLAGS': '',
                               'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '1'} | environment)
  assert process.stderr == '', process.stderr[:1000]
  return process.stdout


def entries(cache):
  return [path for path in cache.rglob('*') if path.is_file()]


# The known answer.

def test_this_backend_computes_rightly():
  machine.check()


def test_a_backend_that_computes_wrongly_is_refused(monkeypatch):
  right = jax.vmap
  # What jaxlib 0.10.2 does: from row 32,768 on it takes other rows.
  monkeypatch.setattr(jax, 'vmap', lambda f: lambda x: right(f)(
      x.at[32_768:].set(x[32_736:40_000 - 32])))
  with pytest.raises(BackendError, match=r'computes wrongly .*known answers are off.*install'):
    machine._check_known_answer.__wrapped__()


def test_the_known_answer_is_exact_in_half_precision():
  """So the check never refuses a backend for rounding: all parts fit in 8 bits of mantissa."""
  rows = np.arange(120_000) * 7 % 17 - 8
  assert np.array_equal(rows, rows.astype(jnp.bfloat16).astype(int))
  assert np.abs(rows).max() * 3 <= 256


def test_a_backend_that_does_not_start_is_one_sentence(tmp_path):
  out = run('from fmnist_jax import machine\n'
            'from fmnist_jax.errors import BackendError\n'
            'try:\n'
            '  machine.setup(compile_cache=False)\n'
            'except BackendError as error:\n'
            '  print(error)\n', tmp_path, JAX_PLATFORMS='nonesuch')
  assert 'nonesuch' in out and 'JAX_PLATFORMS=cpu' in out and out.count('\n') == 1


def test_setup_imports_jax_late(tmp_path):
  out = run('import os, sys\n'
            'from fmnist_jax import machine\n'
            'machine.prepare_environment()\n'
            'print("jax" in sys.modules, os.environ["TF_CPP_MIN_LOG_LEVEL"])\n'
            'print(machine.setup(compile_cache=False))\n', tmp_path)
  assert out.split() == ['False', '3', 'cpu']
  assert entries(tmp_path) == []


def test_only_orbax_is_kept_quiet(tmp_path):
  # In a process of its own, because it matters who is first to ask for the logger.
  out = run('import logging, sys\n'
            'from fmnist_jax import machine\n'
            'machine.setup(compile_cache=False)\n'
            'logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)\n'
            'for path in ("/x/orbax/checkpoint/a.py", "/x/fmnist_jax/train.py"):\n'
            '  text = "from absl import logging; logging.warning(__file__)"\n'
            '  exec(compile(text, path, "exec"), {"__file__": path})\n', tmp_path)
  assert out.split() == ['/x/fmnist_jax/train.py']


# Compiled programs.

def test_second_start_finds_programs_quietly_and_computes_the_same_bits(tmp_path):
  first = run(TRAIN, tmp_path).split()
  written = {path: path.read_bytes() for path in entries(tmp_path)}
  second = run(TRAIN, tmp_path).split()
  assert first[:2] == ['hits', '0'] and written
  assert second[0] == 'hits' and int(second[1]) > 0
  assert first[2] == second[2]
  assert {path: path.read_bytes() for path in entries(tmp_path)} == written
  for path in written:
    assert path.is_relative_to(tmp_path / 'fmnist_jax' / 'xla')
    assert path.parent.name.startswith(f'{jax.lib.__version__}-cpu-')
    assert path.parent.stat().st_mode & 0o077 == 0


def test_damaged_programs_are_made_anew(tmp_path):
  result = run(TRAIN, tmp_path).split()[2]
  whole = {path: path.read_bytes() for path in entries(tmp_path)}
  for number, (path, content) in enumerate(whole.items()):
    middle = len(content) // 2
    path.write_bytes([b'', content[:middle], content[:-1],
                      content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1:],
                      bytes(100)][number % 5])
  out = run(TRAIN, tmp_path)
  assert out.count('was damaged and is made anew') == len(whole)
  assert out.split()[-2:] == ['0', result]
  assert set(entries(tmp_path)) == set(whole)
  again = run(TRAIN, tmp_path).split()
  assert int(again[1]) > 0 and again[2] == result


def test_a_cache_directory_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / 'fmnist_jax').write_text('a file in the way')
  out = run(TRAIN, tmp_path).splitlines()
  assert len(out) == 2 and out[0].startswith('Compiled programs are not kept: ')
  assert out[1].startswith('hits 0 ')


def test_programs_others_could_have_written_are_not_run(tmp_path):
  run(TRAIN, tmp_path)
  directory = entries(tmp_path)[0].parent
  directory.chmod(0o777)
  out = run(TRAIN, tmp_path).splitlines()
  assert 'others can write there' in out[0] and out[1].startswith('hits 0 ')


def test_program_cache_keeps_whole_values_only(tmp_path):
  cache = machine.ProgramCache(tmp_path)
  assert cache.get('a') is None
  cache.put('a', b'program')
  cache.put('b', b'')
  assert cache.get('a') == b'program' and cache.get('b') == b''
  content = (tmp_path / 'a').read_bytes()
  assert content == hashlib.sha256(b'program').digest() + b'program'
  for damaged in (b'', content[:10], content[:-1], content + b'x', bytes([content[0] ^ 1])
                  + content[1:]):
    (tmp_path / 'a').write_bytes(damaged)
    assert cache.get('a') is None
    assert not (tmp_path / 'a').exists()
  cache.put('a', b'other')
  cache.put('a', b'program')
  assert cache.get('a') == b'program'
  assert sorted(os.listdir(tmp_path)) == ['a', 'b']


def test_a_disk_that_fails_is_told_once_and_otherwise_ignored(tmp_path, monkeypatch, caplog):
  cache = machine.ProgramCache(tmp_path)
  cache.put('a', b'program')

  def fail(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
  monkeypatch.setattr(os, 'utime', fail)
  monkeypatch.setattr(pathlib.Path, 'write_bytes', fail)
  with caplog.at_level(logging.INFO, logger='absl'):
    for _ in range(3):
      cache.put('b', b'program')
  assert cache.get('a') == b'program' and cache.get('b') is None
  assert caplog.text.count('Read-only file system') == 1
  assert os.listdir(tmp_path) == ['a']


def test_the_longest_unused_go_first_and_leftovers_go_always(tmp_path):
  cache = machine.ProgramCache(tmp_path / '0.1-cpu-x')
  cache._path.mkdir()
  for age, key in enumerate('abcd'):
    cache.put(key, bytes(68))
    os.utime(cache._path / key, (1000 - age, 1000 - age))
  for name in ('.new-ab', '.new-cd', '.nfs01'):
    (cache._path / name).write_bytes(b'x')
  for name in ('.new-ab', '.nfs01'):
    os.utime(cache._path / name, (1000, 1000))
  assert cache.get('d') == bytes(68)  # Used now.
  machine._shrink(tmp_path, 250)
  assert sorted(os.listdir(cache._path)) == ['.new-cd', '.nfs01', 'a', 'd']


def test_what_the_machine_has_is_asked_in_one_place():
  asked = ('SC_PHYS_PAGES', 'sched_getaffinity', 'cpu_count')
  package = pathlib.Path(machine.__file__).parent
  asking = {path.name for path in package.rglob('*.py')
            if any(word in path.read_text() for word in asked)}
  assert asking == {'machine.py'}
