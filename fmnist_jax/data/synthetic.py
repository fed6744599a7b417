"""Ten garments drawn by formula: a stand-in for Fashion-MNIST where there is no network.

Every picture is a pure function of (seed, split, number), with the same bits on every machine and
numpy version: raw bits of the counter-based Philox generator (Salmon et al., 2011), and integer
arithmetic only. Lengths are in 1/256 pixel.

A garment is a union of spans: shapes bounded, for each row (or, for shoes and bags, each column),
by two piecewise linear outlines, which makes coverage of a pixel exact and quick to compute.
Number i is of class i % 10.
"""

from __future__ import annotations

import numpy as np

from fmnist_jax.data import sources

CLASS_NAMES = sources.ORIGINALS['fashion_mnist'].class_names
# To be raised whenever a single bit of a picture changes: prepared copies go by it.
VERSION = '1.0.0'
SIDE = 28

_SETTING_WORDS = 32  # Philox words (64 bits) for the settings of a picture: 128 numbers of 16 bits.
_NOISE_WORDS = SIDE * SIDE * 2 // 8
_WORDS = _SETTING_WORDS + _NOISE_WORDS
_PHILOX_BLOCK = 4  # Words a step of the counter; _WORDS is a multiple of it.
_BATCH = 500  # Pictures drawn at once, so that intermediate arrays stay in the cache.
_ONE = 256
_MIDDLE = SIDE * _ONE // 2
_EDGES = np.arange(SIDE, dtype=np.int32) * _ONE


def draw(numbers: np.ndarray, *, seed: int = 0, split: str = 'train') -> tuple[np.ndarray,
                                                                               np.ndarray]:
  """Draws examples.

  Args:
    numbers: which ones, integers >= 0, [N].
    seed: 0 to 2**62.
    split: 'train' or 'test', which have no picture in common.

  Returns:
    Images uint8 [N, 28, 28, 1] and labels int32 [N].
  """
  numbers = np.asarray(numbers, np.int64)
  images = np.empty((len(numbers), SIDE, SIDE, 1), np.uint8)
  for start in range(0, len(numbers), _BATCH):
    part = slice(start, start + _BATCH)
    words = _words(numbers[part], 2 * seed + (split == 'test'))
    for label in range(len(CLASS_NAMES)):
      chosen = np.flatnonzero(numbers[part] % len(CLASS_NAMES) == label)
      if len(chosen):
        images[start + chosen, :, :, 0] = _picture(label, words[chosen])
  return images, (numbers % len(CLASS_NAMES)).astype(np.int32)


