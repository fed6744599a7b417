"""The card "Try it": a page computes what Python computes, in a real browser, on its own."""

import base64
import dataclasses
import functools
import importlib.resources
import io
import json
import re
import shutil
import subprocess
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from fmnist_jax import (
    data,
    evaluation,
    graph,
    interrupt,
    models,
    photograph,
    report,
    train_and_evaluate,
)
from fmnist_jax.config import CNN, AdamW, Config, Data, Train
from fmnist_jax.errors import ExportError, WorkdirError
from fmnist_jax.export import __main__ as command
from fmnist_jax.graph import Graph, Layer
from fmnist_jax.graph.layers import KINDS
from fmnist_jax.report import try_it
from fmnist_jax.trained_model import load_run

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
NASTY = '</script><!-- <script>alert(1)</script> & \u2028 "$x"'


# Browsers.

@pytest.fixture(scope='module', name='browser')
def _browser():
  if not CHROMIUM:
    pytest.skip('there is no Chromium')
  with pytest.importorskip('playwright.sync_api').sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield browser
    browser.close()


@pytest.fixture(name='opened')
def _opened(browser, tmp_path):
  """Opens a file, or a page's bytes; whatever it complains of or asks of others fails the test."""
  contexts, complaints = [], []

  def opened(path, **how):
    if isinstance(path, bytes):
      path, content = tmp_path / 'page.html', path
      path.write_bytes(content)
    context = browser.new_context(**how)
    contexts.append(context)
    page = context.new_page()
    page.on('console', lambda message: complaints.append(message.text))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.on('request', lambda request: request.url.startswith(('data:', path.as_uri()))
            or complaints.append(request.url))
    page.goto(path.as_uri())
    if how.get('java_script_enabled', True) and page.locator('#try').count():
      said(page)
    return page

  yield opened
  for context in contexts:
    context.close()
  assert not complaints


@pytest.fixture(params=['node', 'chromium'], name='javascript')
def _javascript(request):
  """Calls a function, in JavaScript, of one JSON value, with the page's own functions at hand."""
  scripts = '\n'.join(importlib.resources.files(report).joinpath(name).read_text()
                      for name in ('photograph.js', 'network.js'))
  if request.param == 'chromium':
    page = request.getfixturevalue('browser').new_page()
    page.add_script_tag(content=scripts)
    yield page.evaluate
    page.close()
    return
  node = shutil.which('node')
  if not node:
    pytest.skip('there is no node')
  def call(function, argument):
    program = (f'{scripts}\nlet text = ""; process.stdin.on("data", (part) => text += part);\n'
               'process.stdin.on("end", () => process.stdout.write(JSON.stringify('
               f'({function})(JSON.parse(text)))));')
    done = subprocess.run([node, '-e', program], input=json.dumps(argument), text=True,
                          capture_output=True, check=True)
    return json.loads(done.stdout)
  yield call


def said(page):
  """Waits for an answer; returns its class and probability in words."""
  page.locator('#said:not(:empty)').wait_for()
  return page.inner_text('#said')


def given(page, act):
  """What the page says after an act."""
  page.evaluate("find('said').textContent = ''")
  act()
  return said(page)


def seen(page):
  """What the network was shown, uint8 [H, W, 3]."""
  return np.asarray(paint(page, 'seen').convert('RGB'))


def paint(page, canvas):
  """The picture on a canvas."""
  text = page.evaluate('(id) => find(id).toDataURL()', canvas).partition(',')[2]
  return Image.open(io.BytesIO(base64.b64decode(text)))


def encoded(image, kind, **how):
  file = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **how)
  return file.getvalue()


def upload(page, name, content):
  return given(page, lambda: page.set_input_files(
      '#file', {'name': name, 'mimeType': 'image/*', 'buffer': content}))


# What is computed.

