"""From an encoded image of any size to a square of pixels, on the host."""

import io
import math

import numpy as np
from PIL import Image

from lsgd_jax.data.pixels import eight_bit

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
ATTEMPTS = 10


def random_crop(encoded: bytes, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of an image, resized (bilinear, antialiased), and flipped left to right half of the time.

    The augmentation of Szegedy et al., "Going Deeper with Convolutions", 2014, section 6, as
    torchvision's RandomResizedCrop has it, but for the edge of the result, which also sees the
    pixels just outside of the part.

    Args:
      encoded: JPEG, PNG, or what else Pillow reads.
      side: of the result, in pixels.
      rng: where the part and the flip are drawn from.

    Returns:
      uint8[side, side, 3].

    Raises:
      Exception: of various classes, from Pillow, if the image cannot be decoded or has too many pixels.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        full_width, full_height = image.size
        left, top, width, height = random_box(full_width, full_height, rng)
        flip = rng.random() < 0.5
        shrink = min(width, height) // side
        if shrink > 1:  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, where that leaves pixels enough
            image.draft("RGB", (full_width // shrink, full_height // shrink))
        x, y = image.width / full_width, image.height / full_height
        box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
        cropped = eight_bit(image, channels=3).resize((side, side), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(cropped)
    return pixels[:, ::-1] if flip else pixels


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a part of an image.

    Its area is 8 to 100 % of the image's, uniformly, and its aspect ratio 3/4 to 4/3, uniformly
    in the logarithm; if ten draws do not fit in the image, the largest central part of such a ratio.
    """
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def centre_crop(encoded: bytes, side: int) -> np.ndarray:
    """The central square of an image whose shorter side has been resized to 8/7 of `side`: 224 of 256.

    Args, result and errors are those of `random_crop`.
    """
    shorter = round(side * 8 / 7)
    with Image.open(io.BytesIO(encoded)) as image:
        scale = shorter / min(image.size)
        size = (max(shorter, int(image.width * scale)), max(shorter, int(image.height * scale)))
        resized = eight_bit(image, channels=3).resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))
