"""Files that are whole whenever the process dies, and what is told about those that are not."""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from lsgd_jax.errors import InputError

PARTIAL = ".partial"
LONGEST_NAME = 255  # bytes, of a file on Linux and macOS


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is the old or the new one whenever the process dies, or the machine."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # where a file system has nothing of the kind
            os.fsync(folder)  # the new name
    finally:
        os.close(folder)


def write_json(path: pathlib.Path, tree: Any) -> None:
    """Writes a whole file; numbers that are not finite become null."""
    finite = json.loads(json.dumps(tree), parse_constant=lambda _: None)
    write_whole(path, json.dumps(finite, indent=2) + "\n")


def read_json(path: pathlib.Path, todo: str) -> dict[str, Any]:
    """The object in a file.

    Args:
      path: the file.
      todo: what to do if it cannot be read.

    Raises:
      InputError: if there is none, or it is damaged.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {todo}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {todo}") from error


def parse_json(text: bytes | str) -> dict[str, Any]:
    """The object in a text.

    Raises:
      ValueError: if it holds none.
    """
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets without end") from error
    if not isinstance(tree, dict):
        raise ValueError("it holds no object")
    return tree


def free_name(path: pathlib.Path, suffix: str) -> pathlib.Path:
    """A path beside another that nothing has yet: with the suffix, and a number if need be."""
    names = (f"{path.name}{suffix}{number or ''}" for number in itertools.count())
    return next(each for each in map(path.with_name, names) if not os.path.lexists(each))


def is_there(path: pathlib.Path) -> bool:
    """Whether there is anything of that name.

    Raises:
      InputError: if the system does not tell.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): make that possible") from error
    return True


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def write_csv(
    path: pathlib.Path, columns: Sequence[str], rows: Iterable[Iterable[Any]], digits: int | None = None
) -> None:
    """Writes a whole CSV file, floats with so many digits (default: all)."""

    def rounded(value: Any) -> Any:
        return f"{value:.{digits}g}" if digits and isinstance(value, float) else value

    write_whole(path, csv_text([columns, *(map(rounded, row) for row in rows)]))


def file_name(text: str, room: int = LONGEST_NAME) -> str:
    """A name for a file or folder: the text, or as much of it as there is room for and a digest of all.

    Args:
      text: what tells it from others.
      room: bytes.
    """
    encoded = os.fsencode(text)
    if len(encoded) <= room:
        return text
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return f"{encoded[: room - len(digest) - 1].decode(errors='ignore')}-{digest}"
