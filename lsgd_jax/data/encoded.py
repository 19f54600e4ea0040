"""Labelled images as a prepared set stores them: encoded, and read by number."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lsgd_jax.data.prepared import data_source, filled_splits
from lsgd_jax.errors import InputError, first_line


class Example(NamedTuple):
    """An image as it is stored, with its place in its split."""

    number: int
    image: bytes
    label: int


@dataclasses.dataclass(frozen=True)
class EncodedRecords:
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

    def __getitem__(self, number: int) -> Example:
        """An example, without the thread that reads several."""
        return self._examples([number], lambda: [self.examples[number]])[0]

    def read(self, numbers: Sequence[int]) -> list[Example]:
        """Several examples.

        Raises:
          InputError: if a file is missing, cut off or damaged.
        """
        return self._examples(numbers, lambda: self.examples.__getitems__(list(numbers)))

    def _examples(self, numbers: Sequence[int], read: Callable[[], Sequence[Any]]) -> list[Example]:
        try:
            return [Example(i, x["image"], int(x["label"])) for i, x in zip(numbers, read(), strict=True)]
        except Exception as error:  # array_record has no class of its own for what it raises
            raise InputError(
                f"cannot read the {self.split} split of {self.dataset!r} ({first_line(error)}): prepare the set again"
            ) from error

    def sample(self, count: int) -> list[np.ndarray]:
        """The number of examples, and `count` of them at even distances, encoded, with their labels."""
        indices = np.linspace(0, len(self) - 1, count, dtype=int).tolist()
        examples = [(np.frombuffer(image, np.uint8), np.asarray(label)) for _, image, label in self.read(indices)]
        return [np.asarray(len(self)), *(array for example in examples for array in example)]

    def decoded(
        self, example: Example, shape: tuple[int, int, int], classes: int, pixels: Callable[[bytes], np.ndarray]
    ) -> np.ndarray:
        """The pixels of an example of this split: uint8[height, width, channels].

        Args:
          example: one whose label is to be a class.
          shape: (height, width, channels) that the image is to have.
          classes: labels are below that number.
          pixels: from an encoded image to its pixels.

        Raises:
          InputError: if it cannot be decoded, has another shape, or no such label; it is named.
        """
        check_labels(self.dataset, self.split, [example.label], classes, first=example.number)
        try:
            found = pixels(example.image)
            if found.shape != shape:  # NumPy would repeat a single pixel
                raise ValueError(f"it is {'×'.join(map(str, found.shape))}, not {'×'.join(map(str, shape))}")
        except Exception as error:  # what Pillow raises has no common class; memory may be short, too
            raise InputError(
                f"cannot decode image {example.number} of the {self.split} split of {self.dataset!r} "
                f"({first_line(error)}): prepare the set again"
            ) from error
        return found


def check_labels(dataset: str, split: str, labels: Sequence[int] | np.ndarray, classes: int, *, first: int = 0) -> None:
    """Refuses labels that are no classes: -1 would be learned as the last one.

    Args:
      dataset: the data set's name.
      split: the split's name.
      labels: those of images side by side.
      classes: their number.
      first: the number of the first image.

    Raises:
      InputError: naming the first that is wrong.
    """
    wrong = np.flatnonzero((np.asarray(labels) < 0) | (np.asarray(labels) >= classes))
    if wrong.size:
        raise InputError(
            f"image {first + wrong[0]} of the {split} split of {dataset!r} has the label {labels[wrong[0]]}, "
            f"which is none of the classes 0 to {classes - 1}: prepare the set again without it"
        )


def open_split(builder: Any, split: str) -> EncodedRecords:
    """A split of a prepared set, of which the first and the last example can be read.

    Raises:
      InputError: if they cannot.
    """
    import tensorflow_datasets as tfds

    examples = data_source(builder, split, decoders={"image": tfds.decode.SkipDecoding()})
    records = EncodedRecords(builder.name, split, examples)
    records.read([0, len(records) - 1])
    return records


def open_test(builder: Any) -> EncodedRecords:
    """The split to report on: "test", but for sets whose test images have no labels, as ImageNet's.

    Raises:
      InputError: if neither it nor "validation" has labels.
    """
    for split in ("test", "validation"):
        if split in filled_splits(builder):
            records = open_split(builder, split)
            if records[0].label >= 0:
                return records
    raise InputError(f"the test images of {builder.name!r} have no labels: choose another set")