@functools.cache
def photographs():
  """Pictures of many sizes and kinds, among them such whose means lie between whole numbers."""
  random, made = np.random.default_rng(0), []
  for number in range(150):
    height, width = (28, 28) if number % 9 == 0 else random.integers(1, 60, 2)
    kind, size = number % 5, (height, width, 1)
    if kind == 0:
      picture = random.integers(0, 256, (height, width, 3))
    elif kind == 1:
      picture = np.repeat(random.integers(0, 4, size), 3, -1)
    elif kind == 2:
      picture = np.repeat(np.indices((height, width)).sum(0)[..., None] % 2 * 255, 3, -1)
    elif kind == 3:  # 12 more than the background is trimmed, 13 more is not.
      picture = np.pad(np.full(size, 80 + random.integers(12, 14)).repeat(3, -1),
                       ((1, 4), (3, 2), (0, 0)), constant_values=80)
      picture[height // 2, width // 2] = 200
    else:
      picture = np.pad(random.integers(0, 256, (height, width, 3)), ((2, 9), (5, 1), (0, 0)),
                       constant_values=random.integers(256))
    made.append(picture.astype(np.uint8))
  return made


@pytest.mark.parametrize('shape', [(28, 28, 1), (28, 20, 3), (32, 32, 1)])
def test_pictures_are_prepared_as_in_python(javascript, shape):
  found = javascript('''({pictures, shape}) => pictures.map(({height, width, text}) => {
    const rgb = new Uint8Array(fromBase64(text));
    const data = Uint8ClampedArray.from({length: 4 * height * width}, (_, i) =>
      i % 4 === 3 ? 255 : rgb[3 * Math.floor(i / 4) + i % 4]);
    return [...toInput({height, width, data}, shape)];
  })''', {'shape': shape, 'pictures': [
      {'height': len(picture), 'width': picture.shape[1],
       'text': base64.b64encode(picture.tobytes()).decode()} for picture in photographs()]})
  for picture, values in zip(photographs(), found):
    np.testing.assert_array_equal(np.reshape(values, shape), photograph.to_input(picture, shape))


def reference(layer, *inputs):
  """What a layer makes of arrays [N, ...], by jax's own operations."""
  settings, arrays, (x, *others) = layer.settings, layer.arrays, inputs
  if layer.kind == 'conv':
    return jax.lax.conv_general_dilated(
        x, arrays['kernel'], settings['strides'], settings['padding'],
        rhs_dilation=settings['dilation'], feature_group_count=settings['groups'],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + arrays['bias'][None, None, None]
  if layer.kind == 'dense':
    return x @ arrays['kernel'] + arrays['bias'][None]
  if layer.kind.endswith('pool'):
    window = [(1, *settings[name], 1) for name in ('window', 'strides')]
    padding = ((0, 0), *settings['padding'], (0, 0))
    if layer.kind == 'max_pool':
      return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window, padding)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, *window, padding) / np.prod(window[0])
  if layer.kind == 'affine':
    return x * arrays['scale'] + arrays['shift']
  if layer.kind in ('flatten', 'reshape'):
    return x.reshape(len(x), *layer.shape)
  functions = {'add': np.add, 'multiply': np.multiply, 'tanh': jnp.tanh, 'relu': jax.nn.relu,
               'gelu': jax.nn.gelu, 'silu': jax.nn.silu, 'sigmoid': jax.nn.sigmoid}
  return functions[layer.kind](x, *others)


def every_layer():
  """A network with each kind of layer, in more than one form, of images [9, 8, 3]."""
  random = np.random.default_rng(0)
  draw = lambda *shape: random.normal(size=shape).astype(np.float32) / 2
  whole = {'padding': [[0, 0], [0, 0]], 'strides': [1, 1]}
  plan = [  # kind, inputs, settings, arrays
      ('conv', (0,), {'strides': [1, 2], 'padding': [[1, 2], [0, 1]], 'dilation': [2, 1],
                      'groups': 1}, {'kernel': draw(3, 2, 3, 6), 'bias': draw(6)}),
      ('gelu', (1,), {}, {}),
      ('conv', (2,), {**whole, 'padding': [[1, 1], [1, 1]], 'dilation': [1, 1], 'groups': 3},
       {'kernel': draw(3, 3, 2, 6), 'bias': draw(6)}),
      ('add', (3, 2), {}, {}),
      ('affine', (4,), {}, {'scale': draw(6), 'shift': draw(6)}),
      ('max_pool', (5,), {'window': [3, 2], 'strides': [2, 2], 'padding': [[1, 1], [0, 1]]}, {}),
      ('silu', (6,), {}, {}),
      ('conv', (7,), {**whole, 'dilation': [1, 1], 'groups': 6},
       {'kernel': draw(2, 1, 1, 12), 'bias': draw(12)}),
      ('relu', (8,), {}, {}),
      ('avg_pool', (9,), {**whole, 'window': [3, 2]}, {}),
      ('conv', (10,), {**whole, 'dilation': [1, 1], 'groups': 1},
       {'kernel': draw(1, 1, 12, 12), 'bias': draw(12)}),
      ('sigmoid', (11,), {}, {}),
      ('avg_pool', (12,), {**whole, 'window': 'all'}, {}),
      ('flatten', (13,), {}, {}),
      ('reshape', (14,), {'shape': [1, 1, 12]}, {}),
      ('multiply', (9, 15), {}, {}),
      ('tanh', (16,), {}, {}),
      ('flatten', (17,), {}, {}),
      ('dense', (18,), {}, {'kernel': 'draw', 'bias': draw(5)}),
  ]
  results, layers = [np.zeros((1, 9, 8, 3), np.float32)], []
  for kind, inputs, settings, arrays in plan:
    x = results[inputs[0]]
    if settings.get('window') == 'all':
      settings['window'] = list(x.shape[1:3])
    if kind == 'dense':
      arrays['kernel'] = draw(x.shape[1], 5) / 8
    shape = (x.size,) if kind == 'flatten' else tuple(settings.get('shape', ()))
    layer = Layer(kind, inputs, settings, arrays, shape)
    results.append(reference(layer, *(results[at] for at in inputs)))
    layers.append(dataclasses.replace(layer, shape=tuple(results[-1].shape[1:])))
  return Graph((9, 8, 3), ('a', 'b', 'c', 'd', 'e'), tuple(layers))


