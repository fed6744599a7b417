"""Finding, verifying and downloading the original files."""

import contextlib
import dataclasses
import errno
import gzip
import http.client
import http.server
import importlib.util
import os
import pathlib
import socket
import threading
import time

import data_files
import numpy as np
import pytest

from fmnist_jax.data import download, formats, idx, sources
from fmnist_jax.errors import DataError


@pytest.fixture
def published(monkeypatch, tmp_path):
  return data_files.publish(monkeypatch, tmp_path)


def plain(array):
  return idx.header(array.shape) + array.tobytes()


def test_the_published_hashes_are_right_where_the_files_are():
  folder = os.environ.get('FMNIST_DATA_DIR')
  if not folder:
    pytest.skip('$FMNIST_DATA_DIR is not set')
  files = sources.named('fashion_mnist', folder)
  for split, total in (('train', 60000), ('test', 10000)):
    images, labels = files.arrays(split)
    assert images.shape == (total, 28, 28, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(labels), [total // 10] * 10)


def test_published_names_and_hashes_are_of_the_right_form():
  assert [original.folder for original in sources.ORIGINALS.values()] == [
      'fashion-mnist', 'mnist', 'kmnist', 'cifar10', 'cifar100', 'emnist', 'emnist']
  for original in sources.ORIGINALS.values():
    for value in original.sha256 + original.packed_sha256:
      assert len(value) == 64 and set(value) <= set('0123456789abcdef')
    count = len(original.files)
    assert len(original.packed_sha256) == len(original.packed_bytes) == count
    assert len(original.sha256) in (0, 4)
    assert len(set(original.sha256 + original.packed_sha256)) == count + len(original.sha256)
  assert [len(original.class_names) for original in sources.ORIGINALS.values()] == [
      10, 10, 10, 10, 100, 26, 47]


def test_published_hashes_are_those_that_tfds_knows():
  folder = pathlib.Path(importlib.util.find_spec('tensorflow_datasets').origin).parent
  text = ''.join((folder / 'url_checksums' / f'{name}.txt').read_text() for name in (
      'cifar10', 'cifar100', 'emnist', 'fashion_mnist', 'kmnist'))
  for name, original in sources.ORIGINALS.items():
    if name != 'mnist':
      for size, sha256 in zip(original.packed_bytes, original.packed_sha256):
        assert f'\t{size}\t{sha256}\t' in text


@pytest.mark.parametrize('place', ['.', 'fashion-mnist', 'FashionMNIST/raw'])
@pytest.mark.parametrize('how', ['as published', 'packed anew', 'not packed'])
def test_a_named_folder_is_read(published, tmp_path, place, how):
  pack = {'as published': data_files.packed, 'not packed': plain,
          'packed anew': lambda array: gzip.compress(plain(array), 1, mtime=3)}[how]
  arrays = published['fashion_mnist']
  data_files.write(tmp_path / 'mine' / place, arrays, pack, '' if pack is plain else '.gz')
  files = sources.named('fashion_mnist', str(tmp_path / 'mine'))
  for split, first in (('train', 0), ('test', 2)):
    images, labels = files.arrays(split)
    np.testing.assert_array_equal(images[..., 0], arrays[first])
    np.testing.assert_array_equal(labels, arrays[first + 1])
    assert labels.dtype == np.int32


def test_the_config_goes_before_the_environment(published, monkeypatch, tmp_path):
  one, two = (data_files.write(tmp_path / name, published['fashion_mnist'])
              for name in ('one', 'two'))
  assert sources.named('fashion_mnist', '') is None
  monkeypatch.setenv(sources.ENVIRONMENT, str(two))
  assert sources.named('fashion_mnist', '').paths[0].startswith(str(two))
  assert sources.named('fashion_mnist', str(one)).paths[0].startswith(str(one))


def test_the_environment_need_not_hold_the_digits(published, monkeypatch, tmp_path):
  folder = data_files.write(tmp_path / 'all', published['fashion_mnist'])
  monkeypatch.setenv(sources.ENVIRONMENT, str(folder))
  assert sources.named('mnist', '') is None
  data_files.write(folder / 'mnist', published['mnist'])
  assert sources.named('mnist', '').paths[0] == str(folder / 'mnist' / f'{formats.FILES[0]}.gz')
  with pytest.raises(DataError, match='Fashion-MNIST, not MNIST'):
    data_files.write(tmp_path / 'only', published['fashion_mnist'])
    sources.named('mnist', str(tmp_path / 'only'))


def test_digits_in_place_of_garments_are_called_by_name(published, tmp_path):
  folder = data_files.write(tmp_path / 'mine', published['mnist'])
  with pytest.raises(DataError, match=r'is MNIST \(handwritten digits\), not Fashion-MNIST'):
    sources.named('fashion_mnist', str(folder))


def test_one_wrong_file_of_four_is_told(published, tmp_path):
  arrays = published['fashion_mnist']
  folder = data_files.write(tmp_path / 'mine', arrays)
  name = f'{formats.FILES[2]}.gz'
  good = (folder / name).read_bytes()
  for content, told in ((good[:-9], 'truncated'), (b'', 'ends after 0'),
                        (data_files.packed(arrays[2][::-1]), 'not the published'),
                        (data_files.packed(arrays[0]), 'train-images.* under another name'),
                        (data_files.packed(published['mnist'][2]), 'is MNIST'),
                        (b'\x1f\x8b<html>not found</html>', 'damaged')):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
      sources.named('fashion_mnist', str(folder))
    assert name in str(caught.value) and '\n' not in str(caught.value)
    assert not isinstance(caught.value, sources.DataUnavailable)
  (folder / name).unlink()
  with pytest.raises(DataError, match=f'lacks {name}'):
    sources.named('fashion_mnist', str(folder))


def test_a_named_folder_without_the_files_is_an_error(published, monkeypatch, tmp_path):
  for folder, told in ((tmp_path / 'nowhere', 'not a folder'), (tmp_path, 'holds no')):
    with pytest.raises(DataError, match=rf'data\.data_dir.*{told}'):
      sources.named('fashion_mnist', str(folder))
    monkeypatch.setenv(sources.ENVIRONMENT, str(folder))
    with pytest.raises(DataError, match=rf'FMNIST_DATA_DIR.*{told}'):
      sources.named('fashion_mnist', '')


@pytest.mark.parametrize('place', [
    'tfds/downloads/fmnist_jax/fashion-mnist', 'home/.keras/datasets/fashion-mnist',
    'data/FashionMNIST/raw', 'home/data/FashionMNIST/raw'])
def test_caches_are_found(published, tmp_path, place):
  assert sources.cached('fashion_mnist')[0] is None
  data_files.write(tmp_path / place, published['fashion_mnist'])
  files, _ = sources.cached('fashion_mnist')
  np.testing.assert_array_equal(files.arrays('test')[0][..., 0], published['fashion_mnist'][2])


def test_what_may_not_be_read_beside_downloads_of_tfds_is_passed_over(published, tmp_path,
                                                                      monkeypatch):
  folder = tmp_path / 'tfds' / 'downloads'
  folder.mkdir(parents=True)
  (folder / 'link').symlink_to(tmp_path / 'nowhere')
  for size in sources.ORIGINALS['fashion_mnist'].packed_bytes:
    (folder / f'secret{size}').write_bytes(bytes(size))
  for i, array in enumerate(published['fashion_mnist']):
    (folder / f'host_t{i}Xy.gz').write_bytes(data_files.packed(array))
  def guarded(path, *args):
    if 'secret' in str(path):
      raise PermissionError(13, 'Permission denied', path)
    return open(path, *args)
  monkeypatch.setattr(formats, 'open', guarded, raising=False)
  files, _ = sources.cached('fashion_mnist')
  np.testing.assert_array_equal(files.arrays('train')[0][..., 0], published['fashion_mnist'][0])


def test_tfds_downloads_are_found_by_content(published, tmp_path):
  folder = tmp_path / 'tfds' / 'downloads'
  folder.mkdir(parents=True)
  for i, array in enumerate(published['fashion_mnist']):
    (folder / f'host_t{i}Xy.gz').write_bytes(data_files.packed(array))
  files, _ = sources.cached('fashion_mnist')
  np.testing.assert_array_equal(files.arrays('train')[0][..., 0], published['fashion_mnist'][0])


def test_a_wrong_cache_is_passed_over(published, tmp_path, caplog):
  data_files.write(tmp_path / 'data/FashionMNIST/raw', published['mnist'])
  files, looked = sources.cached('fashion_mnist')
  assert files is None and any('unusable' in place for place in looked)
  data_files.write(tmp_path / 'home/data/FashionMNIST/raw', published['fashion_mnist'])
  assert sources.cached('fashion_mnist')[0].paths[0].startswith(str(tmp_path / 'home'))


def test_nothing_to_be_had_names_what_was_tried_and_the_ways_out(published, tmp_path):
  with pytest.raises(sources.DataUnavailable) as caught:
    sources.obtain('fashion_mnist')
  for words in ('.keras', 'torch', 'downloads', 'data.data_dir', 'FMNIST_DATA_DIR',
                'data.name=synthetic', 'train-images-idx3-ubyte.gz'):
    assert words in str(caught.value)
  assert '\n' not in str(caught.value)


class Server:
  """A mirror on this machine that can misbehave."""

  def __init__(self, files):
    self.files, self.requests = files, []
    self.cut_at = 0  # The connection breaks off after so many bytes of each answer.
    self.ranges = True
    self.pause = 0.0  # Seconds between the single bytes of a trickle.
    owner = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        name, wanted = self.path.rsplit('/', 1)[-1], self.headers.get('Range')
        owner.requests.append((name, wanted))
        if name not in owner.files:
          self.send_error(404)
          return
        content, start = owner.files[name], 0
        if wanted and owner.ranges:
          start = int(wanted.removeprefix('bytes=').rstrip('-'))
          self.send_response(206)
          self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
          self.send_response(200)
        content = content[start:]
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if owner.pause:
          with contextlib.suppress(OSError):  # The other side gives up.
            for byte in content:
              self.wfile.write(bytes([byte]))
              time.sleep(owner.pause)
          return
        self.wfile.write(content[:owner.cut_at] if owner.cut_at else content)

      def log_message(self, *_):
        pass

    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.address = f'http://127.0.0.1:{self.server.server_port}/sub/'
    threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.01}).start()

  def close(self):
    self.server.shutdown()
    self.server.server_close()


