"""An HTML file that needs nothing else, no network either: what it shows and runs is in it."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import io
import string

import numpy as np
from matplotlib.image import imsave

from fmnist_jax.report.canvas import UNSTAMPED


def text_of(name: str) -> str:
  """The text of one of the files beside this one."""
  return importlib.resources.files(__package__).joinpath(name).read_text('utf-8')


def filled(name: str, **values: object) -> str:
  """The text of a file beside this one, with its $names replaced by HTML."""
  return string.Template(text_of(name)).substitute(values)


def whole(title: str, body: str, script: str) -> str:
  """The document.

  Args:
    title: escaped.
    body: HTML.
    script: JavaScript, the only one that browsers will run; empty for none.
  """
  allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')
  return filled('page.html', title=title, style=text_of('page.css'), body=body,
                script=f'<script>{script}</script>' if script else '',
                script_source=f"; script-src 'sha256-{allowed}'" if script else '')


def data_uri(png: bytes) -> str:
  """A PNG file as an address."""
  return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')


def image(image_HxWx3: np.ndarray, description: str) -> str:
  """An `img` of uint8 [H, W, 3], its pixels as they are."""
  file = io.BytesIO()
  imsave(file, image_HxWx3, format='png', metadata=UNSTAMPED)
  return f'<img src="{data_uri(file.getvalue())}" alt="{html.escape(description)}">'