def test_every_kind_of_layer_is_computed(javascript):
  network = every_layer()
  assert {layer.kind for layer in network.layers} == set(KINDS)
  image = np.random.default_rng(1).integers(0, 256, (9, 8, 3), np.uint8)
  results = [image[None] / np.float32(255)]
  for layer in network.layers:
    results.append(reference(layer, *(results[at] for at in layer.inputs)))
  found, probabilities = javascript('''({network, image, results}) => {
    const read = readNetwork(network);
    const inputs = results.map(({shape, values}) => ({shape, values: Float32Array.from(values)}));
    return [
      read.layers.map((layer) => [...LAYERS[layer.kind](layer, ...layer.inputs.map(
          (at) => inputs[at]))]),
      [...classify(read, Uint8Array.from(image))]];
  }''', {'network': try_it._json(network), 'image': image.ravel().tolist(), 'results': [
      {'shape': x.shape[1:], 'values': np.ravel(x).tolist()} for x in results]})
  for layer, values, expected in zip(network.layers, found, results[1:]):
    rounding = 2e-4 if 'kernel' in layer.arrays else 2e-6
    np.testing.assert_allclose(np.reshape(values, expected.shape[1:]), expected[0], atol=rounding,
                               err_msg=layer.kind)
  np.testing.assert_allclose(probabilities, jax.nn.softmax(results[-1][0]), atol=1e-4)


def test_weights_of_16_bits_are_near():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 5, 4)).astype(np.float32)
  kernel[..., 1] *= 1e-6
  kernel[..., 2] = 0
  whole, scale = try_it.rounded(kernel)
  assert (whole.dtype, scale.dtype, scale.shape) == ('<i2', '<f4', (4,))
  np.testing.assert_array_equal(np.abs(whole).max((0, 1, 2)), [32767, 32767, 0, 32767])
  error = np.abs(whole * scale - kernel).max((0, 1, 2))
  assert (error <= np.abs(kernel).max((0, 1, 2)) / 65000).all()


# The page of a run.

@pytest.fixture(scope='module', name='run')
def _run(tmp_path_factory):
  """A run's directory, its 100 test images and labels, and probabilities in float32."""
  directory = tmp_path_factory.mktemp('page') / 'run'
  config = Config(
      data=Data(name='synthetic', train_examples=600, test_examples=100, validation_examples=50,
                batch_size=20),
      model=CNN(channels=(4, 8), pool=(2, 2), batch_norm=True, dense=(16,)),
      optim=AdamW(learning_rate=1e-2), train=Train(epochs=1, devices=1, operations='native'))
  train_and_evaluate(config, directory)
  images, labels = data.load(config.data).test.arrays()
  model = load_run(directory)
  module = models.build(config.model, len(model.class_names), models.Compute())
  logits = module.apply(jax.device_get(model.variables), images / np.float32(255), train=False)
  return directory, images, labels, np.asarray(jax.nn.softmax(logits)), model.class_names


@pytest.fixture(name='page')
def _page(opened, run):
  return opened(run[0] / 'report' / 'report.html')


