"""Optimisers and learning-rate schedules: their settings and the optax parts they build."""

from fmnist_jax.optimizers.descent import SGD, Adam, AdamW, Optimizer, decay_mask
from fmnist_jax.optimizers.muon import Muon
from fmnist_jax.optimizers.schedules import Constant, Cosine, Horizon, OneCycle, Schedule, Step

__all__ = ['SGD', 'Adam', 'AdamW', 'Constant', 'Cosine', 'Horizon', 'Muon', 'OneCycle',
           'Optimizer', 'Schedule', 'Step', 'decay_mask']
