"""The peers' virtual environments: made when missing, with pinned versions."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import venv

# The default `torch` for Linux on x86-64 brings gigabytes of CUDA libraries: see the README for how
# to name an index of CPU builds.
PACKAGES = {'keras': ('tensorflow-cpu==2.21.0', 'keras==3.15.0'),
            'torch': ('torch==2.13.0', 'numpy')}


def python(library: str, folder: pathlib.Path) -> str:
  """The interpreter that runs a library's worker; this one for JAX's."""
  return str(folder / library / 'bin' / 'python') if library in PACKAGES else sys.executable


def make(library: str, folder: pathlib.Path, pip_arguments: list[str]) -> None:
  """Makes the environment of 'keras' or 'torch' below `folder`, unless it is complete.

  Raises:
    subprocess.CalledProcessError: when pip fails.
  """
  place = folder / library
  done = place / '.installed'
  wanted = ' '.join(PACKAGES[library])
  if done.is_file() and done.read_text() == wanted:
    return
  print(f'making {place}: {wanted}', flush=True)
  venv.create(place, with_pip=True, clear=True)
  subprocess.run([place / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', *PACKAGES[library],
                  *pip_arguments], check=True)
  done.write_text(wanted)
