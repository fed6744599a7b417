"""Optimisers and learning-rate schedules: their settings and the optax parts they build."""

from fmnist_jax.optimizers.descent import SGD, Adam, AdamW, Optimizer, UpdateRule, decay_mask
from fmnist_jax.optimizers.muon import Muon
from fmnist_jax.optimizers.schedules import Constant, Cosine, Horizon, OneCycle, Schedule, Step
from fmnist_jax.optimizers.wrappers import SAM, Lookahead, Wrapper

__all__ = ['SAM', 'SGD', 'Adam', 'AdamW', 'Constant', 'Cosine', 'Horizon', 'Lookahead', 'Muon',
           'OneCycle', 'Optimizer', 'Schedule', 'Step', 'UpdateRule', 'Wrapper', 'decay_mask']
