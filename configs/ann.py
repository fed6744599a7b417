"""Two hidden layers: 784-128-64-10, 109,386 parameters.

  python -m fmnist_jax.main --config=configs/ann.py

TIME_ann
"""

from fmnist_jax.config import MLP, AdamW, Config, Cosine, Train


def get_config() -> Config:
  return Config(
      model=MLP(hidden=(128, 64)),
      optim=AdamW(learning_rate=2e-3, weight_decay=5e-2, schedule=Cosine(warmup_epochs=1)),
      train=Train(epochs=20, ema_decay=0.999))
