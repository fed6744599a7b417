"""A recipe of `CNN` and `Muon` in PyTorch: the same network, steps, augmentation, averages, choice
of the epoch, and views of the test images. Eager, channels-last, bfloat16: its fastest mode here.

It imports nothing of the library, and gets everything as JSON in its first argument: `arrays`, an
.npz of what the library trains and tests on, and `config`, of config.json. Its last line is what
came out, as JSON.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def cnn(settings: dict[str, Any], shape: tuple[int, ...]) -> nn.Sequential:
  """The library's CNN with BatchNorm, 'SAME' padding, ReLU and max-pools, for images [H, W]."""
  if (settings['type'], settings['padding'], settings['batch_norm'], settings['activation'],
      settings['pooling'], settings['dropout']) != ('CNN', 'SAME', True, 'relu', 'max', []):
    raise SystemExit(f'There is no such network here: {settings}.')
  layers: list[nn.Module] = []
  inputs, (height, width), kernel = 1, shape, settings['kernel']
  for outputs, window in zip(settings['channels'], settings['pool']):
    for left in reversed(range(settings['convolutions'])):
      last = settings['norm_after_pool'] and window and not left
      layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=last))
      layers += [nn.BatchNorm2d(outputs)] * (not last) + [nn.ReLU(inplace=True)]
      inputs = outputs
    if window:
      layers += [nn.MaxPool2d(window)] + [nn.BatchNorm2d(outputs)] * settings['norm_after_pool']
      height, width = height // window, width // window
  layers.append(nn.Flatten())
  inputs *= height * width
  for outputs in settings['dense']:
    layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True),
               nn.Dropout(settings['dense_dropout'])]
    inputs = outputs
  network = nn.Sequential(*layers, nn.Linear(inputs, 10))
  for module in network:  # As Flax starts them: a truncated normal of variance 1 / inputs.
    if isinstance(module, nn.Conv2d | nn.Linear):
      spread = module.weight[0].numel() ** -0.5 / 0.87962566103423978
      nn.init.trunc_normal_(module.weight, 0.0, spread, -2 * spread, 2 * spread)
      if module.bias is not None:
        nn.init.zeros_(module.bias)
  return network


def check(config: dict[str, Any]) -> None:
  """Ends with a sentence when a recipe has something that is not done here."""
  optim, loss = config['optim'], config['loss']
  here = {'optim': 'Muon', 'schedule': 'OneCycle', 'nesterov': True, 'adam': [], 'clip_norm': 0.0,
          'loss': 'CrossEntropy', 'class_weights': 'none'}
  found = {'optim': optim['type'], 'schedule': optim['schedule']['type'], 'loss': loss['type']}
  found |= {name: {**optim, **loss}[name] for name in here if name not in found}
  if found != here:
    raise SystemExit(f'There is no such recipe here: {found}; there is {here}.')


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
  """The library's form of Newton and Schulz's iteration, on the smaller Gram matrix."""
  wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
  wide = wide / (wide.norm() + 1e-7)
  gram = wide @ wide.T
  one = total = torch.eye(len(gram))
  for _ in range(5):
    factor = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
    total, gram = factor @ total, factor @ gram @ factor
  wide = total @ wide
  return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon:
  """Muon for kernels, the fused Adam for the rest; torch's own Muon takes no convolutions."""

  def __init__(self, network: nn.Module, settings: dict[str, Any]):
    self.settings = settings
    self.kernels = [p for p in network.parameters() if p.ndim > 1]
    self.momenta = [torch.zeros_like(p) for p in self.kernels]
    self.adam = torch.optim.Adam([p for p in network.parameters() if p.ndim == 1], fused=True,
                                 betas=(settings['b1'], settings['b2']), eps=settings['eps'])

  @torch.no_grad()
  def step(self, share: float) -> None:
    """One step, at a share of the peak rates."""
    settings = self.settings
    rate = share * settings['learning_rate']
    gradients = [p.grad for p in self.kernels]
    torch._foreach_mul_(self.momenta, settings['momentum'])
    torch._foreach_add_(self.momenta, gradients)
    torch._foreach_add_(gradients, self.momenta, alpha=settings['momentum'])  # Nesterov's.
    torch._foreach_mul_(self.kernels, 1 - rate * settings['weight_decay'])
    for kernel, gradient in zip(self.kernels, gradients):
      matrix = gradient.reshape(len(gradient), -1)
      longer = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
      kernel.sub_(orthogonalized(matrix).view_as(kernel), alpha=rate * longer)
    self.adam.param_groups[0]['lr'] = share * settings['adam_learning_rate']
    self.adam.step()


def one_cycle(step: int, steps: int, rise: int) -> float:
  """The library's OneCycle: the share of the peak."""
  half = lambda done, of: 0.5 * (1 + math.cos(math.pi * min(done / max(of, 1), 1)))
  if step < rise:
    return 1 / 25 + (1 - 1 / 25) * (1 - half(step, rise))
  return 1e-4 + (1 - 1e-4) * half(step - rise, steps - rise)


