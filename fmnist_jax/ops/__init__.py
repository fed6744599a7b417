"""Convolution, pooling and dense layers in the form that is fast on each backend.

Every operation takes `implementation`: 'native' is XLA's own convolution and reduce-window, right
on GPU and TPU; 'onednn' calls oneDNN on CPUs (see `onednn` and `build`); 'matmul' writes the same
mathematics as matrix products over shifted copies, for CPUs that have no oneDNN: there XLA's own
are several times slower, inside loops above all. Parameters, values and gradients agree.
"""

from absl import logging

from fmnist_jax import machine
from fmnist_jax.ops import build
from fmnist_jax.ops.block import conv_relu_max_pool, useful_size
from fmnist_jax.ops.convolution import conv2d, pixels
from fmnist_jax.ops.layers import (
    AvgPool,
    BatchNorm,
    Conv,
    ConvBatchNorm,
    ConvKernel,
    ConvReluMaxPool,
    Dense,
    MaxPool,
)
from fmnist_jax.ops.normalization import batch_norm
from fmnist_jax.ops.pooling import avg_pool, max_pool
from fmnist_jax.ops.products import dense

__all__ = [
    'AvgPool', 'BatchNorm', 'Conv', 'ConvBatchNorm', 'ConvKernel', 'ConvReluMaxPool', 'Dense',
    'MaxPool', 'avg_pool', 'batch_norm', 'conv2d', 'conv_relu_max_pool', 'default_implementation',
    'default_precision', 'dense', 'max_pool', 'pixels', 'useful_size']


def default_implementation(platform: str, devices: int = 1) -> str:
  """What was measured fastest: 'native' on accelerators, on CPUs 'onednn' where it can be had.

  Args:
    platform: as `jax.Device.platform` names it.
    devices: that share a batch. Over several CPU devices it is 'matmul', which XLA divides.
  """
  if platform != 'cpu':
    return 'native'
  if devices > 1:
    return 'matmul'
  problem = build.problem()
  if problem:
    logging.warning('Convolutions are matrix products, up to 4 times as slow as oneDNN\'s: %s.',
                    problem)
  return 'matmul' if problem else 'onednn'


def default_precision(platform: str) -> str:
  """'bfloat16' or 'float32': the compute precision that was measured fastest on `platform`.

  Products accumulate in float32 and parameters are float32 in both. On a CPU with AVX-512 bfloat16
  instructions products run at twice the speed of float32, on one without them XLA emulates.
  """
  if platform != 'cpu':
    return 'bfloat16' if platform == 'tpu' else 'float32'
  return 'bfloat16' if machine.has_bfloat16() else 'float32'