def test_a_run_s_page_says_what_python_says(page, run):
  _, images, _, expected, _ = run
  assert len(images) == 100
  found = np.array([page.evaluate('(image) => [...classify(network, Uint8Array.from(image))]',
                                  image.ravel().tolist()) for image in images])
  np.testing.assert_allclose(found, expected, atol=1e-3)
  np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
  assert len(set(found.argmax(1))) > 1 and np.ptp(found.max(1)) > 0.1


def test_test_images_are_clicked(page, run):
  _, images, labels, expected, names = run
  buttons = page.get_by_role('button', name='test image')
  assert buttons.count() == 10
  for label in range(10):
    place = int(np.flatnonzero(labels == label)[0])
    button = page.get_by_role('button', name=f'test image {place} {names[label]}', exact=True)
    answer = given(page, button.click)
    best = int(expected[place].argmax())
    assert answer.startswith(names[best])
    assert float(answer.split()[-1].strip('>%')) == pytest.approx(100 * expected[place, best],
                                                                  abs=0.2)
    np.testing.assert_array_equal(seen(page), np.repeat(images[place], 3, -1))
    assert page.inner_text('#what') == f'test image {place}: {names[label]}'
  bars = page.get_by_role('list', name='Probabilities').get_by_role('listitem')
  shown = [item.split('\n') for item in bars.all_inner_texts()]
  assert [name for name, _ in shown] == [names[k] for k in np.argsort(-expected[place])]
  assert 'ms' in page.inner_text('#timing')


def boot(size=(300, 200), mode='RGB', color=(30, 60, 90), ground=(240, 235, 230)):
  image = Image.new(mode, size, ground)
  draw = ImageDraw.Draw(image)
  draw.polygon([(90, 20), (170, 30), (175, 110), (260, 140), (255, 170), (90, 170)], fill=color)
  draw.line([(100, 40), (165, 45)], fill=ground, width=5)
  return image


@functools.cache
def pictures():
  """Files, and by how much a browser may prepare them in another way."""
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned a quarter clockwise.
  gamma = b'\x00\x01\x86\xa0'  # 1.0: browsers would make it lighter by themselves.
  plain = encoded(boot(), 'PNG')
  chunk = b'gAMA' + gamma
  stamped = plain[:33] + b'\x00\x00\x00\x04' + chunk + (
      zlib.crc32(chunk).to_bytes(4, 'big')) + plain[33:]
  deep = np.linspace(0, 65535, 28 * 28).astype('<u2')
  clear = boot(mode='RGBA', color=(200, 40, 90, 128), ground=(0, 0, 0, 0))
  return {
      'plain.png': (plain, 0), 'gamma.png': (stamped, 0),
      'palette.png': (encoded(boot().convert('P'), 'PNG'), 0),
      'grey.png': (encoded(boot().convert('L'), 'PNG'), 0),
      'plain.bmp': (encoded(boot(), 'BMP'), 0),
      'exact.webp': (encoded(boot(), 'WEBP', lossless=True), 0),
      # Of these, browsers round what Pillow rounds otherwise, or another decoder may.
      'turned.jpg': (encoded(boot(), 'JPEG', exif=exif, quality=90), 2),
      'clear.png': (encoded(clear, 'PNG'), 1),
      'deep.png': (encoded(Image.frombytes('I;16', (28, 28), deep.tobytes()), 'PNG'), 1)}


@pytest.mark.parametrize('name', pictures())
def test_a_photograph_is_prepared_as_in_python(page, run, name):
  content, tolerance = pictures()[name]
  answer = upload(page, name, content)
  expected = photograph.read(io.BytesIO(content), (28, 28, 1), name)
  assert np.abs(seen(page).astype(int) - expected).max() <= tolerance
  assert page.inner_text('#what') == name
  probabilities = page.evaluate('(x) => [...classify(network, Uint8Array.from(x))]',
                                seen(page)[..., 0].ravel().tolist())
  assert answer.startswith(run[4][int(np.argmax(probabilities))])


def test_a_large_photograph_is_read_in_parts(page):
  content = encoded(boot().resize((1500, 5000)), 'PNG')
  upload(page, 'large.png', content)
  np.testing.assert_array_equal(seen(page)[..., :1],
                                photograph.read(io.BytesIO(content), (28, 28, 1), 'large.png'))


