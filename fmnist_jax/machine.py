"""What a program settles before it computes: environment, XLA flags, compile cache, a known answer.

Entry points call `prepare_environment` before jax is imported and `setup` before it computes; this
module does not import jax until then. Other people's programs need neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import secrets
import stat
import time
from importlib import metadata

from absl import logging as absl_logging

from fmnist_jax.errors import BackendError, one_line

# Compiled programs of one config take about 10 MB.
MAX_CACHE_BYTES = 1 << 30
_LONGEST_WRITE = 3600  # seconds

# By that name, had absl not been imported, logging would make one that does not know its callers.
_log = absl_logging.get_absl_logger()


def prepare_environment() -> None:
  """Silences what C++ libraries print at every start; only effective before jax is imported.

  Most of all, XLA's loader of cached CPU programs reports each hit as an error. What the user set
  is left as it is.
  """
  # A 1 is not the user's: jax sets it on import, and child processes inherit it.
  if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  # With several processes jax would take SIGTERM away from `interrupt`.
  os.environ.setdefault('JAX_ENABLE_PREEMPTION_SERVICE', 'false')


def setup(*, compile_cache: bool) -> str:
  """Starts the backend and lets compiled programs be kept between runs.

  Args:
    compile_cache: whether to keep compiled programs in the user's cache directory. A cache
      directory that jax has already been told to use is left in place.

  Returns:
    The platform of the default devices: 'cpu', 'gpu' or 'tpu'.

  Raises:
    BackendError: when no backend starts.
  """
  for each in (_is_not_of_orbax, _in_one_line):
    if each not in _log.filters:
      _log.addFilter(each)
  import jax
  try:
    name = jax.default_backend()
  except RuntimeError as error:
    raise BackendError(f'JAX could not start a backend ({" ".join(str(error).split())[:300]}); '
                       'install a jaxlib for this accelerator, or set JAX_PLATFORMS=cpu.'
                       ) from error
  if compile_cache and not jax.config.values['jax_compilation_cache_dir']:
    keep_compiled_programs(cache_root() / 'xla', name)
  return name


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  """Orbax reports each save in several lines, and what fails twice; `checkpoint` tells it once."""
  return f'{os.sep}orbax{os.sep}' not in record.pathname


# jax's settings that would change results, or stop a run half-way, and what they must be.
_SETTINGS = {'jax_enable_x64': (False,), 'jax_disable_jit': (False,), 'jax_debug_nans': (False,),
             'jax_debug_infs': (False,), 'jax_numpy_dtype_promotion': ('standard',),
             **dict.fromkeys(('jax_transfer_guard', 'jax_transfer_guard_host_to_device',
                              'jax_transfer_guard_device_to_host',
                              'jax_transfer_guard_device_to_device'),
                             (None, 'allow', 'log', 'log_explicit'))}


def _in_one_line(record: logging.LogRecord) -> bool:
  """Names of files and classes are somebody's: a terminal must not obey what is in them."""
  record.msg, record.args = one_line(record.getMessage()), ()
  return True


def check() -> None:
  """Checks jax's settings, and computes something whose answer is known.

  Raises:
    BackendError: when the answer is wrong, or a setting is one that results depend on.
  """
  import jax
  for name, right in _SETTINGS.items():
    value = jax.config.values[name]
    if value not in right:
      raise BackendError(f'{name.upper()} is {value}, with which results are not those that are '
                         'promised, or none at all; unset it.')
  _check_known_answer()


