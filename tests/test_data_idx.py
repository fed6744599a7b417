"""The IDX reader, on good files and on every kind of bad one."""

import gzip
import hashlib
import os
import struct
import tracemalloc
import zlib

import fuzzing
import hypothesis
import numpy as np
import pytest

from fmnist_jax.data import idx
from fmnist_jax.errors import DataError

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def encoded(array=IMAGES):
  return idx.header(array.shape) + array.tobytes()


def write(tmp_path, content, name='file.gz'):
  path = tmp_path / name
  path.write_bytes(content)
  return path


@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_reads_what_was_written(tmp_path, pack):
  array = idx.read(write(tmp_path, pack(encoded())))
  np.testing.assert_array_equal(array, IMAGES)
  assert array.dtype == np.uint8
  array[0, 0, 0] = 7  # It is the caller's own.


def test_header_is_the_published_one():
  # From the description of the format: magic 2051 for images, 2049 for labels.
  assert idx.header((60000, 28, 28)) == struct.pack('>iiii', 2051, 60000, 28, 28)
  assert idx.header((60000,)) == struct.pack('>ii', 2049, 60000)


def test_sha256_is_that_of_the_unpacked_file():
  assert idx.sha256(IMAGES) == hashlib.sha256(encoded()).hexdigest()
  assert idx.sha256(IMAGES[..., None]) == idx.sha256(IMAGES)  # Grey ones.
  assert idx.sha256(idx.labels_array(np.array([3, 255]))) == idx.sha256(np.uint8([3, 255]))
  of_many = bytes.fromhex('00000c01 00000002 00000003 00000100')
  assert idx.sha256(idx.labels_array(np.array([3, 256]))) == hashlib.sha256(of_many).hexdigest()
  assert idx.sha256(IMAGES.reshape(3, 20)) != idx.sha256(IMAGES)


def test_reads_several_gzip_members(tmp_path):
  content = encoded()
  packed = b''.join(map(gzip.compress, (b'', content[:9], b'', content[9:], b'')))
  np.testing.assert_array_equal(idx.read(write(tmp_path, packed)), IMAGES)


def wrong_checksum():
  packed = bytearray(gzip.compress(encoded()))
  packed[-8] ^= 1
  return bytes(packed)


BAD = {
    'empty': (b'', 'ends after 0 bytes'),
    'short magic': (b'\0\0\x08', 'ends after 3 bytes'),
    'text': (b'<html>not found</html>', 'no IDX file'),
    'no axes': (b'\0\0\x08\0', 'no IDX file'),
    'five axes': (b'\0\0\x08\x05' + bytes(30), 'no IDX file'),
    'floats': (b'\0\0\x0d\x01' + struct.pack('>I', 1) + bytes(4), 'type 0x0d'),
    'cut header': (encoded()[:10], 'truncated within its header'),
    'cut data': (encoded()[:-1], '59 of the 60 bytes'),
    'trailing': (encoded() + b'\0', 'goes on after the 60 bytes'),
    'no examples': (idx.header((0, 28, 28)), 'is empty'),
    'absurd': (idx.header((2**32 - 1,) * 4), 'more than'),
    'cut gzip': (gzip.compress(encoded())[:-3], 'truncated'),
    'gzip magic only': (b'\x1f\x8b', 'truncated'),
    'gzip checksum': (wrong_checksum(), 'damaged'),
    'gzip then junk': (gzip.compress(encoded()) + b'junk', 'damaged'),
    'gzip then member': (gzip.compress(encoded()) + gzip.compress(b'x'), 'goes on'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_file_is_told_in_one_sentence(tmp_path, name):
  content, told = BAD[name]
  path = write(tmp_path, content)
  with pytest.raises(DataError, match=told) as caught:
    idx.read(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', tmp_path, tmp_path / 'missing', 'a\0b'):
    with pytest.raises(DataError):
      idx.read(path)


def test_memory_is_bounded_by_content_and_by_claim(tmp_path):
  claim = 1 << 30
  liar = write(tmp_path, idx.header((claim,)) + b'short')
  # A bomb: a small file of 128 MiB of zeros, whose header claims a thousand bytes.
  pack = zlib.compressobj(level=1, wbits=31)
  pieces = [pack.compress(idx.header((1000,)))]
  pieces += [pack.compress(bytes(1 << 20)) for _ in range(128)]
  bomb = write(tmp_path, b''.join(pieces) + pack.flush(), 'bomb.gz')
  tracemalloc.start()
  try:
    for path, told in ((liar, '5 of the 1,073,741,824 bytes'), (bomb, 'goes on after')):
      with pytest.raises(DataError, match=told):
        idx.read(path, max_bytes=claim)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_mutated_files_raise_our_error_or_are_consistent(tmp_path, pack):
  limit, good = 4096, pack(encoded())

  @fuzzing.SETTINGS
  @hypothesis.given(fuzzing.RANDOM)
  def check(chance):
    content = fuzzing.mutated_bytes(chance, good)
    path = write(tmp_path, content)
    try:
      array = idx.read(path, max_bytes=limit)
    except DataError:
      return
    assert 0 < array.size <= limit
    unpacked = content if content[:2] != b'\x1f\x8b' else gzip.decompress(content)
    assert idx.header(array.shape) + array.tobytes() == unpacked

  check()
