"""What the pictures of a report share: colours, margins, fonts, text, PNG bytes.

Figures are made without pyplot, which would keep them and choose a window system. Margins follow
from the longest class name instead of from a layout engine, which would draw everything twice.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH = 5.0  # inches
DPI = 200
UNSTAMPED: Any = {'Software': None}  # PNG metadata: matplotlib would name its version
LONGEST_NAME = 16  # characters on an axis; the page's tables show all of them


class Theme(NamedTuple):
  """Colours of a page's pictures; those of series differ in lightness as well as in hue."""
  surface: str
  ink: str
  muted: str
  grid: str
  first: str
  second: str
  third: str
  wrong: str


LIGHT = Theme(surface='#ffffff', ink='#1c2128', muted='#5c6773', grid='#e4e8ed', first='#1f6fb8',
              second='#e07b1a', third='#78a6d1', wrong='#c8402f')
DARK = Theme(surface='#1a1f26', ink='#e9edf1', muted='#9da8b4', grid='#313943', first='#62aef0',
             second='#ffab57', third='#4f7ba6', wrong='#ff7b6b')


_SETTINGS = threading.Lock()  # matplotlib's are those of the whole process.


@contextlib.contextmanager
def drawing() -> Iterator[None]:
  """Draws by matplotlib's own settings, whatever the user's matplotlibrc says.

  One thread at a time draws; others wait.
  """
  with _SETTINGS, matplotlib.rc_context(), warnings.catch_warnings():
    matplotlib.rcdefaults()
    # A dollar in a class name is a dollar.
    matplotlib.rcParams.update({'text.parse_math': False, 'font.size': 9})
    # The font lacks many scripts; the page shows such names all the same.
    warnings.filterwarnings('ignore', message='Glyph .* missing from font')
    yield


def png(figure: Figure) -> bytes:
  """The figure as a PNG file: the same bytes for the same figure, no date or version in it."""
  file = io.BytesIO()
  FigureCanvasAgg(figure).print_png(file, metadata=UNSTAMPED)
  return file.getvalue()


def short(name: str) -> str:
  """A class name that fits an axis: on one line, cut after `LONGEST_NAME` characters."""
  name = ' '.join(name.split())
  return name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME - 1] + '…'


def percent(share: float) -> str:
  """A share in per cent, one decimal; 100% is said of 1 alone."""
  return '>99.9%' if 0.9995 <= share < 1 else f'{100 * share:.1f}%'


def new_figure(height: float, theme: Theme) -> Figure:
  """An empty figure `WIDTH` wide and this high, inches."""
  return Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.surface)


def new_axes(figure: Figure, theme: Theme, *, left: float, right: float, top: float, bottom: float,
          ) -> Axes:
  """Axes that leave these margins, inches."""
  height = figure.get_figheight()
  axes = figure.add_axes((left / WIDTH, bottom / height, 1 - (left + right) / WIDTH,
                          1 - (top + bottom) / height), facecolor=theme.surface)
  axes.tick_params(colors=theme.muted, labelcolor=theme.ink, length=0)
  for side in axes.spines.values():
    side.set_visible(False)
  axes.set_axisbelow(True)
  return axes


def put_title(figure: Figure, text: str, theme: Theme, below: float = 0.0) -> None:
  """A heading at the left, `below` inches from the top."""
  figure.text(0.1 / WIDTH, 1 - (below + 0.24) / figure.get_figheight(), text, color=theme.ink,
              fontsize=10.5, fontweight='bold')


def put_legend(owner: Axes | Figure, theme: Theme, **where: Any) -> None:
  """Names the curves or bars, without a frame; `where` goes to matplotlib's `legend`."""
  owner.legend(frameon=False, labelcolor=theme.ink, fontsize=8.5, handlelength=1.6, **where)


def room_for(names: Sequence[str]) -> float:
  """Inches that the longest of these tick labels takes."""
  return 0.2 + 0.074 * max(len(name) for name in names)
