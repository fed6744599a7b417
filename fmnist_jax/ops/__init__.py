"""Convolution, pooling and dense layers in the form that is fast on each backend.

Every operation takes `implementation`: 'native' is XLA's own convolution and reduce-window, right
on GPU and TPU; 'matmul' writes the same mathematics as matrix products over shifted copies, which
XLA:CPU runs several times faster, inside loops above all. Parameters, values and gradients agree.
"""

from fmnist_jax.ops.block import conv_relu_max_pool, useful_size
from fmnist_jax.ops.convolution import conv2d, pixels, preferred_layout, to_layout
from fmnist_jax.ops.layers import (
    Conv,
    ConvBatchNormReluMaxPool,
    ConvKernel,
    ConvReluMaxPool,
    Dense,
)
from fmnist_jax.ops.normalization import batch_norm_relu_max_pool
from fmnist_jax.ops.pooling import avg_pool, max_pool
from fmnist_jax.ops.products import dense

__all__ = [
    'Conv', 'ConvBatchNormReluMaxPool', 'ConvKernel', 'ConvReluMaxPool', 'Dense', 'avg_pool',
    'batch_norm_relu_max_pool', 'conv2d', 'conv_relu_max_pool', 'default_implementation',
    'default_precision', 'dense', 'max_pool', 'pixels', 'preferred_layout', 'to_layout',
    'useful_size']


def default_implementation(platform: str) -> str:
  """'matmul' on 'cpu', 'native' elsewhere; `platform` as `jax.Device.platform` names it."""
  return 'matmul' if platform == 'cpu' else 'native'


def default_precision(platform: str) -> str:
  """'bfloat16' or 'float32': the compute precision that was measured fastest on `platform`.

  Products accumulate in float32 and parameters are float32 in both. On a CPU with AVX-512 bfloat16
  instructions products run at twice the speed of float32, on one without them XLA emulates.
  """
  if platform != 'cpu':
    return 'bfloat16' if platform == 'tpu' else 'float32'
  return 'bfloat16' if _cpu_has_bfloat16() else 'float32'


def _cpu_has_bfloat16() -> bool:
  """Whether the processor has bfloat16 dot products; False where /proc/cpuinfo is absent."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      flags = next((line for line in file if line.startswith(('flags', 'Features'))), '').split()
  except OSError:
    return False
  return bool({'avx512_bf16', 'amx_bf16', 'bf16'} & set(flags))
