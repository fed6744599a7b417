"""What matters in a dense network: width and depth, dropout, the optimiser's settings, smoothing.

  python -m fmnist_jax.search --config=configs/mlp.py --space=configs/spaces/mlp.py --trials=100

Five programs, by `model.hidden`; everything else is an argument of theirs.
"""

from fmnist_jax.search import Choice, Range


def get_space():
  return {
      'model.hidden': Choice((64,), (128,), (256,), (128, 64), (256, 128)),
      'model.dropout': Range(0.01, 0.5),
      'optim.learning_rate': Range(2e-4, 2e-2, log=True),
      'optim.weight_decay': Range(1e-3, 1.0, log=True),
      'loss.label_smoothing': Range(0.01, 0.2),
      'data.augment.0.probability': Range(0.05, 0.95)}