@pytest.fixture
def mirrors(published, monkeypatch):
  """Two servers of the small Fashion-MNIST, tried one after the other."""
  for variable in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(variable, raising=False)
  files = {f'{name}.gz': data_files.packed(array)
           for name, array in zip(formats.FILES, published['fashion_mnist'])}
  servers = [Server(dict(files)), Server(dict(files))]
  monkeypatch.setitem(sources.ORIGINALS, 'fashion_mnist', dataclasses.replace(
      sources.ORIGINALS['fashion_mnist'], mirrors=tuple(server.address for server in servers)))
  yield servers
  for server in servers:
    server.close()


def downloaded(published):
  files = sources.obtain('fashion_mnist')
  np.testing.assert_array_equal(files.arrays('train')[0][..., 0], published['fashion_mnist'][0])
  folder = pathlib.Path(files.paths[0]).parent
  assert sorted(os.listdir(folder)) == ['.lock', *sorted(f'{name}.gz' for name in formats.FILES)]


def test_downloads_once(published, mirrors):
  downloaded(published)
  assert len(mirrors[0].requests) == 4 and not mirrors[1].requests
  downloaded(published)
  assert len(mirrors[0].requests) == 4


def test_the_next_mirror_takes_over(published, mirrors):
  mirrors[0].files.clear()
  downloaded(published)
  assert len(mirrors[0].requests) == 1  # One refusal is enough.
  assert len(mirrors[1].requests) == 4


