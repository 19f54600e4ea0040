"""Image classification sets: handwritten digits without a download, any other from TFDS."""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lsgd_jax.data.encoded import check_labels, open_split, open_test
from lsgd_jax.data.fingerprint import FromFiles, digest_of
from lsgd_jax.data.images import Images, Preprocessing
from lsgd_jax.data.pixels import decode
from lsgd_jax.data.prepared import files_of, filled_splits, prepared_builder
from lsgd_jax.data.streamed import StreamedSource, streamed_source, streamed_splits
from lsgd_jax.errors import InputError

VALIDATION_SHARE = 0.1
LARGEST_STREAMED_VALIDATION = 50_000
DIGITS, DIGITS_TEST_SHARE = 1797, 0.2
MAX_BYTES = 8 * 2**30

# The paper's, for pixels of 0 to 255.
CIFAR10_MEAN = (0.4914 * 255, 0.4822 * 255, 0.4465 * 255)
CIFAR10_STD = (0.2023 * 255, 0.1994 * 255, 0.2010 * 255)
# ImageNet's, likewise, for all that is streamed.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class Dataset(NamedTuple):
    """A data set in memory, as `Images`, or streamed: then its splits are Grain datasets of one image each.

    Attributes:
      train: what workers train on.
      validation: held out of the training set.
      test: read only to report.
      preprocessing: how raw images become a model's input.
    """

    train: Any
    validation: Any
    test: Any
    preprocessing: Preprocessing


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a data set before its images are read.

    Attributes:
      name: its name.
      image_shape: (height, width, channels) of a raw image.
      classes: the number of classes.
      samples: images in its training split, before some are held out.
      crop: side of the crop that a model sees; None for whole images.
      flip: whether training images are flipped at random.
      read: reads the training and the test images.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    samples: int
    crop: int | None
    flip: bool
    read: Callable[[], tuple[Images, Images]]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a model's input."""
        height, width, channels = self.image_shape
        return (height, width, channels) if self.crop is None else (self.crop, self.crop, channels)

    @functools.cached_property
    def digest(self) -> str:
        """Of what `read` gives."""
        return digest_of(self.read)

    @property
    def train_samples(self) -> int:
        """Images to train on: all but the validation split."""
        return self.samples - self.held_out

    @property
    def held_out(self) -> int:
        """Images of the validation split."""
        return _held_out(self.samples, VALIDATION_SHARE)


ImageSource = Source | StreamedSource


def find_dataset(name: str, *, data_dir: str | None = None, download: bool = False) -> ImageSource:
    """Finds a set, and downloads it if that is asked for and needed.

    Images of various sizes, and more than fit in memory, are streamed.

    Args:
      name: "digits", or the name of an image classification set in TFDS.
      data_dir: where prepared TFDS sets are; TFDS's own default (~/tensorflow_datasets) if None.
      download: whether TFDS may fetch and prepare what is missing (needs TensorFlow).

    Raises:
      InputError: if there is no such set, or it is not prepared in `data_dir`, or
        it is no image classification set.
    """
    if name == "digits":
        return Source(name, (8, 8, 1), 10, DIGITS - _held_out(DIGITS, DIGITS_TEST_SHARE), None, False, _read_digits)
    return image_source(prepared_builder(name, data_dir, download))


def image_source(builder: Any) -> ImageSource:
    """What a prepared TFDS set of images is.

    Raises:
      InputError: if it is no image classification set.
    """
    _check_features(builder.name, builder)
    features, splits = builder.info.features, builder.info.splits
    if not _fits_in_memory(builder):
        held_out = _held_out(splits["train"].num_examples, VALIDATION_SHARE)
        return streamed_source(builder, held_out=min(held_out, LARGEST_STREAMED_VALIDATION))
    cifar = builder.name in ("cifar10", "cifar100")  # the paper's augmentation
    return Source(
        name=builder.name,
        image_shape=features["image"].shape,
        classes=features["label"].num_classes,
        samples=splits["train"].num_examples,
        crop=28 if cifar else None,
        flip=cifar,
        read=FromFiles(
            files_of(builder, ("train", "validation", "test")),
            lambda: (_read(builder, "train"), _read(builder, open_test(builder).split)),
        ),
    )


