"""Small files that claim much, each given to its reader in a process whose memory is watched.

  python experiments/crash/claims.py NAME FOLDER RUN   # one of them, as the campaign starts it
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

_GIGABYTE = 2**30
_SPARSE = 500 * _GIGABYTE
_MOST = _GIGABYTE  # Bytes that reading a file of at most some MB may take at its worst.


def _sparse(name: str, size: int = _SPARSE) -> Callable[[pathlib.Path], None]:
  def make(run: pathlib.Path) -> None:
    with open(run / name, 'r+b') as file:
      file.truncate(size)
  return make


def _long_header(path: pathlib.Path) -> None:
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('images.npy', b'\x93NUMPY\x02\x00' + struct.pack('<I', 2**31 - 1)
                     + b' ' * (2**31 - 1))
    archive.writestr('labels.npy', b'')


def _large_array(path: pathlib.Path) -> None:
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      file, {'descr': '<f8', 'fortran_order': False, 'shape': (2**40,)})
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name in ('train_images', 'train_labels', 'images', 'labels', 'probabilities'):
      archive.writestr(f'{name}.npy', file.getvalue())


def _packed_predictions(run: pathlib.Path) -> None:
  np.savez_compressed(run / 'predictions.npz', labels=np.zeros(_GIGABYTE // 8),
                      probabilities=np.zeros((2**14, 2**15), np.float32))


def _idx(folder: pathlib.Path) -> None:
  for part in ('train', 't10k'):
    for kind, magic, shape in (('images-idx3', 2051, (2**31 - 1, 2**15, 2**15)),
                               ('labels-idx1', 2049, (2**31 - 1,))):
      (folder / f'{part}-{kind}-ubyte').write_bytes(struct.pack(f'>{len(shape) + 1}i', magic,
                                                                *shape))


def _gzip(folder: pathlib.Path) -> None:
  packed = io.BytesIO()
  with gzip.GzipFile(fileobj=packed, mode='wb') as file:
    file.write(struct.pack('>4i', 2051, 60_000, 28, 28))
    for _ in range(4096):
      file.write(bytes(2**20))
  for part in ('train', 't10k'):
    (folder / f'{part}-images-idx3-ubyte.gz').write_bytes(packed.getvalue())
    (folder / f'{part}-labels-idx1-ubyte.gz').write_bytes(packed.getvalue())


def _png(path: pathlib.Path) -> None:
  chunk = lambda kind, body: (struct.pack('>I', len(body)) + kind + body
                              + struct.pack('>I', zlib.crc32(kind + body)))
  side = 60_000
  path.write_bytes(b'\x89PNG\r\n\x1a\n'
                   + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
                   + chunk(b'IDAT', zlib.compress(bytes(10**8))) + chunk(b'IEND', b''))


def _pieces(run: pathlib.Path) -> None:
  """Arrays whose pieces claim to be larger than they are, in checkpoints sealed again."""
  import tensorstore
  for folder in _checkpoints(run):
    store = tensorstore.KvStore.open(
        {'driver': 'ocdbt', 'base': f'file://{folder}/state/'}).result()
    for key in store.list().result():
      if key.endswith(b'.zarray'):
        form = json.loads(store.read(key).result().value)
        if form['chunks']:
          form['chunks'][0] = 10**10
          store.write(key, json.dumps(form)).result()
    _seal(folder)


def _metadata(run: pathlib.Path) -> None:
  for folder in _checkpoints(run):
    _sparse('state/_METADATA', 8 * _GIGABYTE)(folder)
    _seal(folder)


def _progress(run: pathlib.Path) -> None:
  for folder in _checkpoints(run):
    _sparse('progress.json', 8 * _GIGABYTE)(folder)
    _seal(folder)


def _manifest(run: pathlib.Path) -> None:
  for folder in _checkpoints(run):
    _sparse('manifest.json')(folder)


def _checkpoints(run: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in (run / 'checkpoints').absolute().iterdir() if path.name.isdecimal()]


def _seal(folder: pathlib.Path) -> None:
  from fmnist_jax.storage import manifest
  (folder / manifest.NAME).unlink()
  manifest.write(folder, int(folder.name))


def _load(run: pathlib.Path) -> None:
  from fmnist_jax.trained_model import load_run
  load_run(run)


def _finished(run: pathlib.Path) -> None:
  from fmnist_jax.population import summary
  summary.read(run)


def _compare(run: pathlib.Path) -> None:
  from fmnist_jax.population import comparison
  comparison.read([run])


def _resume(run: pathlib.Path) -> None:
  from fmnist_jax import config_file
  from fmnist_jax.storage import workdir
  with workdir.Workdir(run, config_file.load(str(run / 'config.json'), [])) as opened:
    opened.history.read()


def _config(run: pathlib.Path) -> None:
  from fmnist_jax.storage import workdir
  workdir.read_config(run)


def _data(path: pathlib.Path) -> None:
  from fmnist_jax import config as config_lib
  from fmnist_jax import data
  data.load(config_lib.Data(name=str(path)))


def _folder(path: pathlib.Path) -> None:
  from fmnist_jax import config as config_lib
  from fmnist_jax import data
  data.load(config_lib.Data(name='mnist', data_dir=str(path)))


def _predict(path: pathlib.Path) -> None:
  from fmnist_jax import photograph
  with open(path, 'rb') as file:
    photograph.read(file, (28, 28, 1), path.name)


# What claims it, where it lies ('' in a copy of a run, else a file of this name or a folder), who
# reads it.
CLAIMS: dict[str, tuple[str, Callable[[pathlib.Path], None], Callable[[pathlib.Path], None]]] = {
    '`config.json` of 500 GB without content': ('', _sparse('config.json'), _config),
    '`metrics.jsonl`, likewise': ('', _sparse('metrics.jsonl'), _resume),
    '`results.json`, likewise': ('', _sparse('results.json'), _compare),
    '`manifest.json` of a checkpoint, likewise': ('', _manifest, _load),
    '`progress.json` of 8 GB in a checkpoint sealed again': ('', _progress, _load),
    'a list of arrays of 8 GB in a checkpoint sealed again': ('', _metadata, _load),
    'arrays in pieces of 40 GB in a checkpoint sealed again': ('', _pieces, _load),
    '`predictions.npz` packed 1,000 to one': ('', _packed_predictions, _finished),
    '`.npz` with a header of 2 GiB': ('own.npz', _long_header, _data),
    '`.npz` with an array of 8 TiB': ('own.npz', _large_array, _data),
    'IDX files of 2 billion images': ('folder', _idx, _folder),
    'IDX files in gzip that unpack to 4 GiB': ('folder', _gzip, _folder),
    'PNG of 60,000 x 60,000 pixels': ('picture.png', _png, _predict),
}


def read(campaign: Any) -> None:
  """Gives each claim to its reader once, in a process of its own."""
  import watch
  campaign.uninterrupted('short', watch.SHORT)
  run = campaign.watcher.work / 'short-0'
  done = {note['what'] for note in campaign.records('claims')}
  for what in CLAIMS:
    if what in done:
      continue
    folder = campaign.watcher.work / 'claims'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ended = subprocess.run(
        [sys.executable, __file__, what, str(folder), str(run)], text=True, capture_output=True,
        env={**os.environ, 'PYTHONPATH': str(watch.ROOT), 'JAX_PLATFORMS': 'cpu'})
    shutil.rmtree(folder, ignore_errors=True)
    note = {'what': what, **(json.loads(ended.stdout.splitlines()[-1]) if not ended.returncode
                             else {'bytes': 0, 'grown': 0, 'says': '', 'wrong': [ended.stderr]})}
    campaign.note('claims', note)
    print(f'{what}: {note["grown"] / 2**20:.0f} MiB, {note["says"]}  {"; ".join(note["wrong"])}',
          flush=True)


def _memory(field: str) -> int:
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return 1024 * int(next(line for line in lines if line.startswith(f'{field}:')).split()[1])


def _main(what: str, folder: pathlib.Path, run: pathlib.Path) -> None:
  from fmnist_jax import data, photograph  # noqa: F401  What importing takes is not of the file.
  from fmnist_jax.errors import UserError
  where, make, use = CLAIMS[what]
  path = folder / (where or 'run')
  if where == 'folder':
    path.mkdir()
  elif not where:
    shutil.copytree(run, path)
    _load(path)  # What the libraries take for themselves is taken now.
    _finished(path)
  make(path)
  size = sum(file.stat().st_blocks * 512 for file in [path, *path.rglob('*')] if file.is_file())
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # The peak begins here.
  before, wrong, says = _memory('VmRSS'), [], ''
  try:
    use(path)
    wrong.append('it was taken')
  except UserError as error:
    says = str(error).replace(f'{folder}/', '')
  except Exception as error:
    wrong.append(f'{type(error).__name__}: {error}')
  grown = _memory('VmHWM') - before
  if grown > _MOST:
    wrong.append(f'it took {grown:,} bytes')
  print(json.dumps({'bytes': size, 'grown': grown, 'says': says, 'wrong': wrong}))


if __name__ == '__main__':
  _main(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
