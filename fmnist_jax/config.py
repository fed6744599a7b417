"""Every setting of a run, once: type, unit, default, range.

A config is plain dataclasses holding scalars and tuples; 0 or an empty tuple disables a feature.
There is one dataclass a model family, one an optimiser and one a schedule, so a field that exists
is a field that is used. The fields named by `continuous` may be replaced by traced arrays inside
a compiled program; that is how members of a population differ without compiling again.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_type_hints

from fmnist_jax.errors import ConfigError


def _field(default, help_text: str, *, low=None, high=None, choices=(), continuous=False,
           open_high=False):
  """A dataclass field whose metadata drives validation, `--help` and populations.

  Args:
    default: the default value.
    help_text: meaning and unit, one line.
    low: smallest value allowed (of each entry, for tuples).
    high: largest value allowed.
    choices: the values allowed, for strings.
    continuous: whether members of a population may differ in it.
    open_high: whether `high` itself is excluded.
  """
  metadata = {'help': help_text, 'low': low, 'high': high, 'choices': tuple(choices),
              'continuous': continuous, 'open_high': open_high}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Augment:
  """Random changes to training images, drawn anew each epoch; 0 disables each."""
  flip: float = _field(0.0, 'probability of a horizontal flip', low=0, high=1, continuous=True)
  shift: float = _field(0.0, 'largest shift along each axis, pixels', low=0, high=64,
                        continuous=True)
  rotation: float = _field(0.0, 'largest rotation either way, degrees', low=0, high=180,
                           continuous=True)
  zoom: float = _field(0.0, 'largest relative zoom in or out (0.1: 0.9 to 1.1)', low=0, high=1,
                       open_high=True, continuous=True)
  erasing: float = _field(0.0, 'probability of erasing a random rectangle (arXiv:1708.04896)',
                          low=0, high=1, continuous=True)


@dataclasses.dataclass
class Data:
  """Where images come from and how they are dealt out."""
  name: str = _field('fashion_mnist',
                     'fashion_mnist, mnist, synthetic, or the path of a .npz of one\'s own')
  data_dir: str = _field('', 'folder holding the four original .gz files; empty: look in '
                         '$FMNIST_DATA_DIR, then in the usual caches, then download')
  train_examples: int = _field(0, 'use only the first N training examples, validation included; '
                               '0: all (synthetic: 60,000)', low=0, high=2**30)
  test_examples: int = _field(0, 'use only the first N test examples; 0: all (synthetic: 10,000)',
                              low=0, high=2**30)
  validation_examples: int = _field(5000, 'taken from the training set, class-balanced, the same '
                                    'for every seed; 0: no validation, the last epoch is kept',
                                    low=0)
  batch_size: int = _field(128, 'training examples a step, over all devices', low=1)
  residency: str = _field('auto', 'resident: the whole set on the device; streamed: batches are '
                          'read ahead from disk; auto: resident when it fits',
                          choices=('auto', 'resident', 'streamed'))
  offline_fallback: bool = _field(False, 'train on the synthetic set, loudly, when the data set '
                                  'cannot be had')
  augment: Augment = dataclasses.field(default_factory=Augment)


ACTIVATIONS = ('relu', 'gelu', 'silu', 'tanh')
WIDEST = 2**20  # Channels of a layer: beyond it shapes overflow.


@dataclasses.dataclass
class MLP:
  """Flatten, then dense layers, each followed by activation and dropout; a linear head."""
  hidden: tuple[int, ...] = _field((128,), 'width of each hidden layer', low=1, high=WIDEST)
  activation: str = _field('relu', 'non-linearity', choices=ACTIVATIONS)
  dropout: float = _field(0.0, 'rate after each hidden layer', low=0, high=1, open_high=True,
                          continuous=True)


@dataclasses.dataclass
class CNN:
  """Blocks of convolution (+ BatchNorm), activation, pool, dropout; then dense layers; a head.

  The tuples `channels` and `pool` have one entry a block; `dropout` too, or it is empty.
  """
  channels: tuple[int, ...] = _field((32, 64), 'output channels of each block', low=1,
                                      high=WIDEST)
  convolutions: int = _field(1, 'convolutions in each block', low=1, high=16)
  kernel: int = _field(3, 'side of the square kernels, pixels', low=1, high=31)
  padding: str = _field('VALID', 'SAME keeps height and width, VALID crops',
                        choices=('SAME', 'VALID'))
  pool: tuple[int, ...] = _field((2, 2), 'side and stride of the pool that ends each block; '
                                 '0: no pool', low=0, high=64)
  pooling: str = _field('max', 'kind of pool', choices=('max', 'average'))
  batch_norm: bool = _field(False, 'BatchNorm between convolution and activation')
  activation: str = _field('relu', 'non-linearity', choices=ACTIVATIONS)
  dropout: tuple[float, ...] = _field((), 'rate after each block; empty: none', low=0, high=1,
                                      open_high=True, continuous=True)
  dense: tuple[int, ...] = _field((128,), 'width of each dense layer after the blocks', low=1,
                                   high=WIDEST)
  dense_dropout: float = _field(0.0, 'rate after each dense layer', low=0, high=1,
                                open_high=True, continuous=True)


@dataclasses.dataclass
class Constant:
  """The learning rate stays, after a linear warm-up."""
  warmup_epochs: float = _field(0.0, 'linear warm-up, epochs', low=0)


@dataclasses.dataclass
class Cosine:
  """Linear warm-up, then half a cosine down to `final` times the peak (arXiv:1608.03983)."""
  warmup_epochs: float = _field(0.0, 'linear warm-up, epochs', low=0)
  final: float = _field(0.0, 'learning rate at the end, as a share of the peak', low=0, high=1,
                        continuous=True)


@dataclasses.dataclass
class OneCycle:
  """Cosine rise from peak/25 to the peak, cosine fall to peak/10,000 (arXiv:1708.07120)."""
  rise: float = _field(0.3, 'share of the run spent rising', low=0, high=1, open_high=True)


@dataclasses.dataclass
class Step:
  """The learning rate is multiplied by `factor` at the end of each epoch named."""
  epochs: tuple[float, ...] = _field((10, 15), 'epochs after which it drops', low=0)
  factor: float = _field(0.1, 'what it is multiplied by', low=0, high=1, continuous=True)
  warmup_epochs: float = _field(0.0, 'linear warm-up, epochs', low=0)


Schedule = Union[Constant, Cosine, OneCycle, Step]


@dataclasses.dataclass
class Adam:
  """Adam (arXiv:1412.6980)."""
  learning_rate: float = _field(1e-3, 'peak learning rate', low=0, continuous=True)
  b1: float = _field(0.9, 'decay of the mean of gradients', low=0, high=1, open_high=True,
                     continuous=True)
  b2: float = _field(0.999, 'decay of the mean of squares', low=0, high=1, open_high=True,
                     continuous=True)
  eps: float = _field(1e-8, 'added to the root in the denominator', low=0, continuous=True)
  clip_norm: float = _field(0.0, 'largest global norm of the gradient; 0: no clipping', low=0,
                            continuous=True)
  schedule: Schedule = dataclasses.field(default_factory=Constant)


@dataclasses.dataclass
class AdamW(Adam):
  """Adam with decoupled weight decay, not on biases and norms (arXiv:1711.05101)."""
  weight_decay: float = _field(1e-4, 'times the learning rate, taken from the weights each step',
                               low=0, continuous=True)


@dataclasses.dataclass
class SGD:
  """Stochastic gradient descent with Nesterov momentum and decoupled weight decay."""
  learning_rate: float = _field(0.05, 'peak learning rate', low=0, continuous=True)
  momentum: float = _field(0.9, 'decay of the velocity', low=0, high=1, open_high=True,
                           continuous=True)
  nesterov: bool = _field(True, 'look ahead along the velocity')
  weight_decay: float = _field(0.0, 'times the learning rate, taken from the weights each step',
                               low=0, continuous=True)
  clip_norm: float = _field(0.0, 'largest global norm of the gradient; 0: no clipping', low=0,
                            continuous=True)
  schedule: Schedule = dataclasses.field(default_factory=Constant)


@dataclasses.dataclass
class Train:
  """The loop."""
  epochs: int = _field(20, 'passes over the training set', low=1)
  seed: int = _field(0, 'of initialisation, order of the data, dropout, augmentation', low=0,
                     high=2**31 - 1)
  label_smoothing: float = _field(0.0, 'share of the target spread over all classes', low=0,
                                  high=1, open_high=True, continuous=True)
  ema_decay: float = _field(0.0, 'moving average of weights and BatchNorm statistics, a step; '
                            'validation, best and results then use the average', low=0, high=1,
                            open_high=True, continuous=True)
  monitor: str = _field('validation_accuracy', 'what chooses the best epoch',
                        choices=('validation_accuracy', 'validation_loss'))
  early_stopping_patience: int = _field(0, 'stop after this many epochs without a new best; '
                                        '0: never', low=0)
  precision: str = _field('auto', 'compute precision; parameters are float32 always; auto: '
                          'bfloat16 where measured faster at equal accuracy',
                          choices=('auto', 'float32', 'bfloat16'))
  operations: str = _field('auto', 'convolution and pooling: native XLA or matrix products; auto: '
                           'the fast form for the backend', choices=('auto', 'native', 'matmul'))
  steps_per_dispatch: int = _field(64, 'training steps in one call of the compiled program; '
                                   'signals act between calls', low=1)
  checkpoint_every_seconds: float = _field(300.0, 'within long epochs; one is saved after every '
                                           'epoch anyway; 0: only then', low=0)
  devices: int = _field(0, 'how many devices to use; 0: all', low=0)
  deterministic: bool = _field(False, 'on GPU, only operations whose bits do not vary from run '
                               'to run (slower); CPU and TPU need no switch')
  compile_cache: bool = _field(True, 'keep compiled programs in the user\'s cache directory')


@dataclasses.dataclass
class Evaluate:
  """What happens after the last epoch."""
  split: str = _field('test', 'what results.json is measured on; use validation while working on '
                      'a recipe', choices=('test', 'validation'))
  batch_size: int = _field(500, 'examples a step, over all devices', low=1, high=2**16)


Model = Union[MLP, CNN]
Optim = Union[AdamW, Adam, SGD]


@dataclasses.dataclass
class Config:
  """A whole run."""
  data: Data = dataclasses.field(default_factory=Data)
  model: Model = dataclasses.field(default_factory=CNN)
  optim: Optim = dataclasses.field(default_factory=AdamW)
  train: Train = dataclasses.field(default_factory=Train)
  evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)


# Where things lie and what is displayed: a run may be continued with these changed.
LOCATION_FIELDS = frozenset({'data.data_dir', 'data.offline_fallback', 'train.compile_cache'})


def section_types(section_type: type, name: str) -> tuple[type, ...]:
  """The dataclasses a section may be, or the one type of a plain field."""
  hint = get_type_hints(section_type)[name]
  return get_args(hint) if get_args(hint) and dataclasses.is_dataclass(get_args(hint)[0]) else (
      hint,)


def leaves(section: Any, prefix: str = '') -> Iterator[tuple[str, Any, dataclasses.Field]]:
  """Yields (dotted name, value, dataclass field) for every scalar or tuple of a config."""
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, f'{prefix}{field.name}.')
    else:
      yield prefix + field.name, value, field


def continuous(config: Config) -> dict[str, float]:
  """The continuous settings that are in use: dotted name -> value, 'model.dropout.0' for entries.

  A setting of 0 is a feature switched off, absent from the compiled program, and not listed.
  """
  found = {}
  for name, value, field in leaves(config):
    if field.metadata['continuous']:
      entries = {f'{name}.{i}': entry for i, entry in enumerate(value)} if isinstance(
          value, tuple) else {name: value}
      found.update({key: entry for key, entry in entries.items() if is_on(entry)})
  return found


def is_on(value: Any) -> bool:
  """Whether a setting enables its feature: not the Python number 0 and not an empty tuple.

  Arrays, traced ones included, count as on: which features a program has must be known when it
  is traced.
  """
  if isinstance(value, tuple):
    return any(is_on(entry) for entry in value)
  return not (isinstance(value, (int, float)) and value == 0)


def replace(config: Config, values: Mapping[str, Any]) -> Config:
  """A copy of `config` with dotted fields replaced, unchecked; `name.0` is an entry of a tuple.

  Raises:
    ConfigError: for a field that does not exist, naming the nearest one that does.
  """
  left = dict(values)

  def copy(section: Any, prefix: str) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(section):
      name, value = prefix + field.name, getattr(section, field.name)
      if dataclasses.is_dataclass(value):
        value = copy(value, f'{name}.')
      elif name in left:
        value = left.pop(name)
      elif isinstance(value, tuple):
        value = tuple(left.pop(f'{name}.{i}', entry) for i, entry in enumerate(value))
      changes[field.name] = value
    return dataclasses.replace(section, **changes)

  result = copy(config, '')
  if left:
    raise ConfigError(unknown_field(next(iter(left)), [name for name, _, _ in leaves(config)]))
  return result


def unknown_field(name: str, known: list[str]) -> str:
  """One sentence about a mistyped field, naming the nearest real one."""
  # Names of megabytes are not compared: that takes minutes.
  nearest = difflib.get_close_matches(name[:80], sorted(known), n=1, cutoff=0.5)
  if nearest:
    return f'There is no config field {shown(name)}; did you mean {nearest[0]!r}?'
  sections = dict.fromkeys(field.split('.')[0] for field in known)
  return f'There is no config field {shown(name)}; the sections are {", ".join(sections)}.'


def shown(value: Any) -> str:
  """A value as a sentence can hold it."""
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # Integers of thousands of digits have no text.
    return f'some {type(value).__name__}'
  return text if len(text) <= 80 else f'{text[:60]}... ({len(text):,} characters)'


def _check_number(name: str, value: Any, limits: Mapping[str, Any]) -> None:
  low, high = limits['low'], limits['high']
  if isinstance(value, float) and not math.isfinite(value):
    raise ConfigError(f'{name} is {value}; it must be a finite number.')
  too_high = high is not None and (value > high or (limits['open_high'] and value == high))
  if (low is not None and value < low) or too_high:
    bounds = [f'at least {low}' if low is not None else '',
              f'{"below" if limits["open_high"] else "at most"} {high}' if high is not None
              else '']
    raise ConfigError(f'{name} is {shown(value)}; it must be '
                      f'{" and ".join(filter(None, bounds))}.')


# A network of more layers than this is a mistake, and would take minutes to trace.
_MOST_ENTRIES = 256
_PLAIN = {'str': str, 'int': int, 'float': float, 'bool': bool}


def _check_type(name: str, value: Any, kind: str) -> Any:
  """Returns `value` as the type named, ints widened to floats; raises ConfigError."""
  if kind.startswith('tuple['):
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f'{name} is {shown(value)}; it must be a tuple such as (32, 64).')
    if len(value) > _MOST_ENTRIES:
      raise ConfigError(f'{name} has {len(value):,} entries; it must have at most '
                        f'{_MOST_ENTRIES}.')
    inner = kind.removeprefix('tuple[').split(',')[0]
    return tuple(_check_type(f'{name}[{i}]', entry, inner) for i, entry in enumerate(value))
  wanted = _PLAIN[kind]
  if wanted is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError:
      raise ConfigError(f'{name} is {shown(value)}; it must be a finite number.') from None
  if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
    words = {str: 'a string', int: 'a whole number', float: 'a number', bool: 'true or false'}
    raise ConfigError(f'{name} is {shown(value)}; it must be {words[wanted]}.')
  return value


def validate(config: Config) -> Config:
  """Checks every field's type and range and what fields mean together.

  Returns:
    A copy with numbers widened to their field's type (1 -> 1.0).

  Raises:
    ConfigError: one sentence naming the field, its value and what it must be.
  """
  if not isinstance(config, Config):
    raise ConfigError(f'A config must be a fmnist_jax.config.Config, not '
                      f'{type(config).__name__}: let get_config() return one.')
  _check_sections(config, '')
  checked = {}
  for name, value, field in leaves(config):
    value = _check_type(name, value, str(field.type))
    for i, entry in enumerate(value if isinstance(value, tuple) else (value,)):
      if isinstance(entry, (int, float)) and not isinstance(entry, bool):
        _check_number(f'{name}[{i}]' if isinstance(value, tuple) else name, entry, field.metadata)
    if field.metadata['choices'] and value not in field.metadata['choices']:
      raise ConfigError(f'{name} is {shown(value)}; it must be one of '
                        f'{", ".join(field.metadata["choices"])}.')
    checked[name] = value
  config = replace(config, checked)
  _check_together(config)
  return config


def _check_sections(section: Any, prefix: str) -> None:
  for field in dataclasses.fields(section):
    types = section_types(type(section), field.name)
    if not dataclasses.is_dataclass(types[0]):
      continue
    value = getattr(section, field.name)
    if type(value) not in types:
      raise ConfigError(f'{prefix}{field.name} is {shown(value)}; it must be one of '
                        f'{", ".join(t.__name__ for t in types)} of fmnist_jax.config.')
    _check_sections(value, f'{prefix}{field.name}.')


def _check_together(config: Config) -> None:
  model, data = config.model, config.data
  if isinstance(model, CNN):
    blocks = len(model.channels)
    if len(model.pool) != blocks:
      raise ConfigError(f'model.pool has {len(model.pool)} entries for {blocks} blocks in '
                        'model.channels; give one entry a block, 0 for no pool.')
    if model.dropout and len(model.dropout) != blocks:
      raise ConfigError(f'model.dropout has {len(model.dropout)} entries for {blocks} blocks in '
                        'model.channels; give one entry a block, or () for none.')
  known = ('fashion_mnist', 'mnist', 'synthetic')
  if data.name not in known and not data.name.endswith('.npz'):
    raise ConfigError(f'data.name is {shown(data.name)}; it must be one of {", ".join(known)}, or '
                      'the path of a .npz file.')
  if data.train_examples and data.validation_examples >= data.train_examples:
    raise ConfigError(f'data.validation_examples is {data.validation_examples}, but '
                      f'data.train_examples is {data.train_examples}: nothing is left to train on.')
  if not data.validation_examples:
    if config.train.early_stopping_patience:
      raise ConfigError('train.early_stopping_patience needs validation data, but '
                        'data.validation_examples is 0.')
    if config.evaluate.split == 'validation':
      raise ConfigError("evaluate.split is 'validation', but data.validation_examples is 0.")


def to_json(config: Config) -> dict[str, Any]:
  """A config as plain JSON values; every section of several kinds names its own in `type`."""
  def encode(section: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(section):
      value = getattr(section, field.name)
      if dataclasses.is_dataclass(value):
        kinds = section_types(type(section), field.name)
        tag = {'type': type(value).__name__} if len(kinds) > 1 else {}
        result[field.name] = {**tag, **encode(value)}
      else:
        result[field.name] = list(value) if isinstance(value, tuple) else value
    return result
  return encode(config)


def from_json(values: Mapping[str, Any]) -> Config:
  """The validated config that `to_json` wrote.

  Raises:
    ConfigError: for missing, unknown or ill-typed fields.
  """
  def decode(section_type: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
      raise ConfigError(f'{prefix.rstrip(".") or "The config"} must be a JSON object.')
    fields = {field.name: field for field in dataclasses.fields(section_type)}
    for name in values:
      if name not in fields:
        raise ConfigError(unknown_field(prefix + str(name), [prefix + f for f in fields]))
    arguments: dict[str, Any] = {}
    for name in fields:
      if name not in values:
        raise ConfigError(f'The config lacks the field {prefix}{name}.')
      kinds = section_types(section_type, name)
      value = values[name]
      if dataclasses.is_dataclass(kinds[0]):
        kind = kinds[0]
        if len(kinds) > 1:
          names = {k.__name__: k for k in kinds}
          tag = value.get('type') if isinstance(value, Mapping) else None
          if not isinstance(tag, str) or tag not in names:
            raise ConfigError(f'{prefix}{name}.type is {shown(tag)}; it must be one of '
                              f'{", ".join(names)}.')
          kind = names[tag]
          value = {k: v for k, v in value.items() if k != 'type'}
        arguments[name] = decode(kind, value, f'{prefix}{name}.')
      else:
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return section_type(**arguments)
  return validate(decode(Config, values, ''))


def differences(a: Config, b: Config) -> list[str]:
  """One line a field in which two runs differ, but for `LOCATION_FIELDS`: 'name: x -> y'."""
  def flat(config: Config) -> dict[str, Any]:
    kinds = {'model': type(config.model).__name__, 'optim': type(config.optim).__name__,
             'optim.schedule': type(config.optim.schedule).__name__}
    return kinds | {name: value for name, value, _ in leaves(config)}
  left, right = flat(a), flat(b)
  names = [name for name in {**left, **right} if name not in LOCATION_FIELDS]
  missing = object()
  return [f'{name}: {json.dumps(left[name]) if name in left else "absent"} -> '
          f'{json.dumps(right[name]) if name in right else "absent"}'
          for name in names if left.get(name, missing) != right.get(name, missing)]