def test_a_mirror_with_other_content_is_not_believed(published, mirrors):
  name = f'{formats.FILES[0]}.gz'
  content = mirrors[0].files[name]
  mirrors[0].files[name] = content[::-1]
  downloaded(published)
  assert (name, None) in mirrors[1].requests


@pytest.mark.parametrize('ranges', [True, False])
def test_a_broken_download_goes_on(published, mirrors, ranges):
  mirrors[0].ranges = ranges
  mirrors[0].cut_at = 20_000
  downloaded(published)
  if ranges:
    assert (f'{formats.FILES[0]}.gz', 'bytes=20000-') in mirrors[0].requests
    assert not mirrors[1].requests
  else:
    assert mirrors[1].requests


def test_a_network_that_fails_meanwhile_is_a_connection_that_breaks_off(published, mirrors,
                                                                        monkeypatch):
  read, failures = http.client.HTTPResponse.read1, [
      OSError(errno.EHOSTUNREACH, 'No route to host')]
  def read1(self, *args):
    if failures:
      raise failures.pop()
    return read(self, *args)
  monkeypatch.setattr(http.client.HTTPResponse, 'read1', read1)
  downloaded(published)
  assert mirrors[1].requests


def test_a_trickle_is_given_up(published, mirrors, monkeypatch):
  monkeypatch.setattr(download, '_GRACE', 0.1)
  mirrors[0].pause = 0.005  # 200 bytes a second.
  downloaded(published)
  assert len(mirrors[0].requests) == 1 and len(mirrors[1].requests) == 4


