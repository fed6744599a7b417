"""The optimiser of any config: AdamW or SGD, learning rate, weight decay, momentum, schedule.

  python -m fmnist_jax.search --config=configs/cnn_blocks.py --space=optimizer --trials=60

A range whose field a trial does not have (momentum, where AdamW was drawn) is left out of it.
"""

from fmnist_jax.search import Choice, Range


def get_space():
  return {
      'optim': Choice('AdamW', 'SGD'),
      'optim.schedule': Choice('Cosine', 'OneCycle'),
      'optim.learning_rate': Range(3e-4, 0.3, log=True),
      'optim.weight_decay': Range(1e-5, 0.3, log=True),
      'optim.momentum': Range(0.5, 0.98)}
