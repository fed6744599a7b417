"""What ONNX Runtime makes of a model on this machine's CPU."""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnxruntime

from fmnist_jax import machine
from fmnist_jax.errors import ExportError, told
from fmnist_jax.export import onnx

BATCH = 100  # images
_MEASURED = 2000  # images, at most
_ROUNDS = 5


class Session:
  """A model in ONNX Runtime, on all cores that this process may use."""

  def __init__(self, model: bytes):
    """Raises ExportError when ONNX Runtime refuses the file of a model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.cores()
    options.log_severity_level = 4  # Errors it raises as well.
    try:
      self._session = onnxruntime.InferenceSession(model, options,
                                                   providers=['CPUExecutionProvider'])
    except Exception as error:  # Of types of its own.
      raise ExportError(f'ONNX Runtime does not take the model: {told(error)}.') from error

  def probabilities(self, images: np.ndarray) -> np.ndarray:
    """Class probabilities, float32 [N, K], of images, uint8 [N, H, W, C]."""
    parts = [self._session.run([onnx.OUTPUT], {onnx.INPUT: images[start:start + BATCH]})[0]
             for start in range(0, len(images), BATCH)]
    return np.concatenate(parts)

  def images_per_second(self, images: np.ndarray) -> float:
    """The median of five rounds over up to 2,000 images, in batches of 100."""
    images = images[:_MEASURED]
    self.probabilities(images)
    seconds = []
    for _ in range(_ROUNDS):
      began = time.perf_counter()
      self.probabilities(images)
      seconds.append(time.perf_counter() - began)
    return len(images) / statistics.median(seconds)
