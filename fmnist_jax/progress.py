"""What a person sees while a run goes on: the architecture, a bar or a line an epoch."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import flax.linen as nn
import jax
import jax.numpy as jnp
from tqdm import tqdm

from fmnist_jax import models, processes
from fmnist_jax.freezing import Freezing


def introduction(config: Any, dataset: Any, device: str, members: str = '') -> str:
  """What is about to be trained: data, devices, and a table of the layers.

  Args:
    config: with nothing left to 'auto'.
    dataset: dealt out.
    device: in words.
    members: how many there are, in words, where there are several.
  """
  validation = len(dataset.validation) if dataset.validation else 0
  module = models.build(config.model, dataset.num_classes, models.Compute())
  return (f'{dataset.name}: {len(dataset.train):,} training, {validation:,} validation examples, '
          f'{config.data.residency}; {members}{device}, {config.train.precision}, '
          f'{config.train.operations} operations\n'
          f'{architecture(module, dataset.image_shape, config.train.freeze)}')


def architecture(module: nn.Module, image_shape: tuple[int, int, int],
                 freeze: Sequence[str] = ()) -> str:
  """A table of the layers of a module: name, output shape, number of parameters.

  Args:
    module: built with `models.Compute()`, whose layers do one thing each.
    image_shape: (H, W, C).
    freeze: patterns of what is not trained, see `freezing`.
  """
  rows: list[tuple[str, tuple[int, ...], int]] = []

  def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    first = len(rows)
    output = call(*args, **kwargs)
    # What holds other layers has said it all; what returns its input as it is, such as dropout at
    # rate 0, is not there.
    if (context.method_name == '__call__' and context.module.path and len(rows) == first
        and hasattr(output, 'shape') and not (args and output is args[0])):
      own = context.module.variables.get('params', {})
      rows.append(('/'.join(context.module.path), output.shape[1:],
                   sum(leaf.size for leaf in jax.tree.leaves(own))))
    return output

  def trace(images: jax.Array) -> Any:
    with nn.intercept_methods(note):
      return module.init(jax.random.key(0), images, train=False)['params']

  params = jax.eval_shape(trace, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  rows = [('input', image_shape, 0), *rows]
  width = max(len(name) for name, _, _ in rows) + 2
  lines = [f'{"layer":<{width}}{"output":<14}{"parameters":>12}']
  lines += [f'{name:<{width}}{" x ".join(map(str, shape)):<14}{f"{count:,}" if count else "":>12}'
            for name, shape, count in rows]
  trained = sum(leaf.size for leaf in Freezing(freeze).trained(params))
  lines.append(f'{"total":<{width}}{"":<14}{total:>12,}')
  if trained < total:
    lines.append(f'{"trained":<{width}}{"":<14}{trained:>12,}')
  return '\n'.join(lines)


def epoch_line(record: Mapping[str, Any], epochs: int, best: bool) -> str:
  """A line of metrics.jsonl as a person reads it."""
  width = len(str(epochs))
  text = (f'epoch {record["epoch"]:>{width}}/{epochs}'
          f'  {record["images_per_second"]:>8,.0f} images/s'
          f'  train loss {record["train_loss"]:.4f} acc {record["train_accuracy"]:6.2%}')
  if 'validation_loss' in record:
    text += (f'  validation loss {record["validation_loss"]:.4f} '
             f'acc {record["validation_accuracy"]:6.2%}')
  return text + ('  best' if best else '')


def bar(total: int, what: str) -> tqdm:
  """A bar for work before training, on a terminal; nothing elsewhere.

  Args:
    total: how many steps there are; `update` tells of some.
    what: is done, in words.
  """
  return tqdm(total=total, desc=what, file=sys.stderr, leave=False, dynamic_ncols=True,
              disable=None, bar_format='{desc} {percentage:3.0f}%|{bar}| {remaining} left')


class Console:
  """A progress bar on a terminal, one line an epoch elsewhere; silent but in process 0.

  Used as a context, so that the bar is closed whatever happens.
  """

  def __init__(self, stream: TextIO | None = None, *, silent: bool = False):
    """Args: `stream` is where to write, standard output by default; silent: nowhere."""
    self._stream = (stream or sys.stdout) if processes.is_primary() and not silent else None
    self._bar: tqdm | None = None

  def __enter__(self) -> Console:
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._stream is None:
      return
    with self._while_there():
      if self._bar is None:
        # One write: members in threads share the stream, and `print` writes the newline by itself.
        self._stream.write(f'{text}\n')
        self._stream.flush()
      else:
        self._bar.clear()
        self._bar.write(text, file=self._stream)

  @contextlib.contextmanager
  def _while_there(self) -> Iterator[None]:
    """Where the terminal is gone the run goes on without it, or is told to leave and saves."""
    try:
      yield
    except OSError as error:
      if error.errno != errno.EIO:
        raise
      self._stream = self._bar = None

  def start(self, total_steps: int, done: int) -> None:
    """Shows the bar, where the stream is a terminal."""
    if self._bar is not None:
      self._bar.close()
    if self._stream is not None and self._stream.isatty():
      self._bar = tqdm(total=total_steps, initial=done, unit='step', file=self._stream,
                       dynamic_ncols=True, smoothing=0.1,
                       bar_format='{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}')

  def update(self, step: int, epoch: int, epochs: int, loss: float, accuracy: float) -> None:
    """Moves the bar to `step`, with the running means of the epoch."""
    if self._bar is not None:
      with self._while_there():
        self._bar.set_description(f'epoch {epoch}/{epochs}', refresh=False)
        self._bar.set_postfix_str(f'loss {loss:.4f} acc {accuracy:.2%}', refresh=False)
        self._bar.update(step - self._bar.n)
