"""Augmentation and normalization of images, inside the jitted step."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lsgd_jax.engine.platform import platform


class Images(NamedTuple):
    """Raw images, uint8[count, height, width, channels], and labels, int32[count]; of one, without the first axis."""

    images: np.ndarray
    labels: np.ndarray


class Batch(NamedTuple):
    """One minibatch: float32[batch, height, width, channels] and int32[batch]."""

    images: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a data set's raw images become a model's input.

    Attributes:
      mean: per channel, in the raw images' unit (0 to 255 for most sets).
      std: likewise.
      crop: side of the square crop in pixels, random in training and central in
        evaluation; None for whole images.
      flip: whether training images are flipped left to right half of the time.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int | None = None
    flip: bool = False


def augment(images: jax.Array, key: jax.Array, how: Preprocessing) -> jax.Array:
    """Training input: each image flipped and cropped at random, then normalized.

    Args:
      images: [batch, height, width, channels], raw.
      key: the randomness of this batch.
      how: the data set's preprocessing.

    Returns:
      float32[batch, crop, crop, channels].
    """
    flip_key, crop_key = jax.random.split(key)
    batch, height, width, _ = images.shape
    if how.flip:
        flipped = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    if how.crop is not None and (height, width) != (how.crop, how.crop):
        room = jnp.array([height - how.crop + 1, width - how.crop + 1])
        corners = jax.random.randint(crop_key, (batch, 2), 0, room)
        images = _crops(images, corners, how.crop)
    return _normalize(images, how)


def _crops(images: jax.Array, corners: jax.Array, side: int) -> jax.Array:
    """Squares [batch, side, side, channels] of images, each from its corner on: int32[batch, 2], from above and left.

    On CPU slice by slice; elsewhere by shifts of 1, 2, 4, …, since slices that begin anywhere become a loop over
    images there, which takes longer than a step of a small network.
    """
    if platform() == "cpu":
        size = (side, side, images.shape[-1])
        return jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), size))(images, corners)
    for axis in (1, 2):
        first = corners[:, axis - 1].reshape(-1, 1, 1, 1)
        for bit in range((images.shape[axis] - side).bit_length()):
            images = jnp.where(first >> bit & 1, jnp.roll(images, -(1 << bit), axis), images)
    return images[:, :side, :side]


def preprocess(images: jax.Array, how: Preprocessing) -> jax.Array:
    """Evaluation input: the centre crop, normalized.

    Args:
      images: [batch, height, width, channels], raw.
      how: the data set's preprocessing.

    Returns:
      float32[batch, crop, crop, channels].
    """
    if how.crop is not None:
        top, left = (images.shape[1] - how.crop) // 2, (images.shape[2] - how.crop) // 2
        images = images[:, top : top + how.crop, left : left + how.crop]
    return _normalize(images, how)


def _normalize(images: jax.Array, how: Preprocessing) -> jax.Array:
    mean, std = (jnp.array(moment, jnp.float32) for moment in (how.mean, how.std))
    return (images.astype(jnp.float32) - mean) / std


def augmented(how: Preprocessing) -> Callable[[Any, jax.Array], Batch]:
    """Makes `(raw images and labels, key) -> Batch`, for training."""
    return lambda raw, key: Batch(augment(raw.images, key, how), raw.labels)