@pytest.mark.parametrize('how', ['drop', 'paste'])
def test_a_picture_is_dropped_and_pasted(page, how):
  content = encoded(boot(), 'PNG')
  given(page, lambda: page.evaluate('''([how, text]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([fromBase64(text)], 'boot.png', {type: 'image/png'}));
    const event = how === 'drop' ?
        new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}) :
        new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true});
    if (document.body.dispatchEvent(event) && how === 'drop') {
      throw new Error('The browser would open the file.');
    }
  }''', [how, base64.b64encode(content).decode()]))
  np.testing.assert_array_equal(seen(page)[..., :1],
                                photograph.read(io.BytesIO(content), (28, 28, 1), 'boot.png'))


def test_what_is_no_picture_is_told(page):
  told = upload(page, 'notes.txt', b'hello')
  assert told == 'notes.txt is no picture that this browser can read.'
  assert page.locator('#bars li').count() == 0
  assert upload(page, 'boot.png', encoded(boot(), 'PNG')).endswith('%')


def outline(page, points):
  """Draws lines with the mouse, through points of a paper of side 1."""
  box = page.locator('#paper').bounding_box()
  places = [(box['x'] + x * box['width'], box['y'] + y * box['height']) for x, y in points]
  page.mouse.move(*places[0])
  page.mouse.down()
  for place in places[1:]:
    page.mouse.move(*place, steps=3)
  page.mouse.up()


TROUSERS = [(0.35, 0.1), (0.65, 0.1), (0.75, 0.9), (0.6, 0.9), (0.5, 0.4), (0.4, 0.9),
            (0.25, 0.9), (0.35, 0.1)]


def test_a_drawing_is_filled_and_classified(page):
  assert given(page, lambda: outline(page, TROUSERS)).endswith('%')
  assert page.inner_text('#what') == 'Your drawing'
  filled = seen(page)[..., 0]
  ink = 255 - 51
  assert (filled[4:8, 12:16] == ink).all(), 'dark on white becomes light on black, and is filled'
  assert (filled[22:27, 13:15] < 60).all() and (filled[:, 0] == 0).all(), 'not between the legs'
  given(page, page.get_by_label('Fill outlines').uncheck)
  hollow = seen(page)[..., 0]
  assert (hollow[6, 13:15] < 60).all() and hollow[6].max() >= ink
  # What Python makes of the same paper.
  np.testing.assert_array_equal(hollow[..., None], photograph.to_input(
      np.asarray(paint(page, 'paper').convert('RGB')), (28, 28, 1)))
  given(page, page.get_by_role('button', name='Clear').click)
  assert page.locator('#bars li').count() == 0 and not seen(page).any()


def test_a_finger_draws(opened, run):
  page = opened(run[0] / 'report' / 'report.html', has_touch=True,
                viewport={'width': 390, 'height': 800})
  assert page.get_by_role('button', name='Photograph').is_visible() or not page.evaluate(
      'matchMedia("(any-pointer: coarse)").matches')
  page.locator('#paper').scroll_into_view_if_needed()
  assert given(page, lambda: page.locator('#paper').tap()).endswith('%')
  assert page.inner_text('#what') == 'Your drawing'


def test_it_is_used_by_keyboard(page, run):
  page.locator('#paper').scroll_into_view_if_needed()
  reached = []
  page.locator('#choose').focus()
  for _ in range(13):
    reached.append(page.evaluate('document.activeElement.innerText || document.activeElement.id'))
    assert page.evaluate('getComputedStyle(document.activeElement).outlineStyle') == 'solid'
    page.keyboard.press('Tab')
  assert reached[:3] == ['Choose a picture', 'Clear', 'fill']
  assert set(run[4]) <= set(reached)
  page.keyboard.press('Shift+Tab')
  assert given(page, lambda: page.keyboard.press('Enter')).endswith('%')
  assert page.inner_text('#what').endswith(reached[-1])
  with page.expect_file_chooser():
    page.locator('#choose').focus()
    page.keyboard.press('Space')
  assert page.locator('[role=status]').inner_text()


@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_fits_the_screen_and_can_be_read(opened, run, width, scheme):
  page = opened(run[0] / 'report' / 'report.html', color_scheme=scheme,
                viewport={'width': width, 'height': 800})
  assert page.evaluate('document.documentElement.scrollWidth') == width
  def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in np.array(color) / 255]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))
  channels = 'Array.from(getComputedStyle(document.querySelector("%s")).%s.match(/\\d+/g), Number)'
  ground = luminance(page.evaluate(channels % ('.try', 'backgroundColor'))[:3])
  for text in ('#said', '#timing', '#bars li', '.hint'):
    ink = luminance(page.evaluate(channels % (text, 'color'))[:3])
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, text  # WCAG 2.2, AA


