"""An ONNX model in 8 bits, by static quantisation (arXiv:1712.05877)."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import onnx as onnx_format
from onnxruntime import quantization
from onnxruntime.quantization import quant_utils

from fmnist_jax.export import onnx
from fmnist_jax.export.runtime import BATCH


class _Images(quantization.CalibrationDataReader):
  """Images in batches, as the quantiser asks for them."""

  def __init__(self, images: np.ndarray):
    self._batches = (images[start:start + BATCH] for start in range(0, len(images), BATCH))

  def get_next(self) -> dict[str, np.ndarray] | None:
    """The input of the model for the next batch; None after the last."""
    batch = next(self._batches, None)
    return None if batch is None else {onnx.INPUT: batch}


def quantized(model: bytes, images: np.ndarray) -> bytes:
  """A model whose convolutions, products and pools take and make 8-bit numbers.

  Weights are int8, a scale a channel, and use 7 bits of them: there are processors on which the
  sum of two products of 8 bits does not fit. Activations are uint8, the range of each being that
  which these images show. Pixels become fractions, and logits probabilities, in float32. Equal
  arguments give equal bytes.

  Args:
    model: the file of `onnx.build`.
    images: training images, uint8 [N, H, W, C].
  """
  whole = onnx_format.shape_inference.infer_shapes(onnx_format.load_from_string(model))
  properties = {entry.key: entry.value for entry in whole.metadata_props}
  quant_utils.add_pre_process_metadata(whole)  # Its shapes are known, else the quantiser warns.
  kept = [node.name for node in whole.graph.node if node.output[0] in (onnx.SCALED, onnx.OUTPUT)]
  with tempfile.TemporaryDirectory(prefix='fmnist_jax-') as folder:
    path = pathlib.Path(folder, 'model.onnx')
    quantization.quantize_static(
        whole, path, _Images(images), per_channel=True, reduce_range=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=kept,
        extra_options={'OpTypesToExcludeOutputQuantization': ['Gemm']})  # Logits are not rounded.
    found = onnx_format.load(path)
  onnx_format.helper.set_model_props(found, properties)
  onnx_format.checker.check_model(found)
  return found.SerializeToString(deterministic=True)
