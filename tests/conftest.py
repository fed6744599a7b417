"""Every test runs on four CPU devices, with rank promotion and warnings as errors.

Nothing is read from or written to the user's caches: prepared data and compiled programs go to a
temporary directory, one for all workers, that lives as long as the test session.
"""

import atexit
import os
import shutil
import signal
import tempfile

# A shell's background job ignores SIGINT, and so would the programs whose heed of it is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Before jax starts its backend: it reads these once.
os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + ' --xla_force_host_platform_device_count=4').strip()
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['MPLBACKEND'] = 'Agg'
if 'PYTEST_XDIST_WORKER' not in os.environ:  # Workers inherit it.
  _scratch = tempfile.mkdtemp(prefix='fmnist_jax-tests-')
  atexit.register(shutil.rmtree, _scratch, ignore_errors=True)
  os.environ['XDG_CACHE_HOME'] = os.path.join(_scratch, 'cache')
  os.environ['TFDS_DATA_DIR'] = os.path.join(_scratch, 'tfds')

import jax
import pytest

from fmnist_jax import machine, report

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tests compile the same programs again and again.
machine.setup(compile_cache=True)


@pytest.fixture(name='no_report')
def _no_report(monkeypatch):
  """Drawing takes longer than such runs; `test_report` and runs with a report see to it."""
  monkeypatch.setattr(report, 'write', lambda *_, **__: None)
