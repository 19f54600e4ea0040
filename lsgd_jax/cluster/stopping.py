"""Stopping: by a signal, or since the launcher is gone; at once, or at the end of a round."""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import Any

# They end a session, or a scheduler announces its end by them.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
# What a launcher tells its processes: the end of a pipe whose other end it holds as long as it lives.
LAUNCHER = "LSGD_JAX_LAUNCHER"


class StopRequest:
    """Whether somebody has asked this process to stop.

    Attributes:
      awaited: whether it will stop by itself, as at the end of a round; else a signal may end it at once.
      exit_code: how it ends then; 128 and the signal's number by default.
    """

    def __init__(self) -> None:
        self.awaited = False
        self.exit_code: int | None = None
        self._asked = False

    def ask(self) -> None:
        """Asks the process to stop."""
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked


def heard_signals() -> list[signal.Signals]:
    """The signals that stop this process: of those but SIGINT and SIGTERM only what is not ignored, as under nohup,
    and has no other use.
    """
    return [n for n in SIGNALS if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) == signal.SIG_DFL]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns signals into a request. A second Ctrl-C acts as usual.

    Others may well come twice: from a shell and its terminal, from a scheduler and a launcher.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in heard_signals()}

    def handle(number: int, _: Any) -> None:
        request.ask()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ended_by_signals(program: str) -> Iterator[StopRequest]:
    """`stop_on_signals`, where a signal ends the process at once, in one line, until the request is awaited.

    A thread hears them: Python's own handlers wait until the main thread comes back from compiling, or
    from waiting for other processes, and what they raise can be lost.
    """
    heard = heard_signals()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen(stop: StopRequest) -> None:
        while number := os.read(reader, 1)[0]:
            if number in heard and not stop.awaited:
                line = f"{program}: stopped by {signal.Signals(number).name}\n"
                with contextlib.suppress(OSError, ValueError):
                    if select.select([], [2], [], 0)[1]:  # else nobody reads it, and writing would wait for that
                        os.write(2, line.encode())
                os._exit(128 + number if stop.exit_code is None else stop.exit_code)

    with stop_on_signals() as stop:
        thread = threading.Thread(target=listen, args=(stop,), daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield stop
        finally:
            signal.set_wakeup_fd(before)
            os.write(writer, b"\0")
            thread.join()
            os.close(reader)
            os.close(writer)


def stop_with_launcher() -> None:
    """Sends this process SIGTERM once the launcher that has started it is gone, however it ended."""
    pipe = os.environ.pop(LAUNCHER, None)

    def wait(pipe: int) -> None:
        os.read(pipe, 1)  # nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)

    if pipe is not None:
        threading.Thread(target=wait, args=(int(pipe),), daemon=True).start()
