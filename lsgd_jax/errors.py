"""What a user can get wrong, and what ends a run, each told in one line; and the exit codes of command lines."""

import contextlib
import enum
import errno
import os
import pathlib
import re
import signal
from collections.abc import Iterator

MAKE_ROOM = "make room, and go on from the last checkpoint (train.py with --resume, compare.py as before)"


class ExitCode(enum.IntEnum):
    """How a command line ends, for shells, schedulers and the launcher. An error of ours is a 1, with a traceback."""

    DONE = 0  # also a run that was stopped and saved, unless --resume=auto has to tell it from a finished one
    BAD_INPUT = 2  # flags, files, the environment: another start would end there too
    FAILED = 3  # a full disk, all workers lost: likewise
    NOT_YET = os.EX_UNAVAILABLE  # what comes from elsewhere was not there: it may be at another start
    STOPPED = os.EX_TEMPFAIL  # as it was asked to: the same command goes on from there
    INTERRUPTED = 128 + signal.SIGINT  # at once, by a second Ctrl-C


class ReportedError(Exception):
    """What ends a command line. Its message is one line: what is wrong, and what to do.

    Attributes:
      exit_code: how it ends then.
      agreed: whether all processes of a run have heard of it; then the main process tells it.
    """

    exit_code = ExitCode.FAILED
    agreed = False


class InputError(ReportedError, ValueError):
    """Bad input."""

    exit_code = ExitCode.BAD_INPUT


class NotYetError(InputError):
    """What comes from elsewhere was not there: another process, a port, a network, memory."""

    exit_code = ExitCode.NOT_YET


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """Lets what ends a call from Python name arguments, where command lines have flags of those names."""
    try:
        yield
    except ReportedError as error:
        error.args = (re.sub(r"--(?=[a-z])", "", str(error)),)
        raise


class RunFailedError(ReportedError, RuntimeError):
    """A run that cannot go on."""


class AllWorkersLostError(RunFailedError):
    """No worker has finite parameters left, and nothing will start one again."""

    agreed = True  # all processes find it


class DiskFullError(RunFailedError):
    """There is no room left for what a run writes."""


def agreed_error(code: int, shown: str) -> ReportedError:
    """An error that all processes have heard of, of the kind with that exit code."""
    error = {kind.exit_code: kind for kind in (InputError, NotYetError, RunFailedError)}[ExitCode(code)](shown)
    error.agreed = True
    return error


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
        if is_disk_full(error) and not isinstance(error, RunFailedError):
            raise disk_full(error, f"--workdir={workdir}") from error
        raise


def disk_full(error: Exception, where: str) -> DiskFullError:
    """What a full disk has raised, as one line; `where` is told if the error does not tell."""
    return DiskFullError(f"the disk of {getattr(error, 'filename', None) or where} is full: {MAKE_ROOM}")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
