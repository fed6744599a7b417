"""CIFAR-10 with the network of arXiv:2404.00498 for its 94 %, here with ReLU; random crops, flips:
1,972,816 parameters. Not measured: no copy of CIFAR-10 was at hand.

  python -m fmnist_jax.main --config=configs/cifar10_speed.py

CIFAR-10 is looked for and downloaded as Fashion-MNIST is.
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
      data=Data(name='cifar10', augment=(Flip(), Shift(4))),
      model=SpeedNet(kernel=2, channels=(64, 256, 256)),
      loss=CrossEntropy(label_smoothing=0.2),
      optim=SGD(learning_rate=0.1, weight_decay=1e-3, schedule=OneCycle()),
      train=Train(epochs=20, ema_decay=0.99))
