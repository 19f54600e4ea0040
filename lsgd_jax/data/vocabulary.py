"""What a text is a sequence of: its bytes, or the tokens of a Hugging Face tokenizer."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lsgd_jax.errors import InputError, first_line

# Texts are encoded in pieces of at least so many characters, so many of them at a time by all cores.
PIECE, TOGETHER = 2**16, 256
LINE_BREAK = re.compile(r"(?<=\S)\n(?=\S)")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of texts.

    Attributes:
      size: how many there are; they are numbered from 0.
      encode: from a text in UTF-8, uint8[bytes], to its tokens, of the smallest unsigned dtype that holds them all.
      files: which determine it.
    """

    size: int
    encode: Callable[[np.ndarray], np.ndarray]
    files: tuple[pathlib.Path, ...] = ()


BYTES = Vocabulary(256, lambda text: text)


def read_vocabulary(file: str | None) -> Vocabulary:
    """That of a `tokenizers` JSON file; bytes without one.

    Special tokens that it would add, truncation and padding are left out: what is encoded is one long text.

    Raises:
      InputError: if the file cannot be read, or the package that reads it is not installed.
    """
    if file is None:
        return BYTES
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(f"--tokenizer={file} needs the extra: pip install 'lsgd_jax[tokenizers]'") from error
    path, todo = pathlib.Path(file), "name a tokenizer.json of Hugging Face tokenizers"
    try:
        tokenizer: Any = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read --tokenizer={file} ({error.strerror}): {todo}") from error
    except Exception as error:  # of tokenizers, which has no class of its own
        raise InputError(f"--tokenizer={file} is no tokenizer ({first_line(error)}): {todo}") from error
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if size < 2:
        raise InputError(f"--tokenizer={file} has {size} tokens: {todo}")
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: np.ndarray) -> np.ndarray:
        # Where a text was cut into splits, a character may have been too.
        pieces = pieces_of(text.tobytes().decode(errors="ignore"))
        tokens = []
        while some := list(itertools.islice(pieces, TOGETHER)):
            encoded = tokenizer.encode_batch_fast(some, add_special_tokens=False)
            tokens += [np.asarray(piece.ids, np.min_scalar_type(size - 1)) for piece in encoded]
        return np.concatenate(tokens)

    return Vocabulary(size, encode, (path,))


def pieces_of(text: str) -> Iterator[str]:
    """The text in pieces of `PIECE` characters and the rest of a line; the last is what is left.

    Only a line break alone ends a piece: there the words that tokenizers look for do, with GPT-2's rules and the like.
    """
    begin = 0
    while end := LINE_BREAK.search(text, begin + PIECE):
        yield text[begin : end.end()]
        begin = end.end()
    yield text[begin:]
