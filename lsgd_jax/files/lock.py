"""One process trains in a folder at a time."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from lsgd_jax.errors import InputError, NotYetError


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a folder meanwhile. The lock goes with the process, however it ends.

    Raises:
      NotYetError: if another process trains there.
      InputError: if it cannot be read.
    """
    try:
        folder = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot read --workdir={workdir} ({error.strerror}): make that possible") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NotYetError(f"another process trains in --workdir={workdir}: wait for it, or name another") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)
