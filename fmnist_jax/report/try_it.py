"""The card "Try it": a network that browsers run, with what they need for it.

try_it.js is the interface, photograph.js prepares pictures and network.js runs the layers of
`graph`. Weights are whole numbers of 16 bits with a scale for each output: half the size of
float32, and probabilities differ by less than 1e-3 from those of the model computed in float32
(measured on 2,000 test images: at most 2e-4 for mlp, cnn, cnn_blocks and cnn_deep, where float16
differs by up to 2e-3, bfloat16 by 3e-2 and 8 bits by 9e-2).
"""

from __future__ import annotations

import base64
import html
import json
from typing import Any, NamedTuple

import numpy as np

from fmnist_jax.errors import ExportError
from fmnist_jax.graph import Graph
from fmnist_jax.report import check_weights, document

MOST_PIXELS = 256  # of a side
MOST_PRODUCTS = 1_000_000_000  # of one image: a second or two in a browser
SAMPLES = 10  # images to click
SCRIPTS = ('photograph.js', 'network.js', 'try_it.js')


class Card(NamedTuple):
  """HTML, and the script that it needs."""
  body: str
  script: str


def card(network: Graph | str, images: np.ndarray, labels: np.ndarray, split: str) -> Card:
  """The card, or why there is none.

  Args:
    network: or a sentence that says why there is none.
    images: of a split, uint8 [N, H, W, C].
    labels: their classes, integers [N].
    split: its name.
  """
  try:
    if isinstance(network, str):
      raise ExportError(network)
    return _card(network, images, labels, split)
  except ExportError as error:
    return Card(f'<h2>Try it</h2><div class="card">There is no network to try in this page. '
                f'{html.escape(str(error))}</div>', '')


def page(network: Graph, images: np.ndarray, labels: np.ndarray, split: str, title: str) -> bytes:
  """An HTML file with nothing but the card. Equal arguments give equal bytes.

  Args:
    network: what it runs.
    images: of a split, uint8 [N, H, W, C]: the first of each class can be clicked.
    labels: their classes, integers [N].
    split: its name.
    title: of the page.

  Raises:
    ExportError: for a network that a page cannot run.
  """
  shown = _card(network, images, labels, split)
  heading = html.escape(title)
  text = document.whole(heading, f'<h1 class="plain">{heading}</h1>\n{shown.body}', shown.script)
  return text.encode('utf-8', 'backslashreplace')


def _card(network: Graph, images: np.ndarray, labels: np.ndarray, split: str) -> Card:
  _check(network)
  classes, first = np.unique(labels, return_index=True)
  buttons = ''.join(_button(images[at], network.class_names[label], f'{split} image {at}')
                    for label, at in zip(classes[:SAMPLES], first))
  height, width, _ = network.image_shape
  body = document.filled('try_it.html', height=height, width=width, split=html.escape(split),
                         buttons=buttons, network=_json(network))
  return Card(body, '\n'.join(map(document.text_of, SCRIPTS)))


def _button(image: np.ndarray, name: str, place: str) -> str:
  rgb = np.broadcast_to(image, (*image.shape[:2], 3))
  return (f'<button type="button">{document.image(rgb, place)}'
          f'<span>{html.escape(name)}</span></button>')


def _check(network: Graph) -> None:
  """Raises ExportError for a network that a page cannot run."""
  height, width, channels = network.image_shape
  if channels not in (1, 3):
    raise ExportError(f'The network takes images of {channels} channels; pictures have 1 or 3.')
  if max(height, width) > MOST_PIXELS:
    raise ExportError(f'The network takes images of {height} x {width} pixels, and a page those of '
                      f'at most {MOST_PIXELS} a side.')
  check_weights(sum(array.size for layer in network.layers for array in layer.arrays.values()))
  products = sum(layer.products for layer in network.layers)
  if products > MOST_PRODUCTS:
    raise ExportError(f'The network takes {products / 1e9:.1f} billion multiplications for an '
                      f'image, and a page does at most {MOST_PRODUCTS / 1e9:.0f} billion.')


def _json(network: Graph) -> str:
  """The network as JSON that may stand in HTML."""
  layers = [{'kind': layer.kind, 'inputs': layer.inputs, 'settings': layer.settings,
             'shape': layer.shape,
             'arrays': {name: _array(values) for name, values in layer.arrays.items()}}
            for layer in network.layers]
  text = json.dumps({'image_shape': network.image_shape, 'class_names': network.class_names,
                     'layers': layers}, allow_nan=False, separators=(',', ':'))
  return text.replace('<', '\\u003c')  # Neither </script> nor <!--.


def _array(values: np.ndarray) -> dict[str, Any]:
  """What readNetwork of network.js reads."""
  if values.ndim == 1:
    return {'shape': values.shape, 'values': _base64(values.astype('<f4'))}
  whole, scale = rounded(values)
  return {'shape': values.shape, 'values': _base64(whole), 'scale': _base64(scale)}


def rounded(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Whole numbers of 16 bits [..., O] and a float32 scale [O], whose product is about `kernel`."""
  scale = (np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0) / 32767).astype('<f4')
  return np.rint(kernel / np.where(scale > 0, scale, 1)).astype('<i2'), scale


def _base64(values: np.ndarray) -> str:
  return base64.b64encode(values.tobytes()).decode('ascii')
