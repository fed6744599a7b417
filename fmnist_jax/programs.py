"""The compiled programs of a run: initialise, order, train many steps a call, evaluate, predict.

A single run and a member of a population share them. They are traced with a config whose
continuous settings are arrays (`hyper`), so one compilation serves every value of them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from fmnist_jax import config as config_lib
from fmnist_jax import data, machine, models, ops, settings, sharding, step, views
from fmnist_jax.errors import ConfigError
from fmnist_jax.freezing import Freezing
from fmnist_jax.optimizers import Horizon

# Streams of the root key that no step uses: `fold_in` of a number no step reaches.
_ORDER_STREAM, _EXAMPLE_STREAM = 2**31 + 1, 2**31 + 2


def hyper_arrays(config: config_lib.Config) -> dict[str, jax.Array]:
  """The continuous settings in use as float32 scalars, by dotted name."""
  return {name: jnp.asarray(value, jnp.float32)
          for name, value in config_lib.continuous(config).items()}


class _Seconds(threading.local):
  """What each thread spent, see `Programs`."""
  compile = paused = 0.0


class Programs:
  """The pure functions of a run and their compiled forms.

  The functions are methods named `init`, `order`, `train`, `evaluate` and `predict`; `call` runs
  one, compiled for its arguments' shapes once.

  Attributes:
    config: with nothing left to 'auto'.
    mesh: what the programs run on.
    layout: how state and sums are placed: whole on every device.
    horizon: how long the run is.
    freezing: what is not trained.
    compile_seconds: that this thread spent compiling so far.
    paused_seconds: those, and what it waited for another thread to compile what it needed too.
  """

  def __init__(self, config: config_lib.Config, mesh: Mesh, image_shape: tuple[int, int, int],
               num_classes: int, train_examples: int, class_counts: np.ndarray | None = None):
    """Prepares; nothing is compiled yet.

    Args:
      config: with nothing left to 'auto'.
      mesh: what to run on.
      image_shape: (H, W, C).
      num_classes: K.
      train_examples: the size of the training set, which gives steps per epoch.
      class_counts: how many of them are of each class, int [K]; None: nothing is to be trained.
    """
    self.config, self.mesh, self.layout = config, mesh, sharding.replicated(mesh)
    self.image_shape, self.num_classes = image_shape, num_classes
    self.class_counts = class_counts
    self.train_examples = train_examples
    self.horizon = Horizon(train_examples // config.data.batch_size, config.train.epochs)
    if self.horizon.steps >= 2**31:  # Steps are counted in 32 bits.
      raise ConfigError(f'train.epochs is {settings.shown(config.train.epochs)}: with '
                        f'{self.horizon.steps_per_epoch:,} steps an epoch there may be at most '
                        f'{(2**31 - 1) // self.horizon.steps_per_epoch:,}.')
    self.freezing = Freezing(config.train.freeze)
    self._seconds = _Seconds()
    self._compiled: dict[Any, Any] = {}
    self._lock = threading.Lock()

  @property
  def compile_seconds(self) -> float:
    """See the class."""
    return self._seconds.compile

  @property
  def paused_seconds(self) -> float:
    """See the class."""
    return self._seconds.paused

  @property
  def module(self) -> Any:
    """The Flax module."""
    return self._module(self.config)

  def _module(self, config: config_lib.Config) -> Any:
    return models.build(config.model, self.num_classes, models.Compute(
        jnp.dtype(config.train.precision), config.train.operations))

  def _optimizer(self, config: config_lib.Config) -> optax.GradientTransformation:
    return self.freezing.optimizer(config.optim.build(self.horizon))

  def put(self, tree: Any) -> Any:
    """Places host arrays: state, sums, hyper."""
    return sharding.put(tree, self.layout)

  def number(self, value: int) -> jax.Array:
    """An int32 scalar, whole on every device."""
    return self.put(np.int32(value))

  def epochs(self, value: int) -> jax.Array:
    """The number of an epoch, for `order`."""
    return self.number(value)

  def zero(self) -> step.Sums:
    """Sums of nothing, placed."""
    return self.put(step.Sums.zero())

  # The functions.

  def init(self, seed: jax.Array, hyper: dict[str, jax.Array]) -> step.TrainState:
    """The state before the first step of the run with this seed (int32 scalar)."""
    config = config_lib.replace(self.config, hyper)
    images = jnp.zeros((1, *self.image_shape), jnp.float32)
    return step.init_state(self._module(config), self._optimizer(config),
                           jax.random.key(seed, impl='threefry2x32'), images,
                           ema=config_lib.is_on(config.train.ema_decay))

  def adopt(self, state: step.TrainState, variables: Any,
            hyper: dict[str, jax.Array]) -> step.TrainState:
    """The state before the first step with other variables in place of its own."""
    config = config_lib.replace(self.config, hyper)
    return step.start_state(variables, self._optimizer(config), state.key,
                            ema=state.ema is not None)

  def order(self, key_data: jax.Array, epoch: jax.Array) -> jax.Array:
    """Which examples each step of an epoch takes: int32 [steps, batch]."""
    key = jax.random.wrap_key_data(key_data, impl='threefry2x32')
    return data.epoch_order(jax.random.fold_in(key, _ORDER_STREAM), epoch, self.train_examples,
                            self.config.data.batch_size)

  def train(self, state: step.TrainState, sums: step.Sums, hyper: dict[str, jax.Array],
            images: jax.Array, labels: jax.Array, order: jax.Array, start: jax.Array,
            stop: jax.Array) -> tuple[step.TrainState, step.Sums]:
    """Steps `start` to `stop` - 1 of an epoch.

    Args:
      state: donated.
      sums: of the epoch so far.
      hyper: values of the continuous settings.
      images: uint8, the whole training set [N, H, W, C], or the batches of these steps alone
        [stop - start, B, H, W, C].
      labels: int32 [N] or [stop - start, B]; or class probabilities, with a further axis.
      order: which examples each step of the epoch takes, int32 [steps of the epoch, B].
      start: first step, counted from the epoch's start.
      stop: after the last step.
    """
    config = config_lib.replace(self.config, hyper)
    apply, tx = self.freezing.apply(self._module(config)), self._optimizer(config)
    split = sharding.by_example(self.mesh)
    loss = config.loss.weighed(self.class_counts)

    def body(t: jax.Array, carry: tuple[step.TrainState, step.Sums]) -> Any:
      state, sums = carry
      if images.ndim == 5:
        batch, batch_labels = images[t - start], labels[t - start]
      else:
        take = lambda all_: all_.at[order[t]].get(mode='promise_in_bounds')
        batch, batch_labels = take(images), take(labels)
      batch = jax.lax.with_sharding_constraint(batch, split)
      batch_labels = jax.lax.with_sharding_constraint(batch_labels, split)
      # Compiled alike wherever the batch came from, so that streaming it changes no bit.
      batch, batch_labels = jax.lax.optimization_barrier((batch, batch_labels))
      targets = (batch_labels if jnp.issubdtype(batch_labels.dtype, jnp.floating)
                 else jax.nn.one_hot(batch_labels, self.num_classes))
      place = data.Place(state.run_key(_EXAMPLE_STREAM),
                         state.step // self.horizon.steps_per_epoch,
                         jax.lax.with_sharding_constraint(order[t], split))
      batch, targets = data.augment(config.data.augment, state.step_key(step.AUGMENT), batch,
                                    targets, place)
      after, new = step.train_step(state, self._input(batch), targets, apply=apply, tx=tx,
                                   loss=loss, ema_decay=config.train.ema_decay)
      return self.freezing.kept(state, after), sums + new

    return jax.lax.fori_loop(start, stop, body, (state, sums))

  def _input(self, images: jax.Array) -> jax.Array:
    """What the module takes: float32 in [0, 1], or bytes too where it scales them itself."""
    return images if getattr(self.config.model, 'takes_bytes', False) else ops.pixels(images)

  def evaluate(self, variables: Any, sums: step.Sums, images: jax.Array, labels: jax.Array,
               mask: jax.Array) -> step.Sums:
    """Adds a batch (uint8 [B, H, W, C], int32 [B], bool [B]) to the sums."""
    return sums + step.eval_step(variables, images, labels, mask, apply=self._apply)

  def predict(self, variables: Any, images: jax.Array) -> jax.Array:
    """Class probabilities, float32 [B, K], of images [B, H, W, C]: uint8, or float in [0, 1].

    With `evaluate.tta`, the mean over the views of each image.
    """
    alone = functools.partial(step.predict_step, variables, apply=self._apply)
    kinds = self.config.evaluate.tta
    return views.mean_over(kinds, alone, images) if kinds else alone(images)

  def _apply(self, variables: Any, images: jax.Array, *, train: bool) -> jax.Array:
    """The module's logits, on a CPU of as many images at a time as its cache holds.

    Images in several devices' parts stay there, together.
    """
    module, count = self.module, len(images)
    size = getattr(self.config.model, 'cached_examples', 0)
    apply = lambda part: module.apply(variables, self._input(part), train=train)
    whole = self.config.train.operations == 'native' or self.mesh.size > 1
    if whole or not size or count <= size:
      return apply(images)

    def body(index: jax.Array, logits: jax.Array) -> jax.Array:
      start = jnp.minimum(index * size, count - size)  # The last part overlaps the one before.
      part = apply(jax.lax.dynamic_slice_in_dim(images, start, size))
      return jax.lax.dynamic_update_slice_in_dim(logits, part.astype(logits.dtype), start, 0)

    return jax.lax.fori_loop(0, -(-count // size), body,
                             jnp.zeros((count, self.num_classes), jnp.float32))

  # Their compiled forms.

  def call(self, function: Callable, *args: Any, donate: Sequence[int] = ()) -> Any:
    """Calls one of the functions, compiled for these arguments; the memory of those at the
    positions `donate` may be taken over.
    """
    return self.compiled(function, *args, donate=donate)(*args)

  def _options(self) -> dict[str, bool | str] | None:
    """For the compiler. CPUs and TPUs give the same bits in every run anyway."""
    wanted = self.config.train.deterministic and sharding.platform(self.mesh) == 'gpu'
    return {'xla_gpu_deterministic_ops': True} if wanted else None

  def compiled(self, function: Callable, *args: Any, donate: Sequence[int] = (),
               layout: NamedSharding | None = None) -> Any:
    """`function` compiled for arguments of these shapes and shardings, once.

    Args:
      function: one of the methods above, or one derived from them.
      *args: arrays or `jax.ShapeDtypeStruct`s with shardings.
      donate: positions of arguments whose memory the result may take over.
      layout: of the result; `self.layout` by default.
    """
    leaves, structure = jax.tree.flatten(args)
    signature = (function.__name__, structure, tuple((x.shape, str(x.dtype)) for x in leaves))
    if signature in self._compiled:
      return self._compiled[signature]
    began = time.perf_counter()
    with self._lock:  # Members of a population may train in several threads.
      alone = time.perf_counter()
      if signature not in self._compiled:
        self._compiled[signature] = jax.jit(
            function, donate_argnums=tuple(donate),
            out_shardings=layout or self.layout).lower(*args).compile(self._options())
        machine.return_memory()
    now = time.perf_counter()
    self._seconds.compile += now - alone
    self._seconds.paused += now - began
    return self._compiled[signature]