def test_what_an_earlier_process_left_is_continued_or_dropped(published, mirrors):
  folder = sources.download_folder(sources.ORIGINALS['fashion_mnist'])
  folder.mkdir(parents=True)
  good, bad = (f'{name}.gz' for name in formats.FILES[:2])
  (folder / f'{good}.part').write_bytes(mirrors[0].files[good][:777])
  (folder / f'{bad}.part').write_bytes(b'junk')
  (folder / f'{formats.FILES[2]}.gz').write_bytes(b'damaged')
  downloaded(published)
  assert mirrors[0].requests[0] == (good, 'bytes=777-')
  assert mirrors[0].requests[1:3] == [(bad, 'bytes=4-'), (bad, None)]


def test_two_downloads_at_once_take_turns(published, mirrors):
  threads = [threading.Thread(target=downloaded, args=(published,)) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(mirrors[0].requests) == 4


def test_a_server_that_never_answers_is_given_up(published, monkeypatch):
  silent = socket.create_server(('127.0.0.1', 0))  # Connects, and says nothing.
  monkeypatch.setattr(download, 'CONNECT_SECONDS', 0.2)
  monkeypatch.setitem(sources.ORIGINALS, 'fashion_mnist', dataclasses.replace(
      sources.ORIGINALS['fashion_mnist'],
      mirrors=(f'http://127.0.0.1:{silent.getsockname()[1]}/',)))
  with pytest.raises(sources.DataUnavailable, match='timed out'):
    sources.obtain('fashion_mnist')
  silent.close()


def test_a_name_that_is_never_looked_up_is_given_up(monkeypatch):
  monkeypatch.setattr(download, 'CONNECT_SECONDS', 0.05)
  with pytest.raises(TimeoutError, match='no answer'):
    download._within(0.1, lambda: time.sleep(1))


def test_a_folder_that_cannot_be_written_is_told(published, mirrors, tmp_path):
  (tmp_path / 'tfds').write_text('a file in the way')
  with pytest.raises(sources.DataUnavailable, match=r'downloading to .* failed'):
    sources.obtain('fashion_mnist')
