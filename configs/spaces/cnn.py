"""What matters in a small convolutional network: channels, dense width, the optimiser's settings.

  python -m fmnist_jax.search --config=configs/cnn.py --space=configs/spaces/cnn.py --trials=100

Four programs, by channels and width; everything else is an argument of theirs.
"""

from fmnist_jax.search import Choice, Range


def get_space():
  return {
      'model.channels': Choice((16, 32), (32, 64)),
      'model.dense': Choice((64,), (128,)),
      'model.dense_dropout': Range(0.01, 0.5),
      'optim.learning_rate': Range(3e-4, 2e-2, log=True),
      'optim.weight_decay': Range(1e-3, 0.5, log=True),
      'optim.schedule.rise': Range(0.05, 0.6),
      'loss.label_smoothing': Range(0.01, 0.2),
      'data.augment.1.pixels': Range(0.1, 3.0)}
