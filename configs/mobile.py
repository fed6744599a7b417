"""Inverted residuals with depthwise convolutions and squeeze-and-excitation; flips, small shifts:
161,942 parameters.

  python -m fmnist_jax.main --config=configs/mobile.py

Not measured yet: its recipe is that of `cnn_blocks`, and has not been run to its end.
"""

from fmnist_jax.config import (
    SGD,
    Config,
    CrossEntropy,
    Data,
    Flip,
    MobileNet,
    OneCycle,
    Shift,
    Train,
)


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Shift(1))),
      model=MobileNet(stem=16, channels=(16, 24, 40, 80), expansion=(1, 4, 4, 4),
                      blocks=(1, 2, 2, 2), strides=(1, 2, 2, 1), kernels=(3, 3, 3, 3), head=320,
                      squeeze=4),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=SGD(learning_rate=0.1, weight_decay=1e-3, schedule=OneCycle()),
      train=Train(epochs=30, ema_decay=0.999))
