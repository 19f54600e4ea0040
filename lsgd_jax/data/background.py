"""An iterator that a thread runs ahead of whoever takes its items."""

import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Generic, TypeVar

from lsgd_jax.cluster.stopping import SIGNALS

T = TypeVar("T")


class Background(Generic[T]):
    """Makes the next item of an iterator while the last one is used.

    The thread, and processes that it starts, do not hear Ctrl-C and other signals that stop a run:
    they end when the iterator is closed.

    Args:
      make: given an event that is set when the items are no longer wanted; returns the iterator,
        which may then end early.
    """

    def __init__(self, make: Callable[[threading.Event], Generator[T, None, None]]) -> None:
        self._unwanted = threading.Event()
        self._items = make(self._unwanted)
        self._thread = ThreadPoolExecutor(1, "background", initializer=_hold_signals)
        self._ahead: Future[T | None] | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = (self._ahead or self._start()).result()
        if item is None:
            raise StopIteration
        self._ahead = self._start()
        return item

    def close(self) -> None:
        """Ends the iterator and the thread."""
        self._unwanted.set()
        self._ahead = None
        self._thread.submit(self._items.close).result()
        self._thread.shutdown()

    def _start(self) -> "Future[T | None]":
        return self._thread.submit(next, self._items, None)


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    resource_tracker.ensure_running()  # a process of Python's own; where it is started, some are let through again
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