def load_dataset(source: ImageSource, *, seed: int) -> Dataset:
    """Holds a tenth of a set's training images out for validation, by `seed`, and reads it if it fits in memory.

    Raises:
      InputError: if the set cannot be read, or a split has too few images or labels that are no classes.
    """
    if isinstance(source, StreamedSource):
        return Dataset(*streamed_splits(source, seed), Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop=source.side))
    everything, test = source.read()
    for split, images, least in (("train", everything, 2), ("test", test, 1)):
        if len(images.labels) < least:
            count = len(images.labels)
            raise InputError(f"the {split} split of {source.name!r} has {count} images: choose another set")
        check_labels(source.name, split, images.labels, source.classes)
    train, validation = _hold_out(everything, VALIDATION_SHARE, np.random.default_rng(seed))
    # Over all training images, as the published figures of CIFAR-10 are: the same for every seed.
    mean, std = (CIFAR10_MEAN, CIFAR10_STD) if source.name == "cifar10" else _moments(everything.images)
    return Dataset(train, validation, test, Preprocessing(mean, std, source.crop, source.flip))


@functools.cache
def _read_digits() -> tuple[Images, Images]:
    """1,797 images with 17 shades. The test split is the same for every seed."""
    # The file of scikit-learn alone: to import all of it takes as long as JAX.
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    rows = np.loadtxt(pathlib.Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    everything = Images(rows[:, :-1].reshape(-1, 8, 8, 1).astype(np.uint8), rows[:, -1].astype(np.int32))
    return _hold_out(everything, DIGITS_TEST_SHARE, np.random.default_rng(0))


def _held_out(samples: int, share: float) -> int:
    return max(1, round(share * samples))


def _hold_out(images: Images, share: float, rng: np.random.Generator) -> tuple[Images, Images]:
    """(the rest, the share that is held out), both in random order."""
    order = rng.permutation(len(images.labels))
    held_out = _held_out(len(order), share)
    return _take(images, order[held_out:]), _take(images, order[:held_out])


def _take(images: Images, indices: np.ndarray) -> Images:
    return Images(images.images[indices], images.labels[indices])


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for chunk in np.array_split(images, max(1, len(images) // 4096)):
        pixels = chunk.reshape(-1, chunk.shape[-1]).astype(np.float64)
        count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return tuple(mean.tolist()), tuple(std.tolist())


def _check_features(name: str, builder: Any) -> None:
    features, splits = builder.info.features, filled_splits(builder)
    is_image = "image" in features and len(features["image"].shape) == 3
    is_label = "label" in features and features["label"].shape == () and getattr(features["label"], "num_classes", None)
    if not (is_image and is_label):
        raise InputError(
            f"{name!r} is no image classification set: it needs an 'image' and a 'label' of one class, or a 'text'"
        )
    dtype = features["image"].np_dtype
    if dtype != np.uint8:
        raise InputError(f"{name!r} has images of {np.dtype(dtype)}: choose a set with 8-bit images")
    if "train" not in splits or not ("test" in splits or "validation" in splits):
        raise InputError(f"{name!r} needs a split 'train' and a split 'test' or 'validation', it has {sorted(splits)}")


def _fits_in_memory(builder: Any) -> bool:
    """Whether its images, decoded, have one size and fit."""
    shape, splits = builder.info.features["image"].shape, builder.info.splits
    return None not in shape and int(np.prod(shape)) * splits.total_num_examples <= MAX_BYTES


def _read(builder: Any, split: str) -> Images:
    records, shape = open_split(builder, split), builder.info.features["image"].shape
    classes = builder.info.features["label"].num_classes
    whole = functools.partial(decode, channels=shape[-1])
    images = np.empty((len(records), *shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), 1000):
        for example in records.read(range(start, min(start + 1000, len(records)))):
            images[example.number] = records.decoded(example, shape, classes, whole)
            labels[example.number] = example.label
    return Images(images, labels)
