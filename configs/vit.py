"""A small vision transformer of 4x4 patches, for accelerators; flips, small shifts: 1,199,882
parameters.

  python -m fmnist_jax.main --config=configs/vit.py

Not measured yet: its recipe has not been run to its end.
"""

from fmnist_jax.config import AdamW, Config, CrossEntropy, Data, Flip, OneCycle, Shift, Train, ViT


def get_config() -> Config:
  return Config(
      data=Data(augment=(Flip(), Shift(1))),
      model=ViT(patch=4, width=128, depth=6, heads=4, stochastic_depth=0.1),
      loss=CrossEntropy(label_smoothing=0.1),
      optim=AdamW(learning_rate=1e-3, weight_decay=5e-2, schedule=OneCycle()),
      train=Train(epochs=60, ema_decay=0.999))