def _words(numbers: np.ndarray, key: int) -> np.ndarray:
  """The raw 64-bit words of each number, [N, _WORDS]: a stretch of one long Philox stream."""
  words = np.empty((len(numbers), _WORDS), '<u8')
  breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
  for run in np.split(np.arange(len(numbers)), breaks):
    generator = np.random.Philox(key=key, counter=int(numbers[run[0]]) * _WORDS // _PHILOX_BLOCK)
    words[run] = generator.random_raw(len(run) * _WORDS).reshape(len(run), _WORDS)
  return words


class _Settings:
  """Random numbers of some pictures, handed out one after the other."""

  def __init__(self, words: np.ndarray):
    self._values = words[:, :_SETTING_WORDS].copy().view('<u2').astype(np.int32)
    self._next = 0

  def __call__(self, low: int, high: int) -> np.ndarray:
    """Uniform integers from low to high, both included, [n]."""
    self._next += 1
    return low + (self._values[:, self._next - 1] * (high - low + 1) >> 16)

  def chance(self, percent: int) -> np.ndarray:
    """1 with this chance, otherwise 0, [n]."""
    return (self(0, 99) < percent).astype(np.int32)


class _Canvas:
  """Some pictures of one garment, each in its own pose."""

  def __init__(self, settings: _Settings, n: int):
    self.picture = np.zeros((n, SIDE, SIDE), np.int32)
    # Garments reach 12 pixels from the middle before they are scaled and moved.
    self._scale_x, self._scale_y = settings(190, 290), settings(200, 280)
    self._move_x, self._move_y = settings(-500, 500), settings(-400, 400)
    self._shear = settings(-50, 50)
    self._noise_scale = None

  def _along(self, points: list, across: bool) -> np.ndarray:
    """Where along an axis: canonical lengths [n] or ints to pixel positions [n, k]."""
    scale, move = (self._scale_x, self._move_x) if across else (self._scale_y, self._move_y)
    values = np.stack([np.broadcast_to(point, scale.shape) for point in points], axis=1)
    return _MIDDLE + (values * scale[:, None] >> 8) + move[:, None]

  def cover(self, at: list, low: list, high: list, columns: bool = False) -> np.ndarray:
    """The share (0 to 256) of each pixel between two outlines, [n, 28, 28].

    Args:
      at: where along y (x, for columns) the corners of both outlines are, rising.
      low: the left (upper) outline at these corners.
      high: the right (lower) outline there.
      columns: whether the shape is spanned column by column.
    """
    at_nxk = self._along(at, columns)
    centres = _EDGES + _ONE // 2
    slant = self._shear[:, None] * (centres - _MIDDLE)[None] >> 8
    low_nxs, high_nxs = (_outline(at_nxk, self._along(points, not columns)) + slant
                         for points in (low, high))
    ends = _overlap(at_nxk[:, :1], at_nxk[:, -1:])
    inside = _overlap(low_nxs[:, :, None], high_nxs[:, :, None])
    covered = inside * ends[:, :, None] >> 8
    return covered.swapaxes(1, 2) if columns else covered

  def add(self, cover: np.ndarray, value: np.ndarray) -> None:
    """Lays cloth of brightness `value` [n] over what is there."""
    self.picture += cover * (value[:, None, None] - self.picture) >> 8

  def shade(self, cover: np.ndarray, strength: np.ndarray) -> None:
    """Darkens by `strength`/256 where covered; brightens where strength is negative."""
    self.picture -= (cover * strength[:, None, None] >> 8) * self.picture >> 8


def _overlap(low: np.ndarray, high: np.ndarray) -> np.ndarray:
  """How much of each pixel, 0 to 256, lies between low and high; adds or fills the last axis."""
  return np.clip(np.minimum(high, _EDGES + _ONE) - np.maximum(low, _EDGES), 0, _ONE)


def _outline(at: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Piecewise linear interpolation at the middle of each of the 28 rows: [n, k] -> [n, 28]."""
  centres = _EDGES[None] + _ONE // 2
  result = np.repeat(values[:, :1], SIDE, axis=1)
  for k in range(at.shape[1] - 1):
    length = np.maximum(at[:, k + 1:k + 2] - at[:, k:k + 1], 1)
    passed = np.clip(centres - at[:, k:k + 1], 0, length)
    result = result + passed * (values[:, k + 1:k + 2] - values[:, k:k + 1]) // length
  return result


def _picture(label: int, words: np.ndarray) -> np.ndarray:
  """Pictures of one class from their random words: uint8 [n, 28, 28]."""
  settings = _Settings(words)
  canvas = _Canvas(settings, len(words))
  _GARMENTS[label](canvas, settings)
  return _finish(canvas.picture, settings, words)


def _finish(picture: np.ndarray, settings: _Settings, words: np.ndarray) -> np.ndarray:
  """Adds light, folds, a print and noise."""
  n = len(picture)
  x, y = _EDGES[None, None, :] >> 8, _EDGES[None, :, None] >> 8
  light_x, light_y = settings(-5, 5), settings(-5, 5)
  light = _ONE + light_x[:, None, None] * (x - 14) + light_y[:, None, None] * (y - 14)
  # Folds and prints: triangle waves across the cloth in any direction.
  for strength, pitch in ((settings(0, 60), settings(20, 60)),
                          (settings(-200, 140).clip(0), settings(40, 110))):
    phase = settings(0, 255)
    across, down = settings(-64, 64), settings(-64, 64)
    wave = ((x * across[:, None, None] + y * down[:, None, None]) * pitch[:, None, None] >> 5)
    wave = np.abs((wave + phase[:, None, None] & 255) - 128)
    light = light - (wave * strength[:, None, None] >> 7)
  picture = picture * light.clip(0) >> 8
  # Two bytes make a triangular distribution.
  noise = words[:, _SETTING_WORDS:].copy().view(np.uint8).astype(np.int32)
  noise = noise.reshape(n, 2, SIDE, SIDE).sum(axis=1) - 255
  amount = settings(4, 60)
  picture = picture + (noise * amount[:, None, None] >> 8) * (picture > 4)
  return picture.clip(0, 255).astype(np.uint8)


def _torso(canvas, settings, cloth, hem, length):
  """A body from the shoulders to the hem; returns half its width at the chest and the neck."""
  chest, neck = settings(1250, 1750), settings(500, 900)
  waist = chest - settings(0, 250)
  at = [-2560, -2250, 0, length]
  sides = [neck, chest, waist, hem + waist]
  canvas.add(canvas.cover(at, [-side for side in sides], sides), cloth)
  return chest, neck


def _sleeves(canvas, settings, cloth, chest, length):
  """Arms of `length`, hanging at an angle."""
  spread, width = settings(350, 950), settings(550, 900)
  end = -2200 + length
  reach = chest + spread * length // 2048
  for side in (-1, 1):
    outer = [side * (chest - 500), side * (chest + 350), side * (reach + 400)]
    inner = [side * (chest - 700), side * (chest - 400), side * (reach + 400 - width)]
    low, high = (outer, inner) if side < 0 else (inner, outer)
    at = [-2450, -1900, end]
    canvas.add(canvas.cover(at, low, high), cloth)
    # The shadow between arm and body.
    seam = [[point - 60 for point in inner], [point + 60 for point in inner]]
    canvas.shade(canvas.cover([-1900, -1800, end], *seam), settings(60, 200))


def _neckline(canvas, settings, neck, depth):
  canvas.shade(canvas.cover([-2600, -2560 + depth], [-neck, -neck // 4], [neck, neck // 4]),
               settings(200, 256))


def _cloth(settings):
  return settings(90, 255)


def _t_shirt(canvas, settings):
  cloth = _cloth(settings)
  chest, neck = _torso(canvas, settings, cloth, settings(-100, 250), settings(2000, 2900))
  _sleeves(canvas, settings, cloth, chest, settings(900, 2000))
  _neckline(canvas, settings, neck, settings(250, 900))


def _trouser(canvas, settings):
  cloth = _cloth(settings)
  waist, hip, foot = settings(700, 1100), settings(900, 1300), settings(450, 800)
  crotch, apart = settings(-1400, -600), settings(0, 600)
  for side in (-1, 1):
    outer = [side * waist, side * hip, side * (foot + apart)]
    inner = [0 * waist, side * 60 + 0 * waist, side * apart]
    low, high = (outer, inner) if side < 0 else (inner, outer)
    canvas.add(canvas.cover([-2900, crotch, 2900], low, high), cloth)
  canvas.shade(canvas.cover([-2900, -2500], [-waist] * 2, [waist] * 2), settings(-60, 120))


def _pullover(canvas, settings):
  cloth = _cloth(settings)
  length = settings(2200, 2900)
  chest, neck = _torso(canvas, settings, cloth, settings(-200, 250), length)
  _sleeves(canvas, settings, cloth, chest, settings(3500, 4700))
  _neckline(canvas, settings, neck, settings(150, 700))
  hem = settings(0, 140)
  canvas.shade(canvas.cover([length - 300, length], [-chest] * 2, [chest] * 2), hem)


def _dress(canvas, settings):
  cloth = _cloth(settings)
  shoulder, waist, hem = settings(500, 1100), settings(500, 900), settings(900, 1900)
  middle = settings(-1100, -100)
  at = [-2900, -2400, middle, 2900]
  sides = [shoulder - 250, shoulder, waist, hem]
  canvas.add(canvas.cover(at, [-side for side in sides], sides), cloth)
  sleeves = settings.chance(45) * settings(400, 1800)
  _sleeves(canvas, settings, cloth, shoulder - 200, sleeves)
  _neckline(canvas, settings, shoulder - 250, settings(200, 1200))
  canvas.shade(canvas.cover([middle - 120, middle + 120], [-waist] * 2, [waist] * 2),
               settings.chance(40) * settings(60, 200))


def _coat(canvas, settings):
  cloth = _cloth(settings)
  chest, neck = _torso(canvas, settings, cloth, settings(-100, 500), settings(2500, 3100))
  _sleeves(canvas, settings, cloth, chest, settings(3700, 4900))
  _neckline(canvas, settings, neck, settings(500, 1700))
  line, width = settings(-100, 100), settings(50, 130)
  canvas.shade(canvas.cover([-2200, 3100], [line - width] * 2, [line + width] * 2),
               settings(90, 240))


def _shirt(canvas, settings):
  cloth = _cloth(settings)
  chest, neck = _torso(canvas, settings, cloth, settings(-150, 300), settings(2100, 3000))
  short = settings.chance(30)
  length = short * settings(1000, 2200) + (1 - short) * settings(3400, 4700)
  _sleeves(canvas, settings, cloth, chest, length)
  _neckline(canvas, settings, neck, settings(200, 800))
  drop, strength = settings(500, 1000), settings(-160, -50)
  for side in (-1, 1):
    canvas.shade(canvas.cover([-2700, -2600 + drop], [side * neck - 230, side * 200 - 150],
                              [side * neck + 230, side * 200 + 150]), strength)
  pitch, button = settings(700, 1100), settings(50, 220)
  for number in range(5):
    top = -1700 + number * pitch
    canvas.shade(canvas.cover([top, top + 220], [-110] * 2, [110] * 2), button)


def _shoe_sole(canvas, settings, thickness, heel):
  value = settings(60, 255)
  canvas.add(canvas.cover([-2900, -2600, 0, 2700], [1500, 1500, 1500, 1500],
                          [1500, 1500 + thickness, 1500 + thickness, 1500 + thickness + heel],
                          columns=True), value)


def _sandal(canvas, settings):
  cloth = _cloth(settings)
  heel = settings.chance(50) * settings(100, 1300)
  canvas.add(canvas.cover([-2900, -1500, 2800], [1350, 1400, 1300 - heel],
                          [1500, 1700, 1700 - heel // 2], columns=True), cloth)
  canvas.add(canvas.cover([1900, 2700], [1200 - heel, 1200 - heel], [1700, 1700], columns=True),
             cloth)
  for foot in (settings(-2300, -1300), settings(-1000, 200), settings(900, 2200)):
    width, lean, height = settings(130, 380), settings(-900, 900), settings(900, 2700)
    canvas.add(canvas.cover([1500 - height, 1500], [foot + lean - width, foot - width],
                            [foot + lean + width, foot + width]), cloth)


def _sneaker(canvas, settings):
  cloth = _cloth(settings)
  toe, ankle = settings(500, 1000), settings(-1300, 100)
  slope = settings(-600, 300)
  canvas.add(canvas.cover([-2900, -2500, slope, 1500, 2800], [1300, toe, ankle + 200,
                                                              ankle + 300, ankle],
                          [1600] * 5, columns=True), cloth)
  _shoe_sole(canvas, settings, settings(150, 450), settings(0, 100))
  for lace in range(3):
    x = -1500 + lace * settings(350, 600)
    canvas.shade(canvas.cover([-300, 900], [x + 100, x - 250], [x + 260, x - 90]),
                 settings(-120, 160))


def _bag(canvas, settings):
  cloth = _cloth(settings)
  top, bottom = settings(-1300, 0), settings(1500, 2700)
  wide, flare = settings(1500, 2800), settings(-400, 300)
  canvas.add(canvas.cover([top, bottom], [-wide, -wide - flare], [wide, wide + flare]), cloth)
  height, reach, strap = settings(0, 2000), settings(500, 1500), settings(90, 260)
  peak = top - height
  canvas.add(canvas.cover([peak, top], [-reach // 2, -reach], [-reach // 2 + strap,
                                                              -reach + strap]), cloth)
  canvas.add(canvas.cover([peak, top], [reach // 2 - strap, reach - strap], [reach // 2, reach]),
             cloth)
  canvas.add(canvas.cover([peak - strap, peak], [-reach // 2] * 2, [reach // 2] * 2), cloth)
  flap = settings(200, 1300)
  canvas.shade(canvas.cover([top + flap, top + flap + 200], [-wide] * 2, [wide] * 2),
               settings(0, 200))
  canvas.shade(canvas.cover([top + flap - 200, top + flap + 500], [-200] * 2, [200] * 2),
               settings(-160, 200))


def _ankle_boot(canvas, settings):
  cloth = _cloth(settings)
  toe, ankle = settings(100, 900), settings(-2700, -900)
  front = settings(-400, 800)
  canvas.add(canvas.cover([-2800, -2300, front - 300, front, 2700],
                          [1200, toe, 0 * toe, ankle, ankle], [1600] * 5, columns=True), cloth)
  heel = settings.chance(60) * settings(200, 900)
  _shoe_sole(canvas, settings, settings(80, 350), heel // 4)
  canvas.add(canvas.cover([1500, 2700], [1500] * 2, [1600 + heel] * 2, columns=True), cloth)
  canvas.shade(canvas.cover([ankle, ankle + 250], [front] * 2, [2700] * 2), settings(-60, 150))


_GARMENTS = (_t_shirt, _trouser, _pullover, _dress, _coat, _sandal, _shirt, _sneaker, _bag,
             _ankle_boot)
