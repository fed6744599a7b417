"""One training step and one evaluation step: pure functions of arrays.

Nothing here knows of configs, files or devices. Any Flax module that is called as
`module.apply(variables, images, train=bool)`, with collections and RNGs of any names, any optax
transformation and any loss will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

# Streams of randomness within a step: each gets a key of its own.
DROPOUT, AUGMENT, NOISE = 0, 1, 2

Apply = Callable[..., Any]


class TrainState(flax.struct.PyTreeNode):
  """All that training carries from step to step, and all that a checkpoint needs.

  Attributes:
    step: int32 scalar, the number of steps done.
    key: uint32 [2], threefry key data; step t draws from `fold_in(key, t)` and nothing else.
    params: trainable float32 parameters.
    model_state: the module's other collections, such as BatchNorm statistics; may be empty.
    opt_state: of the optax transformation.
    ema: moving averages {'params', 'model_state'}, or None when they are not kept.
  """
  step: jax.Array
  key: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  ema: Any

  def run_key(self, stream: int | jax.Array) -> jax.Array:
    """The typed key of the run for one stream: a number of 2**31 or more, or a step."""
    return jax.random.fold_in(jax.random.wrap_key_data(self.key, impl='threefry2x32'), stream)

  def step_key(self, stream: int) -> jax.Array:
    """The typed key of this step for one stream, such as `DROPOUT`."""
    return jax.random.fold_in(self.run_key(self.step), stream)

  def rngs(self) -> dict[str, jax.Array]:
    """This step's keys for a module: Flax takes that of 'params' for every name not given."""
    return {'dropout': self.step_key(DROPOUT), 'params': self.step_key(NOISE)}

  def variables(self) -> dict[str, Any]:
    """What to evaluate with: the moving averages where they are kept, else the weights."""
    source = self.ema or {'params': self.params, 'model_state': self.model_state}
    return {'params': source['params'], **source['model_state']}


class Sums(flax.struct.PyTreeNode):
  """Sums over examples; two of them add up with `+`.

  Attributes:
    loss: float32, the sum of the examples' losses, nats.
    correct: int32, how many were classified correctly.
    count: int32, how many there were.
    bad_step: int32, the first step whose loss or gradient was not finite; -1 for none.
  """
  loss: jax.Array
  correct: jax.Array
  count: jax.Array
  bad_step: jax.Array

  @classmethod
  def zero(cls) -> Sums:
    """The sums of no examples."""
    return cls(loss=jnp.zeros((), jnp.float32), correct=jnp.zeros((), jnp.int32),
               count=jnp.zeros((), jnp.int32), bad_step=jnp.full((), -1, jnp.int32))

  def __add__(self, other: Sums) -> Sums:
    return Sums(loss=self.loss + other.loss, correct=self.correct + other.correct,
                count=self.count + other.count,
                bad_step=jnp.where(self.bad_step >= 0, self.bad_step, other.bad_step))


def init_state(module: Any, tx: optax.GradientTransformation, key: jax.Array,
               images: jax.Array, *, ema: bool = False) -> TrainState:
  """The state before the first step.

  Args:
    module: a Flax module.
    tx: an optax transformation.
    key: a typed threefry key, the root of all the run's randomness.
    images: an example batch, for its shape only.
    ema: whether to keep moving averages.
  """
  # Far from any step number, so that initialisation shares no key with a step.
  variables = module.init(jax.random.fold_in(key, 2**31), images, train=False)
  return start_state(variables, tx, jax.random.key_data(key), ema=ema)


