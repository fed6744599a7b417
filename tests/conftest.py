"""Every test runs on four CPU devices, with rank promotion and warnings as errors."""

import os

# Before jax starts its backend: it reads these once.
os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + ' --xla_force_host_platform_device_count=4').strip()
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('MPLBACKEND', 'Agg')

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
