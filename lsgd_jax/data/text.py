"""Text as bytes: any UTF-8 file, or a set from TFDS."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lsgd_jax.data.fingerprint import FromFiles, digest_of
from lsgd_jax.data.prepared import files_of, filled_splits, reading
from lsgd_jax.errors import InputError

BYTES = 256
# A twentieth of a text is held out for validation, and another for the test.
HELD_OUT = 20
# Positions on the devices are 32-bit integers.
MAX_BYTES, LIMIT = 2**31 - 1, "2 GiB"


class Texts(NamedTuple):
    """The splits of a text, uint8[bytes] each. The first byte of a split is not predicted."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class TextSource:
    """What is known of a text before it is read.

    Attributes:
      name: its name.
      train_bytes: of its training split; None for a prepared set, which does not tell.
      read: reads its splits.
    """

    name: str
    train_bytes: int | None
    read: Callable[[], Texts]

    @functools.cached_property
    def digest(self) -> str:
        """Of what `read` gives."""
        return digest_of(self.read)

    def in_memory(self) -> "TextSource":
        """The same, read once, so that its size is known."""
        texts = self.read()
        return dataclasses.replace(self, train_bytes=len(texts.train), read=lambda: texts)


def text_file_source(file: str) -> TextSource:
    """A text file. The same for every seed: nine tenths to train, then the validation split, then the test split.

    Raises:
      InputError: if there is no such file, or it is too short or too large.
    """
    path = pathlib.Path(file)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"--text_file={file} is no file: name one")
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read --text_file={file} ({error.strerror}): name a text file") from error
    if size > MAX_BYTES:
        raise InputError(f"--text_file={file} takes {size / 2**30:.1f} GiB: choose one of less than {LIMIT}")
    if size < 2 * HELD_OUT:
        raise InputError(f"--text_file={file} has {size} bytes, too few to learn from: name a longer one")
    return TextSource(path.name, size - 2 * (size // HELD_OUT), FromFiles((path,), lambda: _read_file(path)))


def is_text(builder: Any) -> bool:
    """Whether a TFDS set has texts and no images."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    return "text" in features and "image" not in features and isinstance(features["text"], tfds.features.Text)


def text_set_source(builder: Any) -> TextSource:
    """A prepared TFDS set whose examples have a `text`: documents, joined by line breaks.

    What it lacks of the splits "validation" and "test" is cut from the end of its
    training text, a twentieth each.

    Raises:
      InputError: if it has no training split or is too large.
    """
    splits = filled_splits(builder)
    if "train" not in splits:
        raise InputError(f"{builder.name!r} needs a split 'train', it has {sorted(splits)}")
    size = sum(builder.info.splits[split].num_bytes for split in Texts._fields if split in splits)
    if size > MAX_BYTES:
        raise InputError(f"{builder.name!r} takes {size / 2**30:.1f} GiB: choose a set of less than {LIMIT}")

    def read() -> Texts:
        return split_text(**{split: _read_split(builder, split) for split in Texts._fields if split in splits})

    return TextSource(builder.name, None, FromFiles(files_of(builder, Texts._fields), read))


def split_text(train: np.ndarray, validation: np.ndarray | None = None, test: np.ndarray | None = None) -> Texts:
    """The splits of a text; those that are missing are cut from the end of the training text.

    Raises:
      InputError: if one of them is too short to predict anything.
    """
    held_out = len(train) // HELD_OUT
    if test is None:
        train, test = train[: len(train) - held_out], train[len(train) - held_out :]
    if validation is None:
        train, validation = train[: len(train) - held_out], train[len(train) - held_out :]
    texts = Texts(train, validation, test)
    for split, text in texts._asdict().items():
        if len(text) < 2:
            raise InputError(f"the {split} text has {len(text)} bytes, too few to predict any: choose a longer one")
    return texts


def _read_file(path: pathlib.Path) -> Texts:
    try:
        text = path.read_bytes()
        text.decode()
    except OSError as error:
        raise InputError(f"cannot read --text_file={path} ({error.strerror}): name a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"--text_file={path} is not UTF-8 (at byte {error.start}): convert it, or name a text"
        ) from error
    return split_text(np.frombuffer(text, np.uint8))


def _read_split(builder: Any, split: str) -> np.ndarray:
    with reading(builder, split) as source:
        documents = [example["text"] for example in source]
    return np.frombuffer(b"\n".join(documents), np.uint8)
