"""ResNet-20, for images of 28x28 pixels; flips, small shifts: 272,186 parameters.

  python -m fmnist_jax.main --config=configs/resnet.py

Not measured yet: its recipe is that of `cnn_blocks`, and has not been run to its end.
"""

from fmnist_jax.config import SGD, Config, CrossEntropy, Data, Flip, OneCycle, ResNet, Shift, Train


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Shift(1))),
      model=ResNet(),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=SGD(learning_rate=0.1, weight_decay=1e-3, schedule=OneCycle()),
      train=Train(epochs=30, ema_decay=0.999))
