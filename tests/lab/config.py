"""A run none of whose parts is the library's."""

from fmnist_jax.config import Config, Flip, MixUp, Train
from lab.parts import Brightness, Focal, Mixer, Orthogonal, Patterns, Triangle


def get_config():
  return Config(
      data=Patterns(validation_examples=70, batch_size=20,
                    augment=(Flip(), Brightness(), MixUp(0.2))),
      model=Mixer(), loss=Focal(), optim=Orthogonal(schedule=Triangle()),
      train=Train(epochs=4, steps_per_dispatch=5, ema_decay=0.9, precision='float32'))
