"""Stopping a run by a signal, at the end of a round."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Asks the run to stop."""
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGTERM or Ctrl-C into a request; a second one acts as usual."""
    request = StopRequest()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: Any) -> None:
        request.ask()
        restore()

    for number in signals:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
