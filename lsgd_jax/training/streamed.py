"""Image sets that do not fit in memory: what is known of one, and its images, still encoded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lsgd_jax.training.errors import InputError, first_line

LARGEST_SIDE = 224


@dataclasses.dataclass(frozen=True)
class Records:
    """The examples of a split, in the order of its files, read at random and from any process.

    Attributes:
      dataset: the data set's name.
      split: the split's name.
      examples: TFDS's data source, which leaves images encoded.
    """

    dataset: str
    split: str
    examples: Any

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """(encoded image, label) of each.

        Raises:
          InputError: if a file is missing, cut off or damaged.
        """
        try:
            return [(example["image"], int(example["label"])) for example in self.examples.__getitems__(list(indices))]
        except Exception as error:  # array_record has no class of its own for what it raises
            raise InputError(
                f"cannot read the {self.split} split of {self.dataset!r} ({first_line(error)}): prepare the set again"
            ) from error


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
    train: Records
    held_out: int
    test: Records

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
    if channels != 3:
        raise InputError(
            f"{builder.name!r} does not fit in memory, and its images have no 3 channels: choose another set"
        )
    sizes = [side for side in (height, width) if side is not None]
    return StreamedSource(
        name=builder.name,
        side=min([LARGEST_SIDE, *(size * 7 // 8 for size in sizes)]),
        classes=builder.info.features["label"].num_classes,
        train=_open(builder, "train"),
        held_out=held_out,
        test=_open_test(builder),
    )


def _open_test(builder: Any) -> Records:
    """The split to report on: "test", but for sets whose test images have no labels, as ImageNet's."""
    splits = [_open(builder, split) for split in ("test", "validation") if split in builder.info.splits]
    labelled = [records for records in splits if records.read([0])[0][1] >= 0]
    if not labelled:
        raise InputError(f"the test images of {builder.name!r} have no labels: choose another set")
    return labelled[0]


def _open(builder: Any, split: str) -> Records:
    """A split, of which the first and the last example can be read."""
    import tensorflow_datasets as tfds

    try:
        examples = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise InputError(
            f"data set {builder.name!r} in {builder.data_dir} is stored as {builder.info.file_format.value}: "
            "prepare it as array_record, or use --download with another --data_dir"
        ) from error
    records = Records(builder.name, split, examples)
    records.read([0, len(records) - 1])
    return records
