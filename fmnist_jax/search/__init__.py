"""Hyper-parameters found: a space, trials that several machines may share, pruning, a report."""

from fmnist_jax.search.space import Choice, Range, Space

__all__ = ['Choice', 'Range', 'Space']
