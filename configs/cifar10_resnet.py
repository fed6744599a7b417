"""CIFAR-10 with ResNet-20 (arXiv:1512.03385), random crops and flips: 272,474 parameters.
Not measured: no copy of CIFAR-10 was at hand.

  python -m fmnist_jax.main --config=configs/cifar10_resnet.py

CIFAR-10 is looked for and downloaded as Fashion-MNIST is.
"""

from fmnist_jax.config import SGD, Config, CrossEntropy, Data, Flip, OneCycle, ResNet, Shift, Train


def get_config() -> Config:
  return Config(
      data=Data(name='cifar10', augment=(Flip(), Shift(4))),
      model=ResNet(),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=SGD(learning_rate=0.1, weight_decay=1e-3, schedule=OneCycle()),
      train=Train(epochs=100, ema_decay=0.999))