@functools.cache
def _check_known_answer() -> None:
  """Takes a few milliseconds beside its compilation.

  jaxlib 0.10.2 is wrong on CPU from row 32,768 on (jax-ml/jax#39103). All numbers are small
  integers, which every precision and every order of summation represents exactly.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  rows = 40_000
  x_Nx3 = (np.arange(3 * rows) * 7 % 17 - 8).reshape(rows, 3).astype(np.float32)
  matrix_3x3 = np.array([[1, 2, 0], [0, 1, -1], [2, 0, 1]], np.float32)

  @jax.jit
  def known_answer(x_Nx3: jax.Array, matrix_3x3: jax.Array) -> jax.Array:
    return jax.vmap(lambda row: jnp.sum((matrix_3x3 @ row) ** 2))(x_Nx3)

  wrong = int((np.asarray(known_answer(x_Nx3, matrix_3x3))
               != ((x_Nx3 @ matrix_3x3.T) ** 2).sum(1)).sum())
  if wrong:
    import jaxlib
    raise BackendError(f'jaxlib {jaxlib.__version__} computes wrongly on this '
                       f'{jax.default_backend()} ({wrong} of {rows} known answers are off): '
                       'install another version of jax and jaxlib (0.10.1 is right; so is 0.10.2 '
                       'with XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= set).')


def make_private(directory: pathlib.Path) -> None:
  """Makes a directory for native code: whoever can write there can run what they like as this user.

  Raises:
    OSError: when it cannot be made, or others can write there.
  """
  for missing in [path for path in directory.parents if not path.exists()][::-1]:
    missing.mkdir(mode=0o700, exist_ok=True)
  directory.mkdir(mode=0o700, exist_ok=True)
  status = directory.stat()
  if status.st_uid != os.geteuid() or status.st_mode & 0o022:
    raise PermissionError(0, 'others can write there')
  for parent in directory.resolve().parents:  # Who can write in one can put another in its place.
    status = parent.stat()
    if status.st_uid not in (0, os.geteuid()) or (
        status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
      raise PermissionError(0, f'others can write in {parent}')


def seal(fresh: pathlib.Path, path: pathlib.Path) -> None:
  """Gives a finished file its name, with its SHA-256 beside it."""
  digest = hashlib.sha256(fresh.read_bytes()).hexdigest()
  fresh.rename(path)
  mark = fresh.with_name('digest')
  mark.write_text(digest)
  mark.rename(path.with_suffix('.sha256'))


def is_sealed(path: pathlib.Path) -> bool:
  """Whether a file is there whole and as `seal` left it."""
  try:
    return path.with_suffix('.sha256').read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
  except (OSError, ValueError):
    return False


def keep_compiled_programs(root: pathlib.Path, platform_name: str) -> None:
  """Makes jax keep every compiled program below `root`, and find it again.

  Without a place that can be written, programs that are there are still used; without one that
  can be trusted, none are. Either way one line is logged and nothing else changes.

  Args:
    root: directory, made if it does not exist; all versions together stay below
      `MAX_CACHE_BYTES`, the longest unused going first.
    platform_name: 'cpu', 'gpu' or 'tpu'.
  """
  import jax
  import jaxlib
  directory = root / f'{jaxlib.__version__}-{platform_name}-{processor()}'
  try:
    make_private(directory)
    # jax's own cache keeps a truncated file for ever, and writes files in place.
    from jax._src import compilation_cache
    from jax._src.compilation_cache_interface import CacheInterface
    _ = compilation_cache.get_file_cache
  except OSError as error:
    _log.info('Compiled programs are not kept: %s: %s.', directory, error.strerror)
    return
  except (ImportError, AttributeError):
    _log.info('Compiled programs are not kept: this version of jax caches in another way.')
    return

  class Cache(ProgramCache, CacheInterface):
    """What jax calls."""

  cache = Cache(directory)
  compilation_cache.get_file_cache = lambda path: (cache, path)
  jax.config.update('jax_compilation_cache_dir', str(directory))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  _shrink(root, MAX_CACHE_BYTES)


class ProgramCache:
  """Files named by key, each with the SHA-256 of its content in front.

  A damaged file is removed and is a miss, so it is written again. Files appear whole, so several
  processes may share the directory. No method raises for what a disk can do.
  """

  def __init__(self, directory: pathlib.Path):
    self._path = directory
    self._complained = False

  def get(self, key: str) -> bytes | None:
    """The bytes kept under `key`, or None."""
    path = self._path / key
    try:
      content = path.read_bytes()
    except FileNotFoundError:
      return None
    except OSError as error:
      self._complain(error)
      return None
    digest, value = content[:32], content[32:]
    if hashlib.sha256(value).digest() != digest:
      _log.warning('The compiled program %s was damaged and is made anew.', path)
      with contextlib.suppress(OSError):
        path.unlink()
      return None
    with contextlib.suppress(OSError):  # A disk that cannot be written can still be read.
      os.utime(path)
    return value

  def put(self, key: str, value: bytes) -> None:
    """Keeps `value` under `key`, in place of what was there."""
    temporary = self._path / f'.new-{secrets.token_hex(8)}'
    try:
      temporary.write_bytes(hashlib.sha256(value).digest() + value)
      temporary.rename(self._path / key)
    except OSError as error:
      self._complain(error)
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)

  def _complain(self, error: OSError) -> None:
    if not self._complained:
      self._complained = True
      _log.info('Some compiled programs are not kept: %s: %s.', self._path, error.strerror)


def _shrink(root: pathlib.Path, limit: int) -> None:
  """Removes what killed processes left, then the longest unused files above `limit` bytes."""
  files = []
  for path in root.glob('*/*'):
    with contextlib.suppress(OSError):
      status = path.stat()
      if not path.name.startswith('.'):  # Others, such as .nfs0001 and .DS_Store, are the system's.
        files.append((status.st_mtime, status.st_size, path))
      elif path.name.startswith('.new-') and time.time() - status.st_mtime > _LONGEST_WRITE:
        path.unlink()
  total = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if total <= limit:
      return
    with contextlib.suppress(OSError):
      path.unlink()
      total -= size


def cache_root() -> pathlib.Path:
  """Where compiled programs of all kinds are kept for this user."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  if home.startswith('~'):  # A user without a home; `make_private` sees that it is nobody else's.
    home = f'/tmp/cache-{os.geteuid()}'
  return pathlib.Path(home) / 'fmnist_jax'