def start_state(variables: Any, tx: optax.GradientTransformation, key: jax.Array, *,
                ema: bool = False) -> TrainState:
  """The state before the first step, with given variables of a module.

  Args:
    variables: by collection, 'params' among them.
    tx: an optax transformation.
    key: threefry key data, uint32 [2].
    ema: whether to keep moving averages.
  """
  others = dict(variables)
  params = others.pop('params')
  averages = {'params': params, 'model_state': others} if ema else None
  return TrainState(step=jnp.zeros((), jnp.int32), key=key, params=params, model_state=others,
                    opt_state=tx.init(params), ema=averages)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Softmax cross-entropy of each example, nats.

  Args:
    logits: [B, K].
    targets: class probabilities, [B, K].

  Returns:
    float32 [B].
  """
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def _average(ema: Any, new: Any, decay: float | jax.Array, step: jax.Array) -> Any:
  # A short memory at first, so that the random start is soon forgotten.
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  def average(old: jax.Array, value: jax.Array) -> jax.Array:
    # Counters and the like have no mean.
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return decay * old + (1.0 - decay) * value if floating else value

  return jax.tree.map(average, ema, new)


def _finite(tree: Any) -> jax.Array:
  """Whether all entries are: bool scalar.

  Summed as a product with ones, in which neither a NaN nor an infinity gets lost: XLA:CPU's own
  reduction of a large array takes as long as the optimiser's update.
  """
  def total(leaf: jax.Array) -> jax.Array:
    rows = leaf.reshape(-1, leaf.shape[-1] if leaf.ndim else 1)
    return jnp.sum(jnp.ones((1, len(rows)), leaf.dtype) @ rows)

  return jnp.isfinite(sum(total(leaf) for leaf in jax.tree.leaves(tree)))


def train_step(state: TrainState, images: jax.Array, targets: jax.Array, *, apply: Apply,
               tx: optax.GradientTransformation, loss: Apply = cross_entropy,
               ema_decay: float | jax.Array = 0.0) -> tuple[TrainState, Sums]:
  """One step of gradient descent on the mean loss of a batch.

  Args:
    state: before the step.
    images: float [B, H, W, C], as the module wants them.
    targets: class probabilities, float [B, K]; one-hot where nothing mixes examples.
    apply: `module.apply`, called with `train=True`, `state.rngs()` and the collections of
      `state.model_state` mutable.
    tx: the optax transformation that `state.opt_state` belongs to; one that takes extra arguments
      is given `grad_fn(params, _)`, the gradient at other parameters.
    loss: (logits, targets) -> the loss of each example, [B].
    ema_decay: of the moving averages; used if `state.ema` is kept.

  Returns:
    The state after it, and the batch's sums as measured before it.
  """
  mutable = list(state.model_state)

  def loss_fn(params: Any) -> tuple[jax.Array, Any]:
    outputs = apply({'params': params, **state.model_state}, images, train=True,
                    rngs=state.rngs(), mutable=mutable)
    logits, model_state = outputs
    return jnp.mean(loss(logits, targets)), (logits, dict(model_state))

  (mean, (logits, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  # Some want the gradient elsewhere too.
  elsewhere = lambda params, _: jax.grad(loss_fn, has_aux=True)(params)[0]
  updates, opt_state = optax.with_extra_args_support(tx).update(
      grads, state.opt_state, state.params, grad_fn=elsewhere)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema is not None:
    ema = _average(ema, {'params': params, 'model_state': model_state}, ema_decay, state.step)
  finite = jnp.isfinite(mean) & _finite(grads)
  right = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
  sums = Sums(loss=mean * len(targets), correct=jnp.sum(right, dtype=jnp.int32),
              count=jnp.full((), len(targets), jnp.int32),
              bad_step=jnp.where(finite, -1, state.step))
  return state.replace(step=state.step + 1, params=params, model_state=model_state,
                       opt_state=opt_state, ema=ema), sums


def eval_step(variables: Any, images: jax.Array, labels: jax.Array, mask: jax.Array, *,
              apply: Apply) -> Sums:
  """The sums of a batch, measured without dropout.

  Args:
    variables: of the module, e.g. `TrainState.variables()`.
    images: float [B, H, W, C].
    labels: int [B].
    mask: bool [B], False for padding, which counts nothing.
    apply: `module.apply`.
  """
  logits = apply(variables, images, train=False)
  losses = cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
  return Sums(loss=jnp.sum(jnp.where(mask, losses, 0.0)),
              correct=jnp.sum(mask & (jnp.argmax(logits, -1) == labels), dtype=jnp.int32),
              count=jnp.sum(mask, dtype=jnp.int32), bad_step=jnp.full((), -1, jnp.int32))


def predict_step(variables: Any, images: jax.Array, *, apply: Apply) -> jax.Array:
  """Class probabilities, float32 [B, K], of images [B, H, W, C]."""
  return jax.nn.softmax(apply(variables, images, train=False).astype(jnp.float32))
