"""Processes that tests start, and what can be seen of them from outside."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
# Beyond this a test has failed; a machine with other work is slow.
PATIENCE = 300
# One device a process, and little time to compile, as in tests: JAX's cache serves only the first of them on CPU.
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(ROOT),
}


@contextlib.contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen]:
    """A process whose output is one text; it does not outlive the test."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # at the second the launcher ends what it has started
            if process.poll() is None:
                process.send_signal(number)
                time.sleep(0.5)
        process.kill()
        process.wait()


def wait_until(seen: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.05)


def lines_until(process: subprocess.Popen, wanted: Callable[[str], bool]) -> list[str]:
    """The lines of a process up to the first that is wanted."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if wanted(line):
            return lines
    raise AssertionError("".join(lines))


def children(pid: int) -> list[int]:
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
