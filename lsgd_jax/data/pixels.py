"""From an encoded image to 8-bit pixels, of whatever kind the file is."""

import io

import numpy as np
from PIL import Image

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's name for so many channels


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """uint8[height, width, channels]: a whole image. Args and errors are those of `eight_bit`."""
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(eight_bit(image, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """An image in 8-bit grey, RGB, or either with transparency; of an animation the first picture.

    Palettes, CMYK and 1-bit images are converted; what transparency hides is shown where there is
    no channel for it. Of 16 bits the upper 8 are kept, as libpng does and Pillow itself for RGB.

    Args:
      image: opened by Pillow.
      channels: 1 to 4: grey, grey with transparency, RGB, RGB with transparency.

    Raises:
      ValueError: for 32-bit pixels, whose range nothing tells.
      OSError, SyntaxError: from Pillow, if the image cannot be decoded.
    """
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if sixteen_bit:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise ValueError(f"its pixels are 32-bit {kind}, of which the range is unknown: store it with 8 bits")
    mode = MODES[channels]
    return image if image.mode == mode else image.convert(mode)
