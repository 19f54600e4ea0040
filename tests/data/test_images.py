"""Augmentation and normalization of images."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgd_jax.data import images
from lsgd_jax.data.images import Preprocessing, augment, preprocess

KEY = jax.random.key(0)
COUNT = 2400
HEIGHT, WIDTH, CROP = 7, 6, 4
RAW = Preprocessing(mean=(0.0, 0.0), std=(1.0, 1.0), crop=CROP, flip=True)
Window = tuple[bool, int, int]
jitted_augment = jax.jit(augment, static_argnums=2)


def pictures(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Images of noise, in which no two windows are alike."""
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 2), dtype=np.uint8)


def windows_of(image: np.ndarray, crop: int = CROP) -> dict[bytes, Window]:
    """Every (flipped, top, left) under the pixels that it shows."""
    found = {}
    for flipped, top, left in product((False, True), range(len(image) - crop + 1), range(image.shape[1] - crop + 1)):
        seen = image[:, ::-1] if flipped else image
        found[seen[top : top + crop, left : left + crop].astype(np.float32).tobytes()] = (flipped, top, left)
    return found


def windows_drawn(images: np.ndarray, how: Preprocessing = RAW, key: jax.Array = KEY) -> list[Window]:
    """Where each augmented image was taken from its raw one, found by looking."""
    out = np.asarray(jitted_augment(images, key, how))
    return [windows_of(image)[crop.tobytes()] for image, crop in zip(images, out, strict=True)]


def test_augmented_images_are_windows_of_the_image_or_of_its_mirror_image() -> None:
    images = pictures(COUNT)
    assert len(windows_of(images[0])) == 2 * 4 * 3, "all windows differ, so that looking finds the right one"
    assert len(set(windows_drawn(images))) == 24


def test_all_corners_are_drawn_about_equally_often_flipped_or_not() -> None:
    drawn = windows_drawn(np.broadcast_to(pictures(1), (COUNT, HEIGHT, WIDTH, 2)))
    counts = {window: drawn.count(window) for window in product((False, True), range(4), range(3))}
    assert sum(counts.values()) == COUNT
    assert min(counts.values()) > 50, "100 expected, with a standard deviation of 10"
    assert max(counts.values()) < 150


def test_about_half_of_the_images_are_flipped_if_any() -> None:
    images = np.broadcast_to(pictures(1), (COUNT, HEIGHT, WIDTH, 2))
    flipped = [window[0] for window in windows_drawn(images)]
    assert 1075 < sum(flipped) < 1325, "1200 expected, with a standard deviation of 24"
    unflipped = Preprocessing((0.0, 0.0), (1.0, 1.0), CROP, flip=False)
    assert not any(window[0] for window in windows_drawn(images, unflipped))


@pytest.mark.parametrize("side", [1, 4, 6])
def test_crops_are_the_same_elsewhere_than_on_cpu(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, how = pictures(200), Preprocessing((0.0, 0.0), (1.0, 1.0), side, True)
    here = augment(jnp.asarray(pixels), KEY, how)
    monkeypatch.setattr(images, "platform", lambda: "tpu")
    np.testing.assert_array_equal(augment(jnp.asarray(pixels), KEY, how), here)
    assert "dynamic_slice" not in str(jax.make_jaxpr(lambda pixels: augment(pixels, KEY, how))(pixels))


def test_without_a_crop_whole_images_stay_or_are_mirrored() -> None:
    images = pictures(64)
    out = np.asarray(jitted_augment(images, KEY, Preprocessing((0.0, 0.0), (1.0, 1.0), None, True)))
    flipped = [np.array_equal(a, b[:, ::-1]) for a, b in zip(out, images, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 0 < sum(flipped) < 64


def test_without_augmentation_training_and_evaluation_see_the_same() -> None:
    images, how = jnp.asarray(pictures(8)), Preprocessing((100.0, 30.0), (50.0, 4.0))
    np.testing.assert_array_equal(augment(images, KEY, how), preprocess(images, how))


def test_a_crop_as_large_as_the_image_is_the_image() -> None:
    images = pictures(8, 5, 5)
    how = Preprocessing((0.0, 0.0), (1.0, 1.0), crop=5)
    np.testing.assert_array_equal(jitted_augment(images, KEY, how), images)
    np.testing.assert_array_equal(preprocess(jnp.asarray(images), how), images)


def test_the_same_key_gives_the_same_and_another_key_something_else() -> None:
    images = pictures(COUNT)
    assert windows_drawn(images) == windows_drawn(images)
    assert windows_drawn(images) != windows_drawn(images, key=jax.random.key(1))


def test_under_vmap_each_worker_gets_what_its_key_gives_alone() -> None:
    images = jnp.asarray(pictures(3 * COUNT).reshape(3, COUNT, HEIGHT, WIDTH, 2))
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda images, key: augment(images, key, RAW)))(images, keys)
    for one, images_of_one, key in zip(together, images, keys, strict=True):
        np.testing.assert_array_equal(one, jitted_augment(images_of_one, key, RAW))


@pytest.mark.parametrize(("height", "width", "top", "left"), [(7, 6, 1, 1), (8, 8, 2, 2), (4, 9, 0, 2), (5, 4, 0, 0)])
def test_evaluation_sees_the_centre_crop(height: int, width: int, top: int, left: int) -> None:
    images = pictures(5, height, width)
    out = preprocess(jnp.asarray(images), RAW)
    np.testing.assert_array_equal(out, images[:, top : top + CROP, left : left + CROP])


@pytest.mark.parametrize("augmented", [True, False])
def test_raw_bytes_are_normalized_by_channel_to_float32(augmented: bool) -> None:
    images = pictures(6)
    mean, std = np.array([200.0, 0.5]), np.array([50.0, 0.25])
    how = Preprocessing(tuple(mean.tolist()), tuple(std.tolist()))
    out = augment(jnp.asarray(images), KEY, how) if augmented else preprocess(jnp.asarray(images), how)
    assert images.dtype == np.uint8
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, (images.astype(np.float64) - mean) / std, rtol=1e-5, atol=1e-5)
    assert out[..., 0].min() < -3, "less than the mean is negative: bytes must not wrap"
