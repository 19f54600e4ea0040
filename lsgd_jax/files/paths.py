"""Paths that a run reads from and writes to."""

import os
import pathlib
import re

from lsgd_jax.errors import InputError

# pathlib leaves one slash of two. A bucket without any is one to TensorBoard's writer.
URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/|(gs|s3):")


def why_not_local(path: str | os.PathLike[str]) -> str | None:
    """Why a path cannot be used, in a line: a run locks files, appends to them, and brings them to disk.

    Returns:
      The reason and what to do; None for a path on this machine in UTF-8.
    """
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        return "must be UTF-8: give it another name"
    found = URI.match(os.fspath(path))
    if found is None:
        return None
    todo = "leave out file://" if found[1] == "file" else "mount what it names, or copy it here"
    return f"must be a path on this machine, not a URI: {todo}"


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path in which ~ is the home directory.

    Raises:
      InputError: if nobody knows which one that is.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no home directory for ~: set HOME, or write the path in full") from error