def test_without_javascript_it_says_so(opened, run):
  page = opened(run[0] / 'report' / 'report.html', java_script_enabled=False)
  assert page.get_by_text('where JavaScript is allowed').is_visible()
  assert not page.locator('#try').is_visible()


def test_a_large_network_is_not_even_traced(run, monkeypatch):
  model = load_run(run[0])
  monkeypatch.setattr(report, 'MOST_WEIGHTS', 100)
  monkeypatch.delattr(graph, 'trace')
  found = evaluation._network(model.config, data.load(model.config.data), model.variables)
  assert found.endswith('weights, and a page holds at most 100.')
  with pytest.raises(ExportError, match='holds at most 100'):
    command.main(interrupt.Interrupt(), ['--workdir', str(run[0]), '--page', '--output=x.html'])


def test_the_page_alone(opened, run, tmp_path, capsys):
  directory, _, labels, expected, names = run
  arguments = ['--workdir', str(directory), '--page', f'--output={tmp_path}/try.html']
  command.main(interrupt.Interrupt(), arguments)
  assert capsys.readouterr().out == f'wrote {tmp_path}/try.html\n'
  page = opened(tmp_path / 'try.html')
  assert page.title() == 'synthetic · CNN'
  place = int(np.flatnonzero(labels == 0)[0])
  assert said(page).startswith(names[int(expected[place].argmax())])
  with pytest.raises(WorkdirError, match='could not be written'):
    command.main(interrupt.Interrupt(), [*arguments[:-1], f'--output={tmp_path}'])


# Any network.

def some(count=12, shape=(9, 8, 3)):
  random = np.random.default_rng(0)
  return random.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % 5


def test_names_are_no_html(opened):
  network = dataclasses.replace(every_layer(), class_names=(NASTY, 'b' * 80, 'c', 'd', NASTY * 2))
  content = try_it.page(network, *some(), 'test', NASTY)
  page = opened(content, viewport={'width': 390, 'height': 800})
  assert page.evaluate('document.documentElement.scrollWidth') == 390
  assert page.title().split() == NASTY.split()
  assert NASTY in page.evaluate('network.class_names')
  assert page.locator('.offered span').first.text_content() == NASTY
  assert page.evaluate('document.scripts.length') == 2
  assert content == try_it.page(network, *some(), 'test', NASTY), 'the same bytes'


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser, tmp_path):
  content = try_it.page(every_layer(), *some(), 'test', 'x')
  (tmp_path / 'page.html').write_bytes(content.replace(b'<h1', b'<script>ran = 1</script><h1'))
  page = browser.new_page()
  page.goto((tmp_path / 'page.html').as_uri())
  assert said(page)
  assert page.evaluate('typeof ran') == 'undefined'
  page.close()


def grown(network, number, **changes):
  """The network with a layer changed."""
  layers = list(network.layers)
  layers[number] = dataclasses.replace(layers[number], **changes)
  return dataclasses.replace(network, layers=tuple(layers))


@pytest.mark.parametrize(('network', 'reason'), [
    (dataclasses.replace(every_layer(), image_shape=(9, 8, 2)), 'images of 2 channels'),
    (dataclasses.replace(every_layer(), image_shape=(9, 800, 3)), '9 x 800 pixels'),
    (grown(every_layer(), 18, arrays={'kernel': np.zeros((1, 4_000_000), np.float32)}),
     r'4,000,\d+ weights, and a page holds at most 3,000,000'),
    (grown(every_layer(), 0, shape=(20_000, 20_000, 6)), '43.2 billion multiplications')])
def test_where_there_is_no_card_the_report_says_why(network, reason):
  shown = try_it.card(network, *some(), 'test')
  assert re.search(reason, shown.body) and 'There is no network to try' in shown.body
  assert '<script' not in shown.body and not shown.script
  with pytest.raises(ExportError, match=reason):
    try_it.page(network, *some(), 'test', 'x')


@pytest.mark.parametrize(('error', 'reason'), [
    (ExportError('The model has an operation that no layer stands for.'), 'no layer stands for'),
    (RuntimeError('no <luck>'), 'RuntimeError: no &lt;luck&gt;')])
def test_a_network_that_cannot_be_traced_does_not_cost_the_report(run, monkeypatch, error, reason):
  def trace(*_):
    raise error
  monkeypatch.setattr(graph, 'trace', trace)
  model = load_run(run[0])
  network = evaluation._network(model.config, data.load(model.config.data), model.variables)
  assert reason in try_it.card(network, *some(), 'test').body
