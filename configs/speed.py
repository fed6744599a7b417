"""Few wide convolutions after one of patches, to be accurate soon; flips, small shifts:
290,224 parameters.

  python -m fmnist_jax.main --config=configs/speed.py

Not measured yet: its recipe is that of `cnn_blocks`, and has not been run to its end.
"""

from fmnist_jax.config import (
    SGD,
    Config,
    CrossEntropy,
    Data,
    Flip,
    OneCycle,
    Shift,
    SpeedNet,
    Train,
)


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Shift(1))),
      model=SpeedNet(kernel=2, channels=(32, 64, 128)),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=SGD(learning_rate=0.1, weight_decay=1e-3, schedule=OneCycle()),
      train=Train(epochs=10, ema_decay=0.99))
