"""The ten garments of Fashion-MNIST, drawn on a canvas whose middle is (0, 0), up to 12 pixels out.

Each function draws one kind of garment; what varies is drawn from `settings`, in a fixed order.
"""

from __future__ import annotations

import numpy as np

from fmnist_jax.data.canvas import Canvas, Settings


def _torso(canvas: Canvas, settings: Settings, cloth: np.ndarray, hem: np.ndarray,
           length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """A body from the shoulders to the hem; returns half its width at the chest and the neck."""
  chest, neck = settings(1250, 1750), settings(500, 900)
  waist = chest - settings(0, 250)
  at = [-2560, -2250, 0, length]
  sides = [neck, chest, waist, hem + waist]
  canvas.add(canvas.cover(at, [-side for side in sides], sides), cloth)
  return chest, neck


def _sleeves(canvas: Canvas, settings: Settings, cloth: np.ndarray, chest: np.ndarray,
             length: np.ndarray) -> None:
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
    canvas.shade(canvas.cover([-1900, -1800, end], [point - 60 for point in inner],
                              [point + 60 for point in inner]), settings(60, 200))


def _neckline(canvas: Canvas, settings: Settings, neck: np.ndarray, depth: np.ndarray) -> None:
  canvas.shade(canvas.cover([-2600, -2560 + depth], [-neck, -neck // 4], [neck, neck // 4]),
               settings(200, 256))


def _cloth(settings: Settings) -> np.ndarray:
  """Brightness."""
  return settings(90, 255)


def _t_shirt(canvas: Canvas, settings: Settings) -> None:
  cloth = _cloth(settings)
  chest, neck = _torso(canvas, settings, cloth, settings(-100, 250), settings(2000, 2900))
  _sleeves(canvas, settings, cloth, chest, settings(900, 2000))
  _neckline(canvas, settings, neck, settings(250, 900))


def _trouser(canvas: Canvas, settings: Settings) -> None:
  cloth = _cloth(settings)
  waist, hip, foot = settings(700, 1100), settings(900, 1300), settings(450, 800)
  crotch, apart = settings(-1400, -600), settings(0, 600)
  for side in (-1, 1):
    outer = [side * waist, side * hip, side * (foot + apart)]
    inner = [0 * waist, side * 60 + 0 * waist, side * apart]
    low, high = (outer, inner) if side < 0 else (inner, outer)
    canvas.add(canvas.cover([-2900, crotch, 2900], low, high), cloth)
  canvas.shade(canvas.cover([-2900, -2500], [-waist] * 2, [waist] * 2), settings(-60, 120))


def _pullover(canvas: Canvas, settings: Settings) -> None:
  cloth = _cloth(settings)
  length = settings(2200, 2900)
  chest, neck = _torso(canvas, settings, cloth, settings(-200, 250), length)
  _sleeves(canvas, settings, cloth, chest, settings(3500, 4700))
  _neckline(canvas, settings, neck, settings(150, 700))
  hem = settings(0, 140)
  canvas.shade(canvas.cover([length - 300, length], [-chest] * 2, [chest] * 2), hem)


def _dress(canvas: Canvas, settings: Settings) -> None:
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


def _coat(canvas: Canvas, settings: Settings) -> None:
  cloth = _cloth(settings)
  chest, neck = _torso(canvas, settings, cloth, settings(-100, 500), settings(2500, 3100))
  _sleeves(canvas, settings, cloth, chest, settings(3700, 4900))
  _neckline(canvas, settings, neck, settings(500, 1700))
  line, width = settings(-100, 100), settings(50, 130)
  canvas.shade(canvas.cover([-2200, 3100], [line - width] * 2, [line + width] * 2),
               settings(90, 240))


def _shirt(canvas: Canvas, settings: Settings) -> None:
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


def _shoe_sole(canvas: Canvas, settings: Settings, thickness: np.ndarray,
               heel: np.ndarray) -> None:
  value = settings(60, 255)
  canvas.add(canvas.cover([-2900, -2600, 0, 2700], [1500, 1500, 1500, 1500],
                          [1500, 1500 + thickness, 1500 + thickness, 1500 + thickness + heel],
                          columns=True), value)


def _sandal(canvas: Canvas, settings: Settings) -> None:
  cloth = _cloth(settings)
  heel = settings.chance(50) * settings(100, 1300)
  ground, instep = 1500, settings(500, 1100) + heel // 2
  # Straps rise from the sole towards the ankle; a slide has them at the toes alone.
  slide = settings.chance(25)
  ankle = settings(-1500, -300) - heel // 2
  for foot, top, present in ((settings(-2300, -1700), ground - instep, 1),
                             (settings(-1300, -600), ground - instep - 300, 1),
                             (settings(-200, 700), ankle, 1 - slide)):
    width, lean = settings(130, 330), settings(300, 1000)
    canvas.add(canvas.cover([top, ground - heel // 4], [foot + lean - width, foot - width],
                            [foot + lean + width, foot + width]), cloth * present)
  back, strap = settings(2100, 2600), settings(150, 350)
  loop = canvas.cover([settings(300, 900), back], [ankle, ankle], [ankle + strap, ankle + strap],
                      columns=True)
  counter = canvas.cover([ankle, ground - heel // 2], [back - 150, back - 200], [back + 150] * 2)
  canvas.add(np.maximum(loop, counter) * (1 - slide)[:, None, None], cloth)
  sole = settings(50, 255)
  canvas.add(canvas.cover([-2900, -1500, 2800], [ground - 150, ground - 100, ground - 250 - heel],
                          [ground, ground + 200, ground + 200 - heel // 2], columns=True), sole)
  canvas.add(canvas.cover([1900, 2700], [ground - 200 - heel] * 2, [ground + 200] * 2,
                          columns=True), sole)


def _sneaker(canvas: Canvas, settings: Settings) -> None:
  cloth = _cloth(settings)
  toe, ankle = settings(500, 1000), settings(-1300, 100)
  slope, dip = settings(-600, 300), settings(100, 600)
  at = [-2900, -2500, slope, slope + 1200, 2300, 2800]
  canvas.add(canvas.cover(at, [1300, toe, ankle + 200, ankle + 200 + dip, ankle, ankle + 300],
                          [1600] * 6, columns=True), cloth)
  _shoe_sole(canvas, settings, settings(150, 450), settings(0, 100))
  tilt, pitch, strength = settings(300, 700), settings(350, 600), settings(-140, 180)
  for lace in range(3):
    x = slope - 1500 + lace * pitch
    canvas.shade(canvas.cover([ankle + 300, ankle + 1300], [x + tilt, x],
                              [x + tilt + 170, x + 170]), strength)
  # A mark on the side.
  x, lean = settings(-300, 900), settings(-900, 900)
  canvas.shade(canvas.cover([ankle + 900, 1400], [x + lean, x], [x + lean + 300, x + 300]),
               settings(-200, 200))


def _bag(canvas: Canvas, settings: Settings) -> None:
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


def _ankle_boot(canvas: Canvas, settings: Settings) -> None:
  cloth = _cloth(settings)
  toe, ankle = settings(100, 900), settings(-2700, -900)
  front = settings(-400, 800)
  canvas.add(canvas.cover([-2800, -2300, front - 300, front, 2700],
                          [1200, toe, 0 * toe, ankle, ankle], [1600] * 5, columns=True), cloth)
  heel = settings.chance(60) * settings(200, 900)
  _shoe_sole(canvas, settings, settings(80, 350), heel // 4)
  canvas.add(canvas.cover([1500, 2700], [1500] * 2, [1600 + heel] * 2, columns=True), cloth)
  canvas.shade(canvas.cover([ankle, ankle + 250], [front] * 2, [2700] * 2), settings(-60, 150))


# By label.
GARMENTS = (_t_shirt, _trouser, _pullover, _dress, _coat, _sandal, _shirt, _sneaker, _bag,
            _ankle_boot)
