"""The blocks of `cnn_blocks` with flips, shifts and rotation, and early stopping:
241,770 parameters.

  python -m fmnist_jax.main --config=configs/cnn_augmented.py

93.6 % on the test images of Fashion-MNIST (seed 0), 356 s from start to report on two cores of an
AMD EPYC with AVX-512 and bfloat16.
"""

from fmnist_jax.config import CNN, SGD, Affine, Config, CrossEntropy, Data, Flip, OneCycle, Train


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Affine(rotation=3, shift=1))),
      model=CNN(channels=(32, 64, 128), padding='SAME', pool=(2, 2, 2), batch_norm=True,
                dense=(128,), dense_dropout=0.3),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=SGD(learning_rate=0.1, weight_decay=1e-3, schedule=OneCycle()),
      train=Train(epochs=40, ema_decay=0.999, early_stopping_patience=10))
