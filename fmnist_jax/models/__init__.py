"""Model families, one file each: settings and the Flax module they build."""

from fmnist_jax.models.base import Compute, Model, build, check_fits
from fmnist_jax.models.cnn import CNN
from fmnist_jax.models.layers import Dropout
from fmnist_jax.models.mlp import MLP
from fmnist_jax.models.mobile import MobileNet
from fmnist_jax.models.resnet import ResNet
from fmnist_jax.models.speed import SpeedNet
from fmnist_jax.models.vit import ViT

__all__ = ['CNN', 'MLP', 'Compute', 'Dropout', 'MobileNet', 'Model', 'ResNet', 'SpeedNet', 'ViT',
           'build', 'check_fits']
