"""A whole run as one config: six sections, four of which anything of the right kind may fill.

`data`, `model`, `loss` and `optim` build what they describe (see `DataSource`, `Model`, `Loss`,
`UpdateRule`); a section of one's own stands there with the rights of those in this library. `train`
and `evaluate` are the loop's own. Config files import what they need from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fmnist_jax import settings, views
from fmnist_jax.data.augmentations import (
    Affine,
    AlternatingFlip,
    Augmentation,
    CutMix,
    Flip,
    MixUp,
    RandomErasing,
    Shift,
)
from fmnist_jax.data.rand_augment import RandAugment
from fmnist_jax.data.source import Data, DataSource
from fmnist_jax.errors import ConfigError
from fmnist_jax.losses import CrossEntropy, Distillation, Loss
from fmnist_jax.models import CNN, MLP, MobileNet, Model, ResNet, SpeedNet, ViT
from fmnist_jax.optimizers import (
    SAM,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Lookahead,
    Muon,
    OneCycle,
    Optimizer,
    Schedule,
    Step,
    UpdateRule,
)
from fmnist_jax.settings import continuous, is_on, leaves, replace, setting, to_json

__all__ = [
    'CNN', 'MLP', 'SAM', 'SGD', 'Adam', 'AdamW', 'Affine', 'AlternatingFlip', 'Augmentation',
    'Config', 'Constant', 'Cosine', 'CrossEntropy', 'CutMix', 'Data', 'DataSource', 'Distillation',
    'Evaluate', 'Flip', 'Lookahead', 'Loss', 'MixUp', 'MobileNet', 'Model', 'Muon', 'OneCycle',
    'Optimizer', 'RandAugment', 'RandomErasing', 'ResNet', 'Schedule', 'Shift', 'SpeedNet', 'Step',
    'Train', 'UpdateRule', 'ViT', 'continuous', 'differences', 'from_json', 'is_on', 'leaves',
    'replace', 'setting', 'to_json', 'validate']


@dataclasses.dataclass
class Train:
  """The loop."""
  epochs: int = setting(20, 'passes over the training set', low=1)
  seed: int = setting(0, 'of initialisation, order of the data, dropout, augmentation', low=0,
                      high=2**31 - 1)
  ema_decay: float = setting(0.0, 'moving average of weights and BatchNorm statistics, a step; '
                             'validation, best and results then use the average', low=0, high=1,
                             open_high=True, continuous=True)
  monitor: str = setting('validation_accuracy', 'what chooses the best epoch',
                         choices=('validation_accuracy', 'validation_loss'))
  early_stopping_patience: int = setting(0, 'stop after this many epochs without a new best; '
                                         '0: never', low=0)
  precision: str = setting('auto', 'compute precision; parameters are float32 always; auto: '
                           'bfloat16 where measured faster at equal accuracy',
                           choices=('auto', 'float32', 'bfloat16'))
  operations: str = setting('auto', 'convolution and pooling: native XLA, oneDNN or matrix '
                            'products; auto: the fast form for the backend',
                            choices=('auto', 'native', 'onednn', 'matmul'))
  steps_per_dispatch: int = setting(64, 'training steps in one call of the compiled program; '
                                    'signals act between calls', low=1)
  checkpoint_every_seconds: float = setting(300.0, 'within long epochs; one is saved after every '
                                            'epoch anyway; 0: only then', low=0)
  init_from: str = setting('', 'work directory of a run whose best weights to start from, layer by '
                           'layer where names and shapes fit; empty: from none')
  freeze: tuple[str, ...] = setting((), 'layers to leave as they are: patterns over their names, '
                                    'such as Conv_* or Dense_0/kernel; empty: train all')
  devices: int = setting(0, 'how many devices to use; 0: all', low=0)
  deterministic: bool = setting(False, 'on GPU, only operations whose bits do not vary from run '
                                'to run (slower); CPU and TPU need no switch')
  tensorboard: bool = setting(False, 'keep an event file for TensorBoard in the work directory '
                              '(extra: tensorboard)', location=True)
  compile_cache: bool = setting(True, 'keep compiled programs in the user\'s cache directory',
                                location=True)


@dataclasses.dataclass
class Evaluate:
  """What happens after the last epoch."""
  split: str = setting('test', 'what results.json is measured on; use validation while working on '
                       'a recipe', choices=('test', 'validation'))
  batch_size: int = setting(500, 'examples a step, over all devices', low=1, high=2**16)
  tta: tuple[str, ...] = setting((), 'test-time augmentation for results.json, evaluate and '
                                 'predict: the mean over mirrored images (flip), over images moved '
                                 'by a pixel (shift), or both; not while training',
                                 choices=views.KINDS)


@dataclasses.dataclass
class Config:
  """A whole run."""
  data: DataSource = dataclasses.field(default_factory=Data)
  model: Model = dataclasses.field(default_factory=CNN)
  loss: Loss = dataclasses.field(default_factory=CrossEntropy)
  optim: UpdateRule = dataclasses.field(default_factory=AdamW)
  train: Train = dataclasses.field(default_factory=Train)
  evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)

  def check_settings(self, _: str) -> None:
    """Raises ConfigError when validation data is needed and there is none."""
    if self.data.validation_examples:
      return
    if self.train.early_stopping_patience:
      raise ConfigError('train.early_stopping_patience needs validation data, but '
                        'data.validation_examples is 0.')
    if self.evaluate.split == 'validation':
      raise ConfigError("evaluate.split is 'validation', but data.validation_examples is 0.")


def validate(config: Any) -> Config:
  """`settings.validate` for a whole config.

  Raises:
    ConfigError: one sentence naming the field, its value and what it must be.
  """
  if not isinstance(config, Config):
    raise ConfigError(f'A config must be a fmnist_jax.Config, not {type(config).__name__}: let '
                      'get_config() return one.')
  return settings.validate(config)


def from_json(values: Mapping[str, Any]) -> Config:
  """The validated config that `to_json` wrote.

  Raises:
    ConfigError: for missing, unknown or ill-typed fields, and for a section of a kind that is not
      loaded: nothing is imported here.
  """
  return validate(settings.from_json(Config, values))


def differences(a: Config, b: Config) -> list[str]:
  """One line a field in which two runs differ, but for locations: 'train.seed: 0 -> 3'."""
  return settings.differences(a, b, settings.locations(a) | settings.locations(b))