def memory() -> int:
  """Bytes of main memory that this process may use: the machine's, or its control group's."""
  limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/self/cgroup').read_text().splitlines():
      _, controllers, own = line.split(':', 2)
      # Version 2 has one tree without a name; a group is bound by those that it is in, too.
      tree, name = (('', 'memory.max') if not controllers else
                    ('memory', 'memory.limit_in_bytes'))
      if controllers and 'memory' not in controllers.split(','):
        continue
      group = pathlib.PurePosixPath(own)
      for each in (group, *group.parents):
        file = pathlib.Path('/sys/fs/cgroup', tree, str(each).lstrip('/'), name)
        with contextlib.suppress(OSError, ValueError):  # ValueError: 'max'.
          limits.append(int(file.read_text()))
  return min(limits)


def return_memory() -> None:
  """Gives back what was freed, where the C library can: compilers leave 100 MB of it behind."""
  with contextlib.suppress(OSError, AttributeError, TypeError):  # musl, macOS and Windows.
    ctypes.CDLL(None).malloc_trim(0)


def cores() -> int:
  """How many CPU cores this process may use."""
  return len(os.sched_getaffinity(0))


def has_bfloat16() -> bool:
  """Whether the processor has bfloat16 dot products; False where /proc/cpuinfo is absent."""
  flags = next(iter(_described('flags', 'Features')), '').split()
  return bool({'avx512_bf16', 'amx_bf16', 'bf16'} & set(flags))


@functools.cache
def processor() -> str:
  """Twelve hex digits of what decides which instructions compiled programs may use."""
  described = f'{platform.machine()} {platform.processor()}' + '\n'.join(
      sorted(set(_described('flags', 'model name', 'Features'))))
  return hashlib.sha256(described.encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
  """Versions of everything that numbers can depend on."""
  names = ('fmnist_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  found = {'python': platform.python_version()}
  for name in names:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = 'not installed as a package'
  return found


def cpu_name() -> str:
  """The processor's name, as it gives it."""
  named = [line.split(':', 1)[1].strip() for line in _described('model name')]
  return named[0] if named else platform.processor() or platform.machine()


def _described(*keys: str) -> list[str]:
  """The lines of /proc/cpuinfo that begin with one of these; none where there is no such file."""
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    return [line for line in lines if line.startswith(keys)]
  return []
