"""The errors a user can cause. Each message is one sentence: what, where, what to do.

Entry points print the message and exit non-zero; nothing below them catches these.
"""

import pathlib
import traceback
import unicodedata

_PACKAGE = str(pathlib.Path(__file__).parent)


class UserError(Exception):
  """Something the user asked for cannot be done; the message says why and what to do.

  Attributes:
    agreed: whether all processes of a run raise it, or what it stands for, at the same point.
    told: whether it has been told already: by another process of the run, or one by one.
  """
  agreed = False
  told = False


class ConfigError(UserError):
  """A config file, field or override is wrong."""


class UnknownPartError(ConfigError):
  """A config.json names a part of somebody's own that is not loaded."""


class DataError(UserError):
  """A data set is missing, damaged or not what it claims to be."""


class CheckpointError(UserError):
  """A checkpoint is missing, damaged or belongs to another model."""


class WorkdirError(UserError):
  """A work directory cannot be used: foreign, locked or not writable."""


class DivergenceError(UserError):
  """Training produced a loss or gradient that is not finite."""


class ExportError(UserError):
  """A model cannot be exported, or not as asked."""


class BackendError(UserError):
  """The accelerator or its compiler computes wrongly or lacks what was asked for."""


def is_tame(text: str) -> bool:
  """Whether a terminal shows text as it is: no control characters, overrides, half characters."""
  return not any(unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp')
                 or '\u202a' <= c <= '\u202e' or '\u2066' <= c <= '\u2069' for c in text)


def one_line(text: str) -> str:
  """The text with line breaks and other control characters written out, as in '\\n'.

  Of more than 2,000 characters the middle is left out.
  """
  found = ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)
  return found if len(found) <= 2000 else f'{found[:1200]} [...] {found[-700:]}'


def first_line(error: BaseException) -> str:
  """What others' code says in many lines."""
  return (str(error) or type(error).__name__).split('\n', maxsplit=1)[0][:200]


def told(error: BaseException) -> str:
  """An error of somebody's own code in one line, with the line of that code."""
  frames = [frame for frame in traceback.extract_tb(error.__traceback__)
            if 'site-packages' not in frame.filename and not frame.filename.startswith(_PACKAGE)]
  where = f' ({frames[-1].filename}, line {frames[-1].lineno})' if frames else ''
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:300].rstrip(".")}{where}'
