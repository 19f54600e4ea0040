"""Texts: any UTF-8 file, or a set from TFDS."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lsgd_jax.data.fingerprint import FromFiles, digest_of, once
from lsgd_jax.data.prepared import files_of, filled_splits, reading
from lsgd_jax.data.vocabulary import BYTES, Vocabulary
from lsgd_jax.errors import InputError

# A twentieth of a text is held out for validation, and another for the test.
HELD_OUT = 20
# Training, validation and test, uint8[bytes] each.
Splits = tuple[np.ndarray, np.ndarray, np.ndarray]
# Positions on the devices are 32-bit integers.
MAX_BYTES, LIMIT = 2**31 - 1, "2 GiB"


class Text(NamedTuple):
    """One text.

    Attributes:
      tokens: unsigned integers [tokens].
      bytes: how many it takes in UTF-8.
    """

    tokens: np.ndarray
    bytes: int


class Texts(NamedTuple):
    """The splits of a text. The first token of a split is not predicted."""

    train: Text
    validation: Text
    test: Text


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A text that is read when it is needed.

    Attributes:
      name: its name.
      read: reads its splits, the first time that it is called.
      vocabulary: what its tokens are.
      known_tokens: of its training split; None where only reading it tells.
    """

    name: str
    read: Callable[[], Texts]
    vocabulary: Vocabulary = BYTES
    known_tokens: int | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Of what `read` gives."""
        return digest_of(self.read)

    @property
    def train_tokens(self) -> int:
        """Of its training split."""
        return len(self.read().train.tokens) if self.known_tokens is None else self.known_tokens


def text_file_source(file: str, vocabulary: Vocabulary = BYTES) -> TextSource:
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
    read = FromFiles((path, *vocabulary.files), lambda: encoded(_read_file(path), vocabulary))
    known = size - 2 * (size // HELD_OUT) if vocabulary is BYTES else None
    return TextSource(path.name, once(read), vocabulary, known)


def is_text(builder: Any) -> bool:
    """Whether a TFDS set has texts and no images."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    return "text" in features and "image" not in features and isinstance(features["text"], tfds.features.Text)


def text_set_source(builder: Any, vocabulary: Vocabulary = BYTES) -> TextSource:
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
        read_splits = {split: _read_split(builder, split) for split in Texts._fields if split in splits}
        return encoded(split_text(**read_splits), vocabulary)

    files = (*files_of(builder, Texts._fields), *vocabulary.files)
    return TextSource(builder.name, once(FromFiles(files, read)), vocabulary)


def split_text(train: np.ndarray, validation: np.ndarray | None = None, test: np.ndarray | None = None) -> Splits:
    """The splits of a text, uint8[bytes]; those that are missing are cut from the end of the training text."""
    held_out = len(train) // HELD_OUT
    if test is None:
        train, test = train[: len(train) - held_out], train[len(train) - held_out :]
    if validation is None:
        train, validation = train[: len(train) - held_out], train[len(train) - held_out :]
    return train, validation, test


def encoded(splits: Splits, vocabulary: Vocabulary = BYTES) -> Texts:
    """Splits of a text, uint8[bytes], as tokens.

    Raises:
      InputError: if one of them is too short to predict anything.
    """
    texts = Texts(*(Text(vocabulary.encode(split), len(split)) for split in splits))
    unit = "bytes" if vocabulary is BYTES else "tokens"
    for split, (tokens, _) in texts._asdict().items():
        if len(tokens) < 2:
            raise InputError(f"the {split} text has {len(tokens)} {unit}, too few to predict any: choose a longer one")
    return texts


def _read_file(path: pathlib.Path) -> Splits:
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
