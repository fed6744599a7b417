"""Model families, one file each: settings and the Flax module they build."""

from fmnist_jax.models.base import Compute, Model, build, check_fits
from fmnist_jax.models.cnn import CNN
from fmnist_jax.models.layers import Dropout
from fmnist_jax.models.mlp import MLP
from fmnist_jax.models.resnet import ResNet

__all__ = ['CNN', 'MLP', 'Compute', 'Dropout', 'Model', 'ResNet', 'build', 'check_fits']
