"""Three blocks of convolution, BatchNorm, ReLU, pool; dense 128 with dropout; flips, small shifts:
241,770 parameters.

  python -m fmnist_jax.main --config=configs/cnn_blocks.py

93.9 % on the test images of Fashion-MNIST (seed 0), 388 s from start to report on two cores of an
AMD EPYC with AVX-512 and bfloat16.
"""

from fmnist_jax.config import CNN, SGD, Config, CrossEntropy, Data, Flip, OneCycle, Shift, Train


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Shift(1))),
      model=CNN(channels=(32, 64, 128), padding='SAME', pool=(2, 2, 2), batch_norm=True,
                dense=(128,), dense_dropout=0.3),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=SGD(learning_rate=0.1, weight_decay=1e-3, schedule=OneCycle()),
      train=Train(epochs=44, ema_decay=0.999))
