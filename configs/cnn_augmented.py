"""The blocks of `cnn_blocks` with flips, shifts, rotation and zoom, and early stopping: 241,770
parameters.

  python -m fmnist_jax.main --config=configs/cnn_augmented.py

91.6 % on the test images of Fashion-MNIST (seed 0), 201 s from start to report on two cores of an
AMD EPYC with AVX-512 and bfloat16 (shared with other work).
"""

from fmnist_jax.config import CNN, AdamW, Augment, Config, Data, OneCycle, Train


def get_config() -> Config:
  return Config(
      data=Data(augment=Augment(flip=0.5, shift=2, rotation=5, zoom=0.05)),
      model=CNN(channels=(32, 64, 128), padding='SAME', pool=(2, 2, 2), batch_norm=True,
                dense=(128,), dense_dropout=0.3),
      optim=AdamW(learning_rate=3e-3, weight_decay=5e-2, schedule=OneCycle()),
      train=Train(epochs=12, ema_decay=0.999, early_stopping_patience=5))
