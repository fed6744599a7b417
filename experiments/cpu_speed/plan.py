"""What is measured: models, batch sizes and modes, and the order of measurements."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

WORKERS = {'ours': 'ours.py', 'flax': 'flax_plain.py', 'keras': 'keras_peer.py',
           'torch': 'torch_peer.py'}
PEERS = ('keras', 'torch')
# A mode this many times slower than its library's best in its precision is measured once, and not
# at all at other batch sizes when it is so much slower than the best in any. 'ours' is measured
# again in every round.
CONTENDER, OTHER_BATCHES = 1.3, 1.5
TARGET_ACCURACIES = (0.90, 0.915)


@dataclasses.dataclass(frozen=True)
class Mode:
  """A way to run a library.

  Attributes:
    name: in results.json.
    label: for people.
    library: 'ours', 'flax', 'keras' or 'torch'.
    options: that its worker reads, beside those that all have.
    models: it makes sense for.
  """
  name: str
  label: str
  library: str
  options: Mapping[str, Any]
  models: tuple[str, ...]


def _keras(**options: Any) -> dict[str, Any]:
  return {'jit_compile': False, 'steps_per_execution': 1, 'input': 'arrays', 'bf16': False,
          **options}


def _torch(**options: Any) -> dict[str, Any]:
  return {'channels_last': False, 'bf16': False, 'compile': False, **options}


CNNS = ('cnn', 'cnn_blocks', 'cnn_deep', 'cnn_dropout', 'resnet')
_ALL = ('mlp', *CNNS)
# Modes that compile for minutes and are far behind are not tried with the deeper networks.
_SHALLOW = ('mlp', 'cnn')
MODES = {mode.name: mode for mode in (
    Mode('ours', 'fmnist_jax', 'ours', {'precision': 'auto'}, _ALL),
    Mode('ours_float32', 'fmnist_jax, float32', 'ours', {'precision': 'float32'}, _ALL),
    Mode('flax', 'Flax, plain', 'flax', {}, _SHALLOW),
    Mode('keras', 'Keras', 'keras', _keras(), _SHALLOW),
    Mode('keras_data', 'Keras, tf.data, 32 steps a call', 'keras',
         _keras(input='tf.data', steps_per_execution=32), _ALL),
    Mode('keras_bf16', 'Keras, mixed_bfloat16', 'keras', _keras(bf16=True), _ALL),
    Mode('keras_jit', 'Keras, jit_compile', 'keras', _keras(jit_compile=True), _SHALLOW),
    Mode('torch', 'PyTorch', 'torch', _torch(), _SHALLOW),
    Mode('torch_last', 'PyTorch, channels-last', 'torch', _torch(channels_last=True), CNNS),
    Mode('torch_bf16', 'PyTorch, channels-last, bf16', 'torch',
         _torch(channels_last=True, bf16=True), CNNS),
    Mode('torch_mlp_bf16', 'PyTorch, bf16', 'torch', _torch(bf16=True), ('mlp',)),
    Mode('torch_compile', 'PyTorch, compile', 'torch', _torch(compile=True), _SHALLOW),
    Mode('torch_compile_bf16', 'PyTorch, compile, bf16', 'torch',
         _torch(channels_last=True, compile=True, bf16=True), _ALL),
)}
# The modes that compute in float32.
FLOAT32 = ('ours_float32', 'keras', 'keras_data', 'keras_jit', 'torch', 'torch_last',
           'torch_compile')

SETTINGS = (('mlp', 128), ('cnn', 128), ('cnn', 32), ('cnn', 512), ('cnn_blocks', 128),
            ('cnn_deep', 128), ('cnn_dropout', 128), ('resnet', 128))
QUICK_SETTINGS = (('mlp', 128), ('cnn', 128), ('cnn_blocks', 128), ('cnn_deep', 128),
                  ('cnn_dropout', 128), ('resnet', 128))


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is measured.

  Attributes:
    settings: (model, batch size).
    rounds: how often each contender is measured.
    train_examples: an epoch has at most as many.
    seconds: of epochs timed in one process; at least one epoch, at most five.
    warmup_steps: before that, to compile and to settle.
    max_epochs: to reach an accuracy.
    seeds: of the comparison of accuracies.
    epochs: of it, by model.
  """
  settings: tuple[tuple[str, int], ...] = SETTINGS
  rounds: int = 3
  train_examples: int = 55_000
  seconds: float = 6.0
  warmup_steps: int = 64
  max_epochs: int = 12
  seeds: int = 8
  epochs: Mapping[str, int] = dataclasses.field(default_factory=lambda: {'mlp': 10, 'cnn': 5})


