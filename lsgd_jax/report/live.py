"""The page of a run that goes on, kept fresh in its folder."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator

from lsgd_jax.errors import InputError
from lsgd_jax.report.command import FILE, check_plotly, write_report

SECONDS = 30.0


@contextlib.contextmanager
def kept_fresh(workdir: pathlib.Path, every: float = SECONDS) -> Iterator[None]:
    """Makes the page anew now and then while the body runs, and once more when it ends, however it does.

    Args:
      workdir: the run's folder, which gets the page.
      every: seconds between two of them, after which browsers load it again too; not the last one.

    Raises:
      InputError: if Plotly is not installed.
    """
    check_plotly()
    ended = threading.Event()

    def make(refresh: float | None = None) -> None:
        with contextlib.suppress(InputError):  # there is no evaluation yet, or the disk is full, which the run tells
            write_report([workdir], workdir / FILE, refresh=refresh)

    def keep() -> None:
        while not ended.wait(every):
            make(every)

    thread = threading.Thread(target=keep, name="live report", daemon=True)
    thread.start()
    refused = False
    try:
        yield
    except InputError:
        refused = True  # the folder may hold another run
        raise
    finally:
        ended.set()
        thread.join()
        if not refused:
            make()
