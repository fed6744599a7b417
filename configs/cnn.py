"""The CNN that tutorials come to: two convolutions, two pools, dense 128; flips, small shifts.
225,034 parameters.

  python -m fmnist_jax.main --config=configs/cnn.py

92.7 % on the test images of Fashion-MNIST (seed 0), 73 s from start to report on two cores of an
AMD EPYC with AVX-512 and bfloat16.
"""

from fmnist_jax.config import CNN, AdamW, Config, Data, Flip, OneCycle, Shift, Train


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Shift(1))),
      model=CNN(channels=(32, 64), pool=(2, 2), dense=(128,)),
      optim=AdamW(learning_rate=3e-3, weight_decay=5e-2, schedule=OneCycle()),
      train=Train(epochs=24, ema_decay=0.999))
