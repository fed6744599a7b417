"""The errors a user can cause. Each message is one sentence: what, where, what to do.

Entry points print the message and exit non-zero; nothing below them catches these.
"""


class UserError(Exception):
  """Something the user asked for cannot be done; the message says why and what to do.

  Attributes:
    agreed: whether all processes of a run raise it, or what it stands for, at the same point.
    told: whether another process of the run tells it, so that this one need not.
  """
  agreed = False
  told = False


class ConfigError(UserError):
  """A config file, field or override is wrong."""


class DataError(UserError):
  """A data set is missing, damaged or not what it claims to be."""


class CheckpointError(UserError):
  """A checkpoint is missing, damaged or belongs to another model."""


class WorkdirError(UserError):
  """A work directory cannot be used: foreign, locked or not writable."""


class DivergenceError(UserError):
  """Training produced a loss or gradient that is not finite."""


class BackendError(UserError):
  """The accelerator or its compiler computes wrongly or lacks what was asked for."""
