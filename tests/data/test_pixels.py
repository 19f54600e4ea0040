"""Images of all kinds that Pillow opens: 8-bit pixels, or a refusal that names the image."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from prepared_sets import PIXELS, labelled, png, write_set
from refusals import refusal

from lsgd_jax.data import streamed
from lsgd_jax.data.crops import centre_crop, random_crop
from lsgd_jax.data.datasets import find_dataset, load_dataset
from lsgd_jax.data.encoded import open_split
from lsgd_jax.data.pixels import decode
from lsgd_jax.data.prepared import prepared_builder
from lsgd_jax.data.streamed import StreamedSource, streamed_splits

GREY = np.arange(0, 256, 2, dtype=np.uint8).reshape(8, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 16, 4), dtype=np.uint8)
RGB = COLOURS[..., :3]
ORANGE = np.full((8, 16, 3), (200, 90, 10), np.uint8)


def file(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """An image file; `mode` is what it is converted to."""
    buffer, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> bytes:
    """A PNG with a palette, in which the number of a colour says nothing of it."""
    image = Image.fromarray(GREY % 7)  # numbers 0 to 6
    image.putpalette([30 * (7 - number) + add for number in range(7) for add in (0, 5, 9)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


ANIMATION = [Image.fromarray(frame) for frame in (GREY, 255 - GREY)]
# The file, its channels in memory, and what they are.
KINDS: dict[str, tuple[bytes, np.ndarray]] = {
    "8-bit grey": (file(GREY), GREY),
    "16-bit grey PNG": (file(GREY.astype(np.uint16) * 256 + 3), GREY),
    "16-bit grey TIFF": (file(GREY.astype(np.uint16) * 256 + 250, "TIFF"), GREY),
    "1 bit": (file(np.where(GREY > 128, 255, 0).astype(np.uint8), mode="1"), np.where(GREY > 128, 255, 0)),
    "palette": (palette(), 30 * (7 - (GREY % 7)[..., None].astype(int)) + [0, 5, 9]),
    "colours with transparency": (file(COLOURS), COLOURS[..., :3]),
    "transparency in memory": (file(COLOURS), COLOURS),
    "grey with transparency": (file(COLOURS[..., :2].copy()), COLOURS[..., 0]),
    "CMYK": (file(RGB, "TIFF", "CMYK"), RGB),
    "CMYK JPEG": (file(ORANGE, "JPEG", "CMYK"), ORANGE),
    "animation": (file(GREY, "GIF", save_all=True, append_images=ANIMATION[1:]), GREY),
}  # fmt: skip


@pytest.mark.parametrize(("encoded", "expected"), KINDS.values(), ids=KINDS)
def test_an_image_of_any_kind_has_the_colours_that_a_viewer_shows(encoded: bytes, expected: np.ndarray) -> None:
    expected = expected[..., None] if expected.ndim == 2 else expected
    decoded = decode(encoded, channels=expected.shape[-1])
    assert (decoded.dtype, decoded.shape) == (np.uint8, expected.shape)
    assert np.abs(decoded - expected.astype(int)).max() <= 1
    in_colour = np.broadcast_to(expected, (8, 16, 3)) if expected.shape[-1] == 1 else expected[..., :3]
    assert np.abs(decode(encoded, channels=3) - in_colour.astype(int)).max() <= 1
    for cropped in (centre_crop(encoded, 7), random_crop(encoded, 7, np.random.default_rng(0))):
        assert cropped.shape == (7, 7, 3)
        assert (cropped >= in_colour.min((0, 1)).astype(int) - 1).all()
        assert (cropped <= in_colour.max((0, 1)).astype(int) + 1).all()
        assert np.ptp(cropped) > 0 or np.ptp(in_colour[..., 0]) == 0, "all white, say"


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_whose_range_nothing_tells_are_refused(dtype: Any) -> None:
    encoded = file(GREY.astype(dtype), "TIFF")
    for read in (lambda: decode(encoded, 1), lambda: centre_crop(encoded, 7)):
        with pytest.raises(ValueError, match=r"32-bit .* range is unknown: store it with 8 bits"):
            read()


BAD = {
    "of floats": (file(PIXELS[0, ..., 0].astype(np.float32), "TIFF"), "32-bit floats"),
    "too large": (png(np.zeros((30, 40, 3), np.uint8)), "1200 pixels"),
    "damaged": (png(PIXELS[0])[:60], ""),
    "of another size": (png(PIXELS[0, :1, :1]), "1×1×3, not 5×7×3"),
}


@pytest.mark.parametrize(
    ("kind", "in_memory"), [(kind, in_memory) for kind in BAD for in_memory in (True, False)][:-1]
)  # streamed images may have any size
def test_an_image_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, in_memory: bool
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # an error above twice that, as 179 megapixels are
    monkeypatch.setattr(streamed, "LARGEST_SIDE", 4)
    encoded, reason = BAD[kind]
    splits = {"train": labelled(*range(20)), "test": [*labelled(*range(20)), {"image": encoded, "label": 0}]}
    shape = (5, 7, 3) if in_memory else (None, None, 3)
    folder = write_set(tmp_path, splits, image=tfds.features.Image(shape=shape))
    examples = open_split(prepared_builder("tiny", folder, download=False), "test").read(range(21))
    number = [example.image for example in examples].index(encoded)
    source = find_dataset("tiny", data_dir=folder)
    with refusal("'tiny'", f"image {number} of the test split", reason, "prepare the set again"):
        if isinstance(source, StreamedSource):
            list(streamed_splits(source, seed=0)[2])
        else:
            load_dataset(source, seed=0)
