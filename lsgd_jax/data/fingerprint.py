"""What tells whether data are the same as they were: a digest of the files that hold them, or of the arrays."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import numpy as np

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class FromFiles(Generic[T]):
    """What reads data that files hold.

    Attributes:
      files: which determine the data by what is in them, in this order; not by their names.
      read: reads the data.
    """

    files: tuple[pathlib.Path, ...]
    read: Callable[[], T]

    def __call__(self) -> T:
        """The data."""
        return self.read()


def once(read: Callable[[], T]) -> Callable[[], T]:
    """The same, but the data are read once and kept."""
    if isinstance(read, FromFiles):
        return dataclasses.replace(read, read=functools.cache(read.read))
    return functools.cache(read)


def digest_of(read: Callable[[], Any]) -> str:
    """A digest of the data that `read` gives: of their files, where it knows them, else of a pytree of arrays.

    Raises:
      OSError: if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(read, FromFiles):
        for path in read.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    else:
        for leaf in map(np.asarray, jax.tree.leaves(read())):
            digest.update(f"{leaf.dtype.str} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
