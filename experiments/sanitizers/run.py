"""Runs what onednn.cc computes under gcc's sanitizers, then with faults planted; see README.md.

  python experiments/sanitizers/run.py            # a quarter of an hour on two cores
  python experiments/sanitizers/run.py --quick    # only BatchNorm; changes nothing here
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import record

from fmnist_jax import command, machine
from fmnist_jax.errors import UserError
from fmnist_jax.interrupt import Interrupt
from fmnist_jax.ops import build

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = build.SOURCE.read_text()
# Bsymbolic: else the linker takes templates of the standard library from libraries not watched.
FLAGS = ('-std=c++17', '-O1', '-g', '-fno-omit-frame-pointer', '-march=native', '-fPIC', '-shared',
         '-w', '-Wl,-Bsymbolic', '-include', str(HERE / 'prelude.h'))
ADDRESS, THREAD = 'AddressSanitizer, UndefinedBehaviorSanitizer', 'ThreadSanitizer'
# Scratch memory of just the size that is asked for, so that its end is watched.
EXACT = (('sizes[slot] < bytes', 'sizes[slot] != bytes'),
         ('sizes[slot] = rounded', 'sizes[slot] = bytes'),
         ('std::aligned_alloc(64, rounded)', 'memalign(64, bytes)'))
# These are not compiled for ThreadSanitizer; what they copy, allocate and free is not looked at.
SUPPRESSIONS = ''.join(f'called_from_lib:{name}\n' for name in (
    'libjax_common.so', 'libdnnl.so', 'libgomp.so', 'libstdc++.so', 'libgcc_s.so',
    '_multiarray_umath.'))
# Library, flags, changes of the source, variable with options.
SANITIZERS = {
    ADDRESS: ('asan', ('-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'), EXACT,
              'ASAN_OPTIONS', 'detect_leaks=0:detect_stack_use_after_return=1'),
    THREAD: ('tsan', ('-fsanitize=thread',), (), 'TSAN_OPTIONS', 'suppressions=')}
# Sanitizer, what is wrong, right text, wrong text, operations to call, what must be told.
FAULTS = (
    (ADDRESS, 'one byte too many of a gradient is cleared', 's.in() * sizeof(T));',
     's.in() * sizeof(T) + 1);', 'max_pool', 'heap-buffer-overflow'),
    (ADDRESS, 'random bits are written past the end of scratch memory', 'bits[i] = a ^ b;',
     'bits[i + 1] = a ^ b;', 'dropout', 'heap-buffer-overflow'),
    (ADDRESS, 'one byte too many between images side by side is cleared',
     '0, whole - used);', '0, whole - used + 1);', 'conv2d', 'heap-buffer-overflow'),
    (ADDRESS, 'a shift by all 32 bits', 'x >> (32 - by)', 'x >> (45 - by)', 'dropout',
     'shift exponent 32'),
    (THREAD, 'all parts add to the sums of the first', '&sums[part * 2 * c]', '&sums[0]', 'norm',
     'data race'),
    (THREAD, 'the caller goes on before all parts are done',
     'shared->done.wait(lock, [&] { return shared->left == 0; });', '', 'norm', 'data race'),
    (THREAD, 'nothing guards the table of primitives', 'std::lock_guard<std::mutex> lock(mutex);',
     '', 'conv2d', 'data race'))
TOLD = re.compile(r'(?:ERROR: AddressSanitizer: |WARNING: ThreadSanitizer: |runtime error: )'
                  r'(.*?)(?: on address| \(pid|$)', re.MULTILINE)


def watch(sanitizer: str, right: str, wrong: str, word: str) -> dict[str, Any]:
  """Compiles onednn.cc for a sanitizer and calls the operations that have `word` in their name.

  Args:
    sanitizer: a key of SANITIZERS.
    right: a text of the source.
    wrong: what is put in its place.
    word: '' for all operations.

  Returns:
    How many results agreed, what the sanitizer told, and the last that was printed.
  """
  library, flags, changes, variable, options = SANITIZERS[sanitizer]
  source = SOURCE
  for old, new in (*changes, (right, wrong)):
    if old not in source:
      raise UserError(f'onednn.cc has no {old!r} any more; write what it has now into run.py.')
    source = source.replace(old, new)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    build.SOURCE, build.FLAGS = folder / 'onednn.cc', (*FLAGS, *flags)
    build.SOURCE.write_text(source)
    (folder / 'suppressions').write_text(SUPPRESSIONS)
    os.environ.update(XDG_CACHE_HOME=name, CXX='g++')
    made = build.compiled(build._installed(build._RUNTIME, 'libdnnl.so.3'))
    find = lambda file: subprocess.run(['g++', f'-print-file-name={file}'], check=True, text=True,
                                       capture_output=True).stdout.strip()
    options += str(folder / 'suppressions') if options.endswith('=') else ''
    done = subprocess.run(
        [sys.executable, str(HERE / 'program.py'), str(made), *word.split()], check=False,
        capture_output=True, text=True, errors='replace', env={
            **os.environ, variable: options, 'JAX_PLATFORMS': 'cpu', 'NPROC': '4',
            'PYTHONPATH': str(HERE.parents[1]),
            # And where exceptions are thrown, or AddressSanitizer does not find it.
            'LD_PRELOAD': f'{find(f"lib{library}.so")} {find("libstdc++.so.6")}'})
  agreed = re.search(r'agreed: (\d+)', done.stdout)
  return {'agreed': int(agreed[1]) if agreed else 0, 'code': done.returncode,
          'told': TOLD.findall(done.stderr), 'stderr': done.stderr[:5000]}


def main(interrupt: Interrupt) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='only BatchNorm and no planted faults')
  args = parser.parse_args()
  rows, failed = [['onednn.cc', 'agreed with jax.lax', 'told']], 0
  plan = [(sanitizer, 'as it is', '', '', 'norm' * args.quick, '') for sanitizer in SANITIZERS]
  for sanitizer, what, right, wrong, word, expected in plan + list(FAULTS) * (not args.quick):
    found = watch(sanitizer, right, wrong, word)
    told = sorted(set(found['told']))
    clean = found['agreed'] and not told and not found['code']
    good = expected in ' '.join(told) if expected else clean
    rows.append([f'{what}: {sanitizer}', f'{found["agreed"]:,}', ', '.join(told) or 'nothing'])
    print(*rows[-1], sep=' | ', flush=True)
    if not good:
      failed += 1
      print(found['stderr'], file=sys.stderr)
  if failed:
    raise UserError(f'{failed} of {len(rows) - 1} did not end as they should; see above.')
  compiler = subprocess.run(['g++', '-dumpfullversion'], check=True, text=True,
                            capture_output=True).stdout.strip()
  results = {'rows': rows, 'versions': {'gcc': compiler, **machine.versions()}}
  record.Experiment(HERE, pathlib.Path('runs/experiments-quick'), args, interrupt).save(
      results, f'{record.table(rows)}\n\n{os.cpu_count()} cores, gcc {compiler}, '
      f'jax {results["versions"]["jax"]}.')


if __name__ == '__main__':
  command.run(main, leave=False)
