"""Augmentations do what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmnist_jax import config as config_lib
from fmnist_jax import data, ops
from fmnist_jax.config import (
    Affine,
    AlternatingFlip,
    CutMix,
    Flip,
    MixUp,
    RandAugment,
    RandomErasing,
    Shift,
)
from fmnist_jax.data import augmentations as augment
from fmnist_jax.data import rand_augment

KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def images():
  return jax.random.uniform(jax.random.key(1), (16, 28, 28, 2), minval=0.1)


def test_flip_mirrors_with_its_probability(images):
  mirrored = np.asarray(images)[:, :, ::-1]
  np.testing.assert_array_equal(augment.horizontal_flip(KEY, images, 1.0), mirrored)
  np.testing.assert_array_equal(augment.horizontal_flip(KEY, images, 0.0), images)
  many = jnp.broadcast_to(images[:1], (2000, 28, 28, 2))
  flipped = np.asarray(augment.horizontal_flip(KEY, many, 0.25))[:, 0, 0, 0] == mirrored[0, 0, 0, 0]
  assert 0.2 < flipped.mean() < 0.3  # Standard deviation 0.01.


def test_an_alternating_flip_shows_either_side_of_each_image_in_two_epochs(images):
  def seen(epoch, examples, key=KEY, probability=0.5):
    place = data.Place(jax.random.key(3), jnp.int32(epoch), examples)
    shown = data.augment((AlternatingFlip(probability),), key, images[examples], None, place)[0]
    sides = [np.asarray(side[examples]) for side in (images, images[:, :, ::-1])]
    mirrored = (np.asarray(shown) == sides[1]).all((1, 2, 3))
    plain = (np.asarray(shown) == sides[0]).all((1, 2, 3))
    assert (mirrored != plain).all(), 'the one or the other'
    return mirrored
  order = jnp.array([3, 1, 15, 7, 0, 9, 12, 4])
  first, second, third = (seen(epoch, order) for epoch in range(3))
  assert 0 < first.sum() < 8
  np.testing.assert_array_equal(second, ~first)
  np.testing.assert_array_equal(third, first)
  # It is the image that counts, wherever it stands in a batch of whatever step.
  np.testing.assert_array_equal(seen(2, order[::-1], jax.random.key(9)), first[::-1])
  assert seen(1, order, probability=1.0).sum() == 0 == (~seen(0, order, probability=1.0)).sum()
  with pytest.raises(TypeError, match='has to know the epoch'):
    AlternatingFlip()(KEY, images, None)


def test_half_of_the_images_are_mirrored_first_and_each_run_and_entry_draws_for_itself():
  bars = jnp.zeros((2000, 1, 4, 1)).at[:, :, 0].set(1)
  def mirrored(sequence, key):
    place = data.Place(jax.random.key(key), jnp.int32(0), jnp.arange(2000))
    return np.asarray(data.augment(sequence, KEY, bars, None, place)[0])[:, 0, 3, 0] == 1
  flip = AlternatingFlip()
  one, other = mirrored((flip,), 0), mirrored((flip,), 1)
  for share in (one.mean(), (one ^ other).mean(), mirrored((flip, flip), 0).mean()):
    assert 0.45 < share < 0.55  # Standard deviation 0.011.


def moved(image, down, right):
  """The slow way: roll, then blank what came round."""
  result = np.roll(image, (down, right), (0, 1))
  height, width = image.shape[:2]
  for axis, by, size in ((0, down, height), (1, right, width)):
    lines = np.arange(size)
    outside = (lines - by < 0) | (lines - by >= size)
    result[(slice(None),) * axis + (outside,)] = 0
  return result


def test_shift_by_known_offsets(images):
  offsets = np.array([(0, 0), (3, -2), (-1, 5), (27, 0), (0, -28), (40, 40)] + [(1, 1)] * 10)
  result = augment.shift_by(images, jnp.asarray(offsets))
  for image, after, offset in zip(np.asarray(images), np.asarray(result), offsets):
    np.testing.assert_array_equal(after, moved(image, *offset))


def test_shift_draws_every_offset_alike():
  spot = jnp.zeros((4000, 9, 9, 1)).at[:, 4, 4].set(1)
  places = np.argwhere(np.asarray(Shift(2.0)(KEY, spot, None)[0]))[:, 1:3] - 4
  assert len(places) == 4000
  counts = np.bincount((places[:, 0] + 2) * 5 + places[:, 1] + 2, minlength=25)
  # 160 expected in each of 25 places; chi-squared with 24 degrees of freedom, 99.99 %.
  assert ((counts - 160) ** 2 / 160).sum() < 59


@pytest.mark.parametrize('shape', [(28, 28), (7, 7), (7, 10)])
def test_turning_by_right_angles_is_exact(shape):
  image = np.random.default_rng(0).random((1, *shape, 3), np.float32)
  for degrees, turns in ((90.0, 1), (180.0, 2), (-90.0, 3), (360.0, 0)):
    if shape[0] != shape[1] and turns % 2:
      continue
    result = augment.resample(jnp.asarray(image), degrees, 1.0, 0.0)
    np.testing.assert_allclose(result, np.rot90(image, turns, (1, 2)), atol=2e-5)


def test_resampling_agrees_with_a_slow_reference():
  random = np.random.default_rng(0)
  image = random.random((12, 15)).astype(np.float32)
  degrees, zoom, (down, right) = 23.0, 1.3, (2.0, -3.0)
  result = augment.resample(jnp.asarray(image)[None, :, :, None], degrees, zoom,
                            jnp.asarray([[down, right]]))[0, :, :, 0]
  angle, padded = np.deg2rad(degrees), np.pad(image, 30)
  for y in range(12):
    for x in range(15):
      # Undo the move, then the zoom, then the turn, about the middle.
      v, u = (y - down - 5.5) / zoom, (x - right - 7) / zoom
      # Counter-clockwise on a screen whose y points down.
      row = np.cos(angle) * v + np.sin(angle) * u + 5.5 + 30
      column = np.cos(angle) * u - np.sin(angle) * v + 7 + 30
      top, left = int(np.floor(row)), int(np.floor(column))
      a, b = row - top, column - left
      value = ((1 - a) * ((1 - b) * padded[top, left] + b * padded[top, left + 1])
               + a * ((1 - b) * padded[top + 1, left] + b * padded[top + 1, left + 1]))
      assert abs(result[y, x] - value) < 1e-4


def test_turning_goes_counter_clockwise():
  image = jnp.zeros((1, 9, 9, 1)).at[0, 4, 8].set(1)  # At three o'clock.
  assert augment.resample(image, 90.0, 1.0, 0.0)[0, 0, 4, 0] > 0.99  # At twelve.


def test_zoom_enlarges_about_the_middle():
  square = jnp.zeros((1, 28, 28, 1)).at[:, 10:18, 10:18].set(1)
  for factor in (0.5, 1.5, 2.0):
    result = np.asarray(augment.resample(square, 0.0, factor, 0.0))[0, :, :, 0]
    assert abs(result.sum() / 64 - factor**2) < 0.1 * factor**2
    np.testing.assert_allclose(result, result[::-1, ::-1], atol=1e-5)  # Still in the middle.


def test_random_strengths_stay_within_bounds():
  # A bar of unit mass: its angle and its size are read off second moments.
  bar = jnp.zeros((500, 41, 41, 1)).at[:, 20, 8:33].set(1)
  y, x = np.mgrid[-20:21, -20:21]

  def measured(result):
    mass = np.asarray(result)[..., 0]
    total = mass.sum((1, 2))
    xx, yy, xy = ((mass * term).sum((1, 2)) / total for term in (x * x, y * y, x * y))
    return np.rad2deg(np.arctan2(-2 * xy, xx - yy) / 2), np.sqrt(xx + yy)

  angles, _ = measured(Affine(rotation=30.0)(KEY, bar, None)[0])
  assert -30.5 < angles.min() < -28 and 28 < angles.max() < 30.5
  _, sizes = measured(Affine(rotation=0.0, zoom=0.2)(KEY, bar, None)[0])
  sizes = sizes / np.sqrt((np.arange(-12, 13)**2).mean())
  assert 0.78 < sizes.min() < 0.82 and 1.18 < sizes.max() < 1.22


def test_erasing_overwrites_one_rectangle_of_the_right_size():
  images = jnp.full((3000, 28, 28, 2), 2.0)  # No value that erasing writes.
  result = np.asarray(augment.random_erasing(KEY, images, 0.5))
  erased = result != 2
  np.testing.assert_array_equal(erased[..., 0], erased[..., 1])
  erased = erased[..., 0]
  assert 0.46 < erased.any((1, 2)).mean() < 0.54
  areas, aspects = [], []
  for mask in erased[erased.any((1, 2))]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert mask.sum() == height * width  # A rectangle, without holes.
    areas.append(mask.mean())
    aspects.append(height / width)
  # Sides are whole numbers: the bounds of the paper hold up to rounding.
  assert 0.01 < min(areas) < 0.035 and 0.33 < max(areas) < 0.43
  assert 0.2 < min(aspects) < 0.5 and 2.5 < max(aspects) < 4.5
  # Uniform in 0.02..0.4 before those that do not fit are drawn again.
  assert 0.17 < np.mean(areas) < 0.21
  where = erased.mean(0)
  assert where[14, 14] > where[0, 0] > 0 and where[27, 27] > 0
  values = result[result != 2]
  assert values.min() == 0 and values.max() == 1 and 0.49 < values.mean() < 0.51
  np.testing.assert_array_equal(augment.random_erasing(KEY, images, 0.0), images)


def change(sequence, key, images, targets=None):
  """The images that a sequence of augmentations makes."""
  place = data.Place(jax.random.key(3), jnp.int32(0), jnp.arange(len(images)))
  return data.augment(sequence, key, images, targets, place)[0]


def test_nothing_switched_on_changes_nothing(images):
  off = (Flip(0.0), Shift(0.0), Affine(0.0), RandomErasing(0.0), MixUp(0.0), CutMix(0.0),
         AlternatingFlip(0.0), RandAugment(0), RandAugment(2, 0.0))
  assert change((), KEY, images) is images
  assert change(off, KEY, images) is images


FLIP, SHIFT, TURN = Flip(0.5), Shift(2.0), Affine(rotation=9.0)


@pytest.mark.parametrize('shape', [(28, 28, 1), (7, 10, 1), (8, 8, 3)])
@pytest.mark.parametrize('sequence', [
    (FLIP,), (SHIFT,), (FLIP, SHIFT), (FLIP, TURN), (Flip(1.0), RandomErasing(0.5))])
def test_bytes_become_what_their_floats_become(shape, sequence):
  images = np.random.default_rng(0).integers(0, 256, (32, *shape), np.uint8)
  run = jax.jit(lambda images: change(sequence, KEY, images))
  result = run(images)
  assert result.dtype == (np.uint8 if {type(one) for one in sequence} <= {Flip, Shift}
                          else np.float32)
  np.testing.assert_allclose(ops.pixels(result), run(ops.pixels(jnp.asarray(images))), atol=1e-6)
  assert (np.asarray(ops.pixels(result)) != np.asarray(ops.pixels(jnp.asarray(images)))).any()


ALL = (Flip(0.5), Affine(rotation=10.0, zoom=0.1, shift=2.0), RandomErasing(0.5))
CASES = [(Flip(0.5),), (AlternatingFlip(0.5),), (Shift(2.0),), (Affine(rotation=10.0),),
         (Affine(rotation=0.0, zoom=0.1),), (Affine(rotation=0.0, shift=2.0),),
         (RandomErasing(0.5),), (RandAugment(2, 5.0),), ALL]


@pytest.mark.parametrize('sequence', CASES)
def test_strengths_may_be_traced(images, sequence):
  expected = jax.jit(lambda: change(sequence, KEY, images))()
  assert expected.shape == images.shape and expected.dtype == images.dtype
  assert (np.asarray(expected) != np.asarray(images)).any()
  whole = config_lib.Config(data=config_lib.Data(augment=sequence))
  strengths = {name: value for name, value in config_lib.continuous(whole).items()
               if name.startswith('data.')}
  run = lambda strengths: change(config_lib.replace(whole, strengths).data.augment, KEY, images)
  scaled = lambda by: {name: by * jnp.float32(value) for name, value in strengths.items()}
  np.testing.assert_allclose(jax.jit(run)(scaled(1)), expected, atol=1e-5)
  # Traced zeros run the same program, and change nothing.
  np.testing.assert_allclose(jax.jit(run)(scaled(0)), images, atol=1e-5)
  if sequence == ALL:  # Members of a population differ.
    members = jax.jit(jax.vmap(lambda by: run(scaled(by))))(jnp.arange(2.0))
    np.testing.assert_allclose(members[0], images, atol=1e-5)
    np.testing.assert_allclose(members[1], expected, atol=1e-5)


def test_each_image_draws_for_itself_and_each_key_anew(images):
  same = jnp.broadcast_to(images[:1], (16, 28, 28, 2))
  run = jax.jit(lambda key: change(ALL, key, same))
  results = [{image.tobytes() for image in np.asarray(run(key))}
             for key in (KEY, KEY, jax.random.key(2))]
  assert len(results[0]) == 16 and results[0] == results[1]
  assert not results[0] & results[2]


def test_the_same_twice_in_a_sequence_draws_twice(images):
  once, twice = (change((Flip(0.5),) * times, KEY, images) for times in (1, 2))
  assert (np.asarray(once) != np.asarray(twice)).any()
  assert (np.asarray(twice) != np.asarray(images)).any()


@pytest.mark.parametrize('kind', ['floats', 'bytes'])
def test_a_divided_batch_gives_the_same_without_communication(images, kind):
  if kind == 'bytes':
    images = (images[..., :1] * 255).astype(jnp.uint8)
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  run = lambda images: change((*ALL, Shift(1.0), AlternatingFlip()), KEY, images)
  compiled = jax.jit(run, in_shardings=split, out_shardings=split).lower(images).compile()
  for word in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
    assert word not in compiled.as_text()
  np.testing.assert_allclose(compiled(jax.device_put(images, split)), jax.jit(run)(images),
                             atol=1e-6)


# RandAugment.

def operated(images, *steps):
  """Images after (operation, strength), one or more, the same ones for each."""
  chosen, strengths = zip(*steps)
  places = [rand_augment.OPERATIONS.index(name) for name in chosen]
  whole = lambda row, kind: jnp.broadcast_to(jnp.asarray(row, kind), (len(images), len(row)))
  return np.asarray(rand_augment.apply(images, whole(places, jnp.int32),
                                       whole(strengths, jnp.float32)))


def test_operations_that_move_pixels(images):
  np.testing.assert_allclose(operated(images, ('identity', 0.7)), images, atol=1e-6)
  for sign in (-1, 1):
    np.testing.assert_allclose(operated(images, ('rotate', 0.6 * sign)),
                               augment.resample(images, 18.0 * sign, 1.0, 0.0), atol=1e-5)
    # 10 / 32 of 28 pixels are 8.75; so many of that are 7.
    offsets = np.tile([7 * sign, 0], (16, 1))
    np.testing.assert_allclose(operated(images, ('translate_y', 0.8 * sign)),
                               augment.shift_by(images, jnp.asarray(offsets)), atol=1e-5)
    np.testing.assert_allclose(operated(images, ('translate_x', 0.8 * sign)),
                               augment.shift_by(images, jnp.asarray(offsets[:, ::-1])), atol=1e-5)
  # Rows slide against each other by 0.3 pixels a row, columns likewise.
  slid = operated(images, ('shear_x', 1.0))
  for row in range(28):
    by = 0.3 * (row - 13.5)
    places = np.arange(28) + by
    expected = [np.interp(places, np.arange(-30, 58), np.pad(line, (30, 30)))
                for line in np.asarray(images[:, row, :, 0])]
    np.testing.assert_allclose(slid[:, row, :, 0], expected, atol=1e-5)
  turned = lambda images: jnp.swapaxes(images, 1, 2)
  np.testing.assert_allclose(turned(operated(turned(images), ('shear_y', 1.0))), slid, atol=1e-6)


def test_operations_that_change_tones(images):
  pixels = np.asarray(images, np.float64)
  for strength in (-0.5, 0.5):
    factor = 1 + 0.9 * strength
    np.testing.assert_allclose(operated(images, ('brightness', strength)),
                               np.clip(factor * pixels, 0, 1), atol=1e-5)
    mean = pixels.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(operated(images, ('contrast', strength)),
                               np.clip(mean + factor * (pixels - mean), 0, 1), atol=1e-5)
    levels = np.round(pixels * 255).astype(np.uint8) // 4 * 4  # Two bits less.
    np.testing.assert_allclose(operated(images, ('posterize', strength)), levels / 255, atol=1e-5)


def test_operations_follow_one_another():
  y, x = np.mgrid[-14:14, -14:14]
  spots = jnp.asarray(np.exp(-((y - 5)**2 + (x + 3)**2) / 12)[None, :, :, None], jnp.float32)
  steps = ('translate_x', 0.7), ('rotate', 1.0), ('shear_y', -0.8), ('brightness', 0.5)
  found, expected = operated(spots, *steps), spots
  for step in steps:
    expected = jnp.asarray(operated(expected, step))
  np.testing.assert_allclose(found, expected, atol=0.05)  # Each resampling blurs.
  other = operated(spots, *steps[1:3], steps[0], steps[3])
  assert np.abs(other - found).max() > 0.2


def test_every_operation_is_drawn_alike_and_with_either_sign():
  bars = jnp.zeros((1800, 8, 8, 1)).at[:, 3:5, 2:6].set(0.5)
  shown, _ = RandAugment(1, 10.0)(KEY, bars, None)
  kinds = {image.tobytes() for image in np.asarray(shown)}
  # 7 with two signs, identity and posterise (which takes no sign): 16 of 18 draws differ.
  assert len(kinds) == 16
  same = np.mean([image.tobytes() == np.asarray(bars[0]).tobytes() for image in np.asarray(shown)])
  assert 0.08 < same < 0.145  # One in nine; standard deviation 0.0074.


# What mixes examples.

@pytest.fixture(name='labelled')
def _labelled():
  """Images whose every pixel says which example it is, and one-hot targets."""
  images = np.broadcast_to(np.arange(10, 18, dtype=np.uint8)[:, None, None, None], (8, 20, 12, 1))
  return jnp.asarray(images), jnp.eye(8)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixup_mixes_images_and_targets_by_one_share(labelled, alpha):
  images, targets = labelled
  shares = []
  for key in jax.random.split(KEY, 200):
    mixed, soft = MixUp(alpha)(key, images, targets)
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    # An image is the mean of what its target says it is made of.
    np.testing.assert_allclose(mixed[:, 3, 4, 0], soft @ np.arange(10, 18) / 255, atol=1e-6)
    assert float(jnp.ptp(mixed, axis=(1, 2)).max()) < 1e-6
    # Where an image is mixed with another, two targets share; all by the same number.
    own = np.asarray(jnp.diagonal(soft))[np.asarray(soft.max(1)) < 1 - 1e-6]
    assert len(own) == 0 or np.ptp(own) < 1e-6
    shares += list(own[:1])
  # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
  assert abs(np.mean(shares) - 0.5) < 0.1
  assert abs(np.var(shares) - 1 / (4 * (2 * alpha + 1))) < 0.04


def test_cutmix_pastes_a_rectangle_and_shares_the_target_by_area(labelled):
  images, targets = labelled
  areas = []
  for key in jax.random.split(KEY, 100):
    mixed, soft = CutMix(1.0)(key, images, targets)
    assert mixed.dtype == jnp.uint8
    pasted = np.asarray(mixed != images)[..., 0]
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    for mask, image, share, own in zip(pasted, np.asarray(mixed), np.asarray(soft), range(8)):
      counts = [np.sum(image == 10 + k) / image.size for k in range(8)]
      np.testing.assert_allclose(share, counts, atol=1e-6)
      rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
      if len(rows):
        assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), 'one rectangle'
        areas.append(1 - counts[own])
  assert min(areas) < 0.1 and max(areas) > 0.6


@pytest.mark.parametrize('kind', [MixUp, CutMix])
def test_what_mixes_may_be_traced(labelled, kind):
  expected = jax.jit(lambda: kind(0.7)(KEY, *labelled))()
  found = jax.jit(lambda alpha: kind(alpha)(KEY, *labelled))(jnp.float32(0.7))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, found)
