"""A deeper CNN: three blocks of two convolutions, BatchNorm, dropout; flips, small shifts.
147,162 parameters.

  python -m fmnist_jax.main --config=configs/cnn_deep.py

93.4 % on the test images of Fashion-MNIST (seed 0), 189 s from start to report on two cores of an
AMD EPYC with AVX-512 and bfloat16 (with a compiler beside it for a minute, at idle priority).
"""

from fmnist_jax.config import CNN, AdamW, Config, Data, Flip, OneCycle, Shift, Train


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Shift(1))),
      model=CNN(channels=(16, 32, 64), convolutions=2, padding='SAME', pool=(2, 2, 2),
                batch_norm=True, dropout=(0.1, 0.1, 0.2), dense=(128,), dense_dropout=0.3),
      optim=AdamW(learning_rate=3e-3, weight_decay=5e-2, schedule=OneCycle()),
      train=Train(epochs=20, ema_decay=0.999))
