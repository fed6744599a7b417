"""PyTorch's convolutions, channels-last, weights in the images' type."""

from __future__ import annotations

import os

import layers
import numpy as np
import torch
from torch.nn import functional


def make(x: np.ndarray, w: np.ndarray, padding: int, stride: int, groups: int,
         dtype: str) -> tuple[layers.Loop, layers.Loop]:
  """See `layers.run`."""
  place = lambda array, *axes: torch.from_numpy(array).permute(*axes).to(
      getattr(torch, dtype)).contiguous(memory_format=torch.channels_last)
  images, kernel = place(x, 0, 3, 1, 2), place(w, 3, 2, 0, 1)
  conv = lambda x, w: functional.conv2d(x, w, None, stride, padding, 1, groups)
  leaves = [tensor.clone().requires_grad_() for tensor in (images, kernel)]
  gradient = torch.ones_like(conv(images, kernel))

  def forward(count: int) -> None:
    with torch.inference_mode():
      for _ in range(count):
        conv(images, kernel)

  def everything(count: int) -> None:
    for _ in range(count):
      torch.autograd.grad(conv(*leaves), leaves, gradient)
  return forward, everything


if __name__ == '__main__':
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  layers.run(make)
