"""Image sets that do not fit in memory: Grain datasets whose images are decoded as they are read."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lsgd_jax.data.crops import centre_crop, random_crop
from lsgd_jax.data.encoded import EncodedRecords, Example, open_split, open_test
from lsgd_jax.data.fingerprint import digest_of
from lsgd_jax.data.grain_source import word
from lsgd_jax.data.images import Images
from lsgd_jax.errors import InputError

LARGEST_SIDE = 224
# Examples of each split that are to tell whether a set is the same.
SAMPLE = 64
# In what order images are drawn: a run does not go on in another. Digests of before begin with none.
ORDER = "order 2 of "


@dataclasses.dataclass(frozen=True)
class StreamedSource:
    """What is known of a data set whose images are decoded as they are needed.

    Attributes:
      name: its name.
      side: of the square that a model sees, in pixels.
      classes: the number of classes.
      train: the training split, with the images that are held out of it for validation.
      held_out: how many these are.
      test: the images that are read only to report.
    """

    name: str
    side: int
    classes: int
    train: EncodedRecords
    held_out: int
    test: EncodedRecords

    @functools.cached_property
    def digest(self) -> str:
        """Of a part of the images: all of them would take hours to read."""
        return ORDER + digest_of(lambda: (self.train.sample(SAMPLE), self.test.sample(SAMPLE)))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a model's input."""
        return self.side, self.side, 3

    @property
    def train_samples(self) -> int:
        """Images to train on: all but the validation split."""
        return len(self.train) - self.held_out


def streamed_source(builder: Any, *, held_out: int) -> StreamedSource:
    """Opens a prepared set of labelled images.

    A model sees squares of 224 pixels, or of 7/8 of the shorter side of images that all have one,
    smaller size.

    Args:
      builder: the set's TFDS builder.
      held_out: training images that are held out for validation.

    Raises:
      InputError: if the set cannot be read.
    """
    height, width, channels = builder.info.features["image"].shape
    sizes = [side for side in (height, width) if side is not None]
    if channels != 3:
        reason = "does not fit in memory" if len(sizes) == 2 else "has images of various sizes"
        raise InputError(
            f"{builder.name!r} {reason}, and is decoded while training, which needs 3 channels, not {channels}: "
            "prepare it as RGB, or choose another set"
        )
    return StreamedSource(
        name=builder.name,
        side=min([LARGEST_SIDE, *(size * 7 // 8 for size in sizes)]),
        classes=builder.info.features["label"].num_classes,
        train=open_split(builder, "train"),
        held_out=held_out,
        test=open_test(builder),
    )


def streamed_splits(source: StreamedSource, seed: int) -> tuple[Any, Any, Any]:
    """(training, validation, test): Grain datasets whose elements are `Images` of one image.

    Args:
      source: the set.
      seed: of what is held out for validation, and of the crops.
    """
    import grain

    # The same order in all epochs: what is held out in one would be trained on in another.
    mixed = grain.MapDataset.source(source.train).shuffle(seed=word(seed, 0)).repeat(1, reseed_each_epoch=False)
    train = mixed[source.held_out :].random_map(functools.partial(_random_sample, source), seed=word(seed, 1))
    centre = functools.partial(centre_crop, side=source.side)
    validation = mixed[: source.held_out].map(functools.partial(_sample, source, source.train, centre))
    test = grain.MapDataset.source(source.test).map(functools.partial(_sample, source, source.test, centre))
    return train, validation, test


def _random_sample(source: StreamedSource, example: Example, rng: np.random.Generator) -> Images:
    return _sample(source, source.train, lambda encoded: random_crop(encoded, source.side, rng), example)


def _sample(
    source: StreamedSource, records: EncodedRecords, crop: Callable[[bytes], np.ndarray], example: Example
) -> Images:
    """One image, cut to what a model of the set sees, and its label."""
    image = records.decoded(example, source.input_shape, source.classes, crop)
    return Images(image, np.asarray(example.label, np.int32))
