"""What a user of the command line can get wrong, and what ends a run, told in one line."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

MAKE_ROOM = "make room, and go on from the last checkpoint (train.py with --resume, compare.py as before)"


class InputError(ValueError):
    """Bad input. Its message is one line: what is wrong, and what to do."""


class AgreedInputError(InputError):
    """Bad input that all processes of a run have heard of; the main process tells it."""


class RunFailedError(RuntimeError):
    """A run that cannot go on. Its message is one line: why, and what to do."""


class AllWorkersLostError(RunFailedError):
    """No worker has finite parameters left, and nothing will start one again."""


class DiskFullError(RunFailedError):
    """There is no room left for what a run writes."""


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room on a disk, as the system or TensorStore tells it."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (isinstance(error, OSError) and error.errno in full) or any(
        os.strerror(number) in str(error) for number in full
    )


@contextlib.contextmanager
def on_full_disk(workdir: pathlib.Path) -> Iterator[None]:
    """Turns what a full disk raises into one line.

    Raises:
      DiskFullError: what to do.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error) and not isinstance(error, DiskFullError):
            where = getattr(error, "filename", None) or f"--workdir={workdir}"
            raise DiskFullError(f"the disk of {where} is full: {MAKE_ROOM}") from error
        raise


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
