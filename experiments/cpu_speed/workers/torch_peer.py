"""PyTorch: eager, channels-last, bf16 autocast, torch.compile.

The data are tensors in memory and batches are rows taken by a permutation: no DataLoader, which
would only add to the time. Adam is the fused one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
import torch
from torch import nn
from torch.nn import functional


class _Residual(nn.Module):
  """relu(x + two convolutions of x), with BatchNorm."""

  def __init__(self, inputs: int, outputs: int, stride: int):
    super().__init__()
    conv = lambda size, before, step: (
        nn.Conv2d(before, outputs, size, step, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs))
    self.body = nn.Sequential(*conv(3, inputs, stride), nn.ReLU(), *conv(3, outputs, 1))
    same = (inputs, stride) == (outputs, 1)
    self.shortcut = nn.Identity() if same else nn.Sequential(*conv(1, inputs, stride))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return functional.relu(self.body(x) + self.shortcut(x))


def _network(model: str) -> nn.Sequential:
  if model == 'mlp':
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
  if model == 'cnn':
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10))
  layers: list[nn.Module] = []
  if model == 'resnet':
    layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
      layers += [_Residual(inputs, outputs, stride), _Residual(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
  if model == 'cnn_deep':
    inputs = 1
    for outputs, rate in ((16, 0.1), (32, 0.1), (64, 0.2)):
      for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
                   nn.ReLU()]
      layers += [nn.MaxPool2d(2), nn.Dropout(rate)]
      inputs = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Dropout(0.3),
                         nn.Linear(128, 10))
  if model == 'cnn_dropout':
    return nn.Sequential(
        nn.Conv2d(1, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Conv2d(64, 128, 3),
        nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.4), nn.Conv2d(128, 256, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(2304, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
  for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
    layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
               nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
  return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1152, 128), nn.ReLU(), nn.Dropout(0.3),
                       nn.Linear(128, 10))


class Torch:
  """A `protocol.Subject`."""

  def __init__(self, spec: dict[str, Any], images: np.ndarray, labels: np.ndarray):
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
                          else os.cpu_count() or 1)
    torch.manual_seed(spec['seed'])
    self.versions = {'torch': torch.__version__}
    self.spec = spec
    self.format = (torch.channels_last if spec['channels_last'] else torch.contiguous_format)
    self.network = _network(spec['model']).to(memory_format=self.format)
    self.optimizer = torch.optim.Adam(
        self.network.parameters(), lr=protocol.LEARNING_RATE, eps=protocol.EPSILON,
        betas=(protocol.BETA_1, protocol.BETA_2), fused=True)
    self.images, self.labels = self._place(images), torch.from_numpy(labels.astype(np.int64))
    self.loss = torch.compile(self._loss) if spec['compile'] else self._loss

  def _place(self, images: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(protocol.unit(images)).permute(0, 3, 1, 2)
    return tensor.contiguous(memory_format=self.format)

  def _autocast(self) -> Any:
    if self.spec['bf16']:
      return torch.autocast('cpu', torch.bfloat16)
    return contextlib.nullcontext()

  def _loss(self, images: torch.Tensor,
            labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with self._autocast():
      logits = self.network(images)
    return functional.cross_entropy(logits.float(), labels), (logits.argmax(1) == labels).sum()

  def train(self, examples: int) -> None:
    """See `protocol.Subject`."""
    self.network.train()
    loss_sum, correct_sum = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for rows in torch.randperm(examples).split(self.spec['batch']):
      loss, correct = self.loss(self.images[rows], self.labels[rows])
      self.optimizer.zero_grad(set_to_none=True)
      loss.backward()
      self.optimizer.step()
      loss_sum += loss.detach() * len(rows)
      correct_sum += correct
    if not np.isfinite(loss_sum.item()):
      raise RuntimeError('The loss is not finite.')

  def predictor(self, batch: int, *, timed: bool) -> protocol.Predictor:
    """See `protocol.Subject`."""
    network: Any = self.network.eval()
    dtype = torch.float32
    if timed and self.spec['bf16']:  # Faster than autocast, which converts weights every call.
      network = _network(self.spec['model']).to(memory_format=self.format)
      network.load_state_dict(self.network.state_dict())
      dtype = torch.bfloat16
      network.eval().to(dtype)
    if timed and self.spec['compile']:
      network = torch.compile(network, options={'freezing': True})

    def place(images: np.ndarray) -> Callable[[], np.ndarray]:
      tensor = self._place(images).to(dtype)

      def predict() -> np.ndarray:
        with torch.inference_mode():
          return torch.cat([functional.softmax(network(part).float(), 1)
                            for part in tensor.split(batch)]).numpy()
      return predict
    return place


if __name__ == '__main__':
  protocol.run(Torch)
