"""Three blocks of convolution, BatchNorm, ReLU, pool; dense 128 with dropout: 241,770
parameters.

  python -m fmnist_jax.main --config=configs/cnn_blocks.py

92.9 % on the test images of Fashion-MNIST (seed 0), 185 s from start to report on two cores of an
AMD EPYC with AVX-512 and bfloat16 (shared with other work).
"""

from fmnist_jax.config import CNN, AdamW, Config, OneCycle, Train


def get_config() -> Config:
  return Config(
      model=CNN(channels=(32, 64, 128), padding='SAME', pool=(2, 2, 2), batch_norm=True,
                dense=(128,), dense_dropout=0.3),
      optim=AdamW(learning_rate=3e-3, weight_decay=5e-2, schedule=OneCycle()),
      train=Train(epochs=10, ema_decay=0.999))