class Augmentation:
  """Flips and moves by whole pixels, drawn for each image of a batch."""

  def __init__(self, kinds: list[dict[str, Any]], examples: int):
    settings = {kind['type']: kind for kind in kinds}
    self.alternating = 'AlternatingFlip' in settings
    if set(settings) not in ({'Flip', 'Shift'}, {'AlternatingFlip', 'Shift'}):
      raise SystemExit(f'There is no {", ".join(settings)} here; there are flips and shifts.')
    self.pixels = int(settings['Shift']['pixels'])
    self.first = torch.rand(examples) < 0.5

  def __call__(self, images: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
    """uint8 [N, H, W] -> float [N, 1, H, W]."""
    count, height, width = images.shape
    mirrored = self.first[rows] ^ (epoch % 2 == 1) if self.alternating else torch.rand(count) < 0.5
    if not self.pixels:
      moved = images
    else:
      padded = functional.pad(images, (self.pixels,) * 4)
      tops, lefts = torch.randint(0, 2 * self.pixels + 1, (2, count))
      lines = tops[:, None] + torch.arange(height)
      columns = lefts[:, None] + torch.arange(width)
      moved = padded[torch.arange(count)[:, None, None], lines[:, :, None], columns[:, None, :]]
    moved = torch.where(mirrored[:, None, None], moved.flip(2), moved)
    return (moved.float() / 255)[:, None].contiguous(memory_format=torch.channels_last)


class Averages:
  """Moving averages of weights and statistics, in a network of their own."""

  def __init__(self, network: nn.Module, decay: float):
    self.network, self.decay = copy.deepcopy(network).eval(), decay
    floats = lambda of: [v for v in of.state_dict().values() if v.is_floating_point()]
    self.mine, self.theirs = floats(self.network), floats(network)

  @torch.no_grad()
  def update(self, step: int) -> None:
    """After a step."""
    decay = min(self.decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(self.mine, self.theirs, 1 - decay)


@torch.inference_mode()
def probabilities(network: nn.Module, images: torch.Tensor, views: list[str]) -> torch.Tensor:
  """The mean over views of uint8 images [N, H, W]."""
  if set(views) - {'flip'}:
    raise SystemExit(f'There are no views {views} here.')
  found = []
  for part in images.split(500):
    x = (part.float() / 255)[:, None].contiguous(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
      every = [network(x)] + [network(x.flip(3)) for _ in views]
    found.append(sum(logits.float().softmax(1) for logits in every) / len(every))
  return torch.cat(found)


def main(spec: dict[str, Any]) -> dict[str, Any]:
  """Trains, chooses the epoch on validation images, reads the test images once."""
  config = spec['config']
  check(config)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(config['train']['seed'])
  arrays = {name: torch.from_numpy(value) for name, value in np.load(spec['arrays']).items()}
  images, labels = arrays['train_images'].squeeze(-1), arrays['train_labels'].long()
  network = cnn(config['model'], images.shape[1:]).to(memory_format=torch.channels_last)
  optimizer, augmentation = Muon(network, config['optim']), Augmentation(
      config['data']['augment'], len(images))
  averages = Averages(network, config['train']['ema_decay'])
  batch, epochs = config['data']['batch_size'], config['train']['epochs']
  steps = epochs * (len(images) // batch)
  rise = round(config['optim']['schedule']['rise'] * steps)
  step, best, kept = 0, -1.0, {}
  for epoch in range(epochs):
    network.train()
    for rows in torch.randperm(len(images)).split(batch)[:len(images) // batch]:
      x = augmentation(images[rows], rows, epoch)
      with torch.autocast('cpu', torch.bfloat16):
        logits = network(x)
      loss = functional.cross_entropy(logits.float(), labels[rows],
                                      label_smoothing=config['loss']['label_smoothing'])
      network.zero_grad(set_to_none=True)
      loss.backward()
      optimizer.step(one_cycle(step, steps, rise))
      averages.update(step)
      step += 1
    found = probabilities(averages.network, arrays['validation_images'].squeeze(-1), [])
    accuracy = (found.argmax(1) == arrays['validation_labels']).float().mean().item()
    print(f'epoch {epoch + 1}/{epochs}  validation accuracy {accuracy:.4f}', flush=True)
    if accuracy > best:
      best, kept = accuracy, copy.deepcopy(averages.network.state_dict())
  averages.network.load_state_dict(kept)
  found = probabilities(averages.network, arrays['test_images'].squeeze(-1),
                        config['evaluate']['tta'])
  right = (found.argmax(1) == arrays['test_labels']).float().mean().item()
  return {'accuracy': right, 'validation_accuracy': best, 'torch': torch.__version__}


if __name__ == '__main__':
  print(json.dumps(main(json.loads(sys.argv[1]))))
