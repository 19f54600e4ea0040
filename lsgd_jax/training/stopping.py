"""Stopping a run at the end of a round: by a signal, or since the launcher is gone."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

# They end a session, or a scheduler announces its end by them.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
# What a launcher tells its processes: the end of a pipe whose other end it holds as long as it lives.
LAUNCHER = "LSGD_JAX_LAUNCHER"


class StopRequest:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Asks the run to stop."""
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked


def heard_signals() -> list[signal.Signals]:
    """The signals that stop this process: without those that are ignored, as under nohup, or have another use."""
    return [n for n in SIGNALS if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) == signal.SIG_DFL]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns signals into a request. A second Ctrl-C acts as usual.

    The others may well come twice: from a shell and its terminal, from a scheduler and a launcher.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in heard_signals()}

    def handle(*_: Any) -> None:
        request.ask()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_launcher() -> None:
    """Sends this process SIGTERM once the launcher that has started it is gone, however it ended."""
    pipe = os.environ.pop(LAUNCHER, None)

    def wait(pipe: int) -> None:
        os.read(pipe, 1)  # nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)

    if pipe is not None:
        threading.Thread(target=wait, args=(int(pipe),), daemon=True).start()
