"""Standard output and standard error that outlast whoever reads them: a pipe, a terminal."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# A pipe that nobody reads any more, a terminal that was closed, a connection that was, a descriptor that was.
GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.EBADF)
# A file of what is printed for which there is no room: the run may still have some, elsewhere.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Lasting(io.FileIO):
    """Writes what can still be read, and drops the rest."""

    _reported = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in FULL:
                self._report(error)
            elif error.errno not in GONE:
                raise
            return memoryview(data).nbytes

    def _report(self, error: OSError) -> None:
        """Once, on standard error."""
        if self.fileno() == 1 and not self._reported:
            self._reported = True
            with contextlib.suppress(OSError):
                os.write(2, f"standard output cannot be written ({error.strerror}): going on without\n".encode())


def make_output_last() -> None:
    """Lets what this process prints from now on go nowhere, and raise nothing, once nobody can read it.

    Streams that are not Python's own, as in a notebook, stay as they are.
    """
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """`make_output_last`, meanwhile."""
    before = sys.stdout, sys.stderr
    make_output_last()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed before Python started
        return open(os.devnull, "w")
    if type(stream) is not io.TextIOWrapper or isinstance(getattr(stream.buffer, "raw", None), _Lasting):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    buffer = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
    # By line: a signal may end the process at once.
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=True)
