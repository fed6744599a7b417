"""Which examples a report shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MOST_PIXELS = 128  # of a side


class Example(NamedTuple):
  """One image with what it is and what it was taken for."""
  place: int  # in the evaluated split, from 0
  image_HxWx3: np.ndarray  # uint8
  true: int
  predicted: int
  probability: float  # of the predicted class
  probability_of_truth: float


def to_rgb(image_HxWxC: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] of an image with 3 channels, or the first channel of any other as grey.

  Of a large image some pixels are left out, and those of a long one are drawn wider, so that a
  report stays small whatever the images are.
  """
  height, width = image_HxWxC.shape[:2]
  step = max(-(-height // MOST_PIXELS), -(-width // MOST_PIXELS))
  image = image_HxWxC[::step, ::step, :3 if image_HxWxC.shape[-1] == 3 else 1]
  height, width = image.shape[:2]
  image = image.repeat(-(-height // (3 * width)), axis=1).repeat(-(-width // (3 * height)), axis=0)
  return image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)


def _examples(indices: np.ndarray, probabilities: np.ndarray, labels: np.ndarray,
              images: np.ndarray) -> list[Example]:
  predicted = probabilities.argmax(axis=1)
  return [Example(int(i), to_rgb(images[i]), int(labels[i]), int(predicted[i]),
                  float(probabilities[i, predicted[i]]), float(probabilities[i, labels[i]]))
          for i in indices]


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, images: np.ndarray,
                       count: int) -> list[Example]:
  """The mistakes made with the highest probability, highest first; equals in their own order."""
  wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
  order = np.argsort(-probabilities[wrong].max(axis=1), kind='stable')
  return _examples(wrong[order[:count]], probabilities, labels, images)


def right_of_each_class(probabilities: np.ndarray, labels: np.ndarray, images: np.ndarray,
                        count: int) -> list[Example]:
  """The first right answer of each class that has one, of at most `count` classes."""
  right = np.flatnonzero(probabilities.argmax(axis=1) == labels)
  _, first = np.unique(labels[right], return_index=True)
  return _examples(right[first[:count]], probabilities, labels, images)


def first_of_each_class(images: np.ndarray, labels: np.ndarray, num_classes: int,
                        count: int) -> list[list[np.ndarray]]:
  """For each class its first `count` images, uint8 [H, W, 3]; fewer or none when there are not."""
  return [[to_rgb(images[i]) for i in np.flatnonzero(labels == label)[:count]]
          for label in range(num_classes)]
