"""One process trains in a folder at a time."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from lsgd_jax.training.errors import NotYetError


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a folder meanwhile. The lock goes with the process, however it ends.

    Raises:
      NotYetError: if another process trains there.
    """
    folder = os.open(workdir, os.O_RDONLY)
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
