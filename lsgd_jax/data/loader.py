"""Batches that processes of Grain's make, or a thread of this one."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from multiprocessing import connection
from typing import Any, TypeVar

from absl import flags

from lsgd_jax.cluster.stopping import SIGNALS
from lsgd_jax.errors import NotYetError, first_line

T = TypeVar("T")


# A process takes seconds to start, which fewer batches are not worth.
BATCHES_PER_PROCESS = 4


def stream(load: Callable[[int], T], numbers: range, processes: int) -> Generator[T, None, None]:
    """`load(number)` of each number, in order.

    Args:
      load: can be pickled.
      numbers: one after the other.
      processes: how many of them are made at a time, each by a process; 0 makes them in this one.

    Raises:
      InputError: from `load`; NotYetError: if a process is gone.
    """
    import grain

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, in a program without flags too
        flags.FLAGS.mark_as_parsed()
    numbered = grain.MapDataset.range(numbers.start, numbers.stop).map(load)
    decoded = numbered.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=min(processes, len(numbers)), per_worker_buffer_size=1)
    try:
        with contextlib.closing(iter(decoded.mp_prefetch(options, worker_init_fn=_end_with_parent))) as made:
            yield from made
    except RuntimeError as error:
        if "terminated" not in str(error):
            raise
        raise NotYetError(
            f"a process that reads data is gone ({first_line(error)}): where memory or shared memory "
            "(/dev/shm) is short, use fewer processes (--loader_processes) or smaller batches"
        ) from error
    finally:
        if processes:
            gc.collect()  # Grain leaves its last arrays, in shared memory, to reference cycles


def _end_with_parent(*_: Any) -> None:
    """Makes a process end when the one that has started it wants it to, or is gone, and not before.

    A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes of a program.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
