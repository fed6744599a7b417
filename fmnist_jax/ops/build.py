"""Makes and loads the C++ handlers of `onednn.cc`, which call oneDNN from the PyPI wheel.

They are compiled once, for this processor and these versions, into the user's cache directory, when
they are first needed. The compiler is `$CXX`, g++ or clang++, or that of the `ziglang` package.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmnist_jax import locks, machine

HANDLERS = ('conv_forward', 'conv_data', 'conv_weights', 'norm_forward', 'norm_backward',
            'max_forward', 'max_backward', 'mean_forward', 'mean_backward', 'drop')
SOURCE = pathlib.Path(__file__).with_name('onednn.cc')
# Not -ffast-math: it would make the whole process flush small numbers to zero.
FLAGS = ('-std=c++17', '-O3', '-march=native', '-fno-math-errno', '-fno-trapping-math', '-fPIC',
         '-shared', '-w')
_RUNTIME, _HEADERS = 'onednn-cpu-gomp', 'onednn-devel-cpu-gomp'


class Unavailable(Exception):
  """Why there are no handlers, and how to get them, without a full stop."""


@functools.cache
def problem() -> str | None:
  """Loads the handlers, compiled if need be; returns why there are none, or None where there are.
  """
  try:
    _load()
    return None
  except Unavailable as error:
    return str(error)


def _load() -> None:
  if sys.platform != 'linux' or platform.machine() != 'x86_64':
    raise Unavailable(f'the wheel of oneDNN is for x86-64 Linux, not {platform.machine()} '
                      f'{sys.platform}')
  runtime = _installed(_RUNTIME, 'libdnnl.so.3')
  try:
    # By its path and for all: the handlers find it as it is.
    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
  except OSError as error:
    raise Unavailable(f'{error}; install the system\'s libgomp and libstdc++') from error
  library = ctypes.CDLL(str(compiled(runtime)))
  for name in HANDLERS:
    jax.ffi.register_ffi_target(f'fmnist_jax_{name}', jax.ffi.pycapsule(getattr(library, name)),
                                platform='cpu')
  check()


def check() -> None:
  """Convolves small whole numbers, which every precision and order of summation keeps exactly.

  Raises:
    Unavailable: when the answer is wrong.
  """
  if not np.array_equal(np.ravel(_known_answer(np.float32)), _RIGHT):
    raise Unavailable('its operations compute wrongly on this processor')


@functools.cache
def convolves_bfloat16() -> bool:
  """Whether oneDNN convolves bfloat16 on this processor: from AVX-512 on."""
  if problem():  # Registers the handlers.
    return False
  bfloat16 = np.dtype(jnp.bfloat16)
  try:
    return np.array_equal(np.ravel(_known_answer(bfloat16)), np.array(_RIGHT, bfloat16))
  except jax.errors.JaxRuntimeError:
    return False


# 1 to 16 in a square of 4, by 1 to 9 in a square of 3.
_RIGHT = (348, 393, 528, 573)


def _known_answer(dtype: Any) -> np.ndarray:
  with jax.ensure_compile_time_eval():  # Whatever is being traced meanwhile.
    results = (jax.ShapeDtypeStruct((1, 2, 2, 1), dtype),
               jax.ShapeDtypeStruct((0,), np.uint16))
    return np.asarray(jax.ffi.ffi_call('fmnist_jax_conv_forward', results)(
        np.arange(1, 17).astype(dtype).reshape(1, 4, 4, 1),
        np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1), np.zeros(0, np.float32),
        np.zeros(0, dtype), how=np.array([1, 1, 0, 0, 0, 0, 1, 1, 1], np.int64),
        window=np.array([1, 1], np.int64), relu=False)[0])


def compiled(runtime: pathlib.Path) -> pathlib.Path:
  """The compiled handlers in the cache directory, made if they are not there whole.

  Raises:
    Unavailable: when there is no compiler, or it fails, or the directory cannot be trusted.
  """
  headers = _installed(_HEADERS, 'oneapi/dnnl/dnnl.hpp').parents[2]
  identity = '\n'.join([
      hashlib.sha256(SOURCE.read_bytes()).hexdigest(), *FLAGS, machine.processor(),
      jax.__version__, importlib.metadata.version(_RUNTIME)])
  directory = machine.cache_root() / 'onednn'
  path = directory / f'{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so'
  try:
    machine.make_private(directory)
    with locks.locked(directory / '.lock'):
      if not machine.is_sealed(path):
        _compile(path, [f'-I{headers}', f'-I{headers / "oneapi" / "dnnl"}',
                        f'-I{jax.ffi.include_dir()}', str(runtime)])
  except OSError as error:
    raise Unavailable(f'{directory} cannot be used ({error.strerror or error})') from error
  return path


def _compile(path: pathlib.Path, arguments: list[str]) -> None:
  command = _compiler()
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.making-') as folder:
    fresh = pathlib.Path(folder) / 'handlers.so'
    made = subprocess.run([*command, *FLAGS, '-o', str(fresh), str(SOURCE), *arguments],
                          capture_output=True, text=True, check=False)
    if made.returncode:
      told = next((line for line in made.stderr.splitlines() if 'error' in line),
                  made.stderr[-200:])
      raise Unavailable(f'{command[0]} failed: {" ".join(told.split())[:300]}')
    machine.seal(fresh, path)


def _compiler() -> list[str]:
  for name in (os.environ.get('CXX'), 'g++', 'clang++', 'c++'):
    if name and shutil.which(name):
      return [name]
  if importlib.util.find_spec('ziglang'):
    return [sys.executable, '-m', 'ziglang', 'c++']
  raise Unavailable('there is no C++ compiler: install g++, or pip install ziglang')


def _installed(package: str, name: str) -> pathlib.Path:
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    raise Unavailable(f'oneDNN is not installed: pip install {_RUNTIME} {_HEADERS}') from None
  for file in files:
    if str(file).endswith(name) and pathlib.Path(str(file.locate())).is_file():
      return pathlib.Path(str(file.locate())).resolve()
  raise Unavailable(f'{package} lacks {name}: install it again')