QUICK = Size(settings=QUICK_SETTINGS, rounds=1, train_examples=10_000, seconds=2.0,
             warmup_steps=10, max_epochs=2, seeds=2, epochs={'mlp': 1, 'cnn': 1})
PARITY_MODES = ('ours', 'keras', 'torch_last', 'torch_bf16', 'torch', 'torch_mlp_bf16')


def key(spec: Mapping[str, Any]) -> tuple[Any, ...]:
  """What tells one measurement from the others."""
  return tuple(spec.get(name) for name in (
      'task', 'mode', 'model', 'batch', 'round', 'seed', 'train_examples', 'start'))


def _spec(task: str, mode: Mode, model: str, batch: int, size: Size, **more: Any) -> dict[str, Any]:
  return {'task': task, 'mode': mode.name, 'library': mode.library, **mode.options, 'model': model,
          'batch': batch, 'train_examples': size.train_examples,
          'examples': size.train_examples // batch * batch, 'round': 0, 'seed': 0, **more}


def contenders(medians: Mapping[str, float], factor: float, *, by_precision: bool) -> set[str]:
  """The modes whose seconds an epoch are within `factor` of their library's best; not Flax."""
  group = lambda name: (MODES[name].library, by_precision and name in FLOAT32)
  best: dict[Any, float] = {}
  for name, seconds in medians.items():
    best[group(name)] = min(seconds, best.get(group(name), seconds))
  return {name for name, seconds in medians.items()
          if seconds <= factor * best[group(name)] and name != 'flax'}


def speed(size: Size, medians: Callable[[str, int], Mapping[str, float]]) -> Iterator[dict]:
  """Measurements of epochs and inference, round by round, in an order that changes.

  Args:
    size: how much.
    medians: (model, batch) -> mode -> seconds an epoch measured so far; asked when its turn comes.
  """
  for number in range(size.rounds):
    for model, batch in size.settings:
      modes = [mode for mode in MODES.values() if model in mode.models]
      chosen = set()
      if number:
        chosen = contenders(medians(model, batch), CONTENDER, by_precision=True) | {'ours'}
        if (model, batch) == ('cnn', 128):  # What plain Flax is compared on.
          chosen.add('flax')
      elif batch != 128:
        chosen = contenders(medians(model, 128), OTHER_BATCHES, by_precision=False)
      if chosen:
        modes = [mode for mode in modes if mode.name in chosen]
      random.Random(f'{number} {model} {batch}').shuffle(modes)
      for mode in modes:
        # Compiling for each batch size takes torch.compile half a minute.
        batches = [500] if mode.options.get('compile') else [125, 500, 2000]
        yield _spec('speed', mode, model, batch, size, round=number, seconds=size.seconds,
                    seed=number, warmup_steps=size.warmup_steps, inference_batches=batches)


def layers() -> Iterator[dict]:
  """Measurements of convolutions alone."""
  for library in ('ours', 'torch'):
    yield {'task': 'layers', 'mode': library, 'library': library}


def time_to(size: Size, best: Callable[[str], str]) -> Iterator[dict]:
  """Measurements from process start to an accuracy; `best` names a library's fastest mode."""
  for number in range(size.rounds):
    for start in ('warm',) if number else ('cold', 'warm'):
      yield {'task': 'time_to', 'mode': 'ours', 'library': 'ours', 'model': 'cnn', 'batch': 128,
             'train_examples': size.train_examples, 'round': number, 'seed': number,
             'start': start}
    for library in PEERS:
      yield _spec('time_to', MODES[best(library)], 'cnn', 128, size, round=number, seed=number,
                  max_epochs=size.max_epochs, until=max(TARGET_ACCURACIES), start='-')


def parity(size: Size) -> Iterator[dict]:
  """Measurements of accuracy after equal epochs, seed by seed."""
  for seed in range(size.seeds):
    for model, epochs in size.epochs.items():
      for name in PARITY_MODES:
        mode = MODES[name]
        # For an MLP channels-last is nothing; for CNNs it is only faster.
        if model in mode.models and not (model == 'cnn' and name == 'torch'):
          yield _spec('parity', mode, model, 128, size, seed=seed, epochs=epochs)
