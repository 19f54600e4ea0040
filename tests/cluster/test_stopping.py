"""The signals that stop a run."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from lsgd_jax.cluster.stopping import SIGNALS, ended_by_signals, stop_on_signals


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_that_ends_a_session_stops_a_run_however_often_it_comes(number: signal.Signals) -> None:
    """A terminal that is closed sends SIGHUP twice, and a scheduler SIGTERM to a launcher and to its processes."""
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        for again in (number, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(again)
        assert stop
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_on_signals() as stop:
        for first in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.raise_signal(first)
            assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_that_are_ignored_or_have_another_use_keep_it() -> None:
    heard = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    signal.signal(signal.SIGUSR1, lambda *_: heard.append("USR1"))
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR1)
        assert not stop
    assert heard == ["USR1"]


WAITS = """
import sys, time
from lsgd_jax.cluster.stopping import ended_by_signals
with ended_by_signals("train.py") as stop:
    {set}
    print("ready", flush=True)
    while not stop:
        time.sleep(0.05)
    time.sleep(0.5)  # what ends it at once is another thread
    print("stopped by itself")
"""


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("pass", 128 + signal.SIGINT, "", "train.py: stopped by SIGINT\n"),
        ("stop.exit_code = 75", 75, "", "train.py: stopped by SIGINT\n"),
        ("stop.awaited = True", 0, "stopped by itself\n", ""),
    ],
)
def test_a_signal_ends_a_program_in_one_line_unless_it_stops_by_itself(
    line: str, code: int, out: str, err: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS.format(set=line)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)
    assert (process.returncode, *told) == (code, out, err)


def test_a_signal_ends_a_program_whose_output_is_held_up_and_loses_no_line_before_it() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"." * 4096):
            pass
    os.set_blocking(writer, True)
    printing = "from lsgd_jax.files.output import make_output_last; make_output_last(); print('a line')"
    program = WAITS.format(set=printing).replace(", flush=True", "")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writer, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["a line\n", "ready\n"]
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    os.close(reader)
    os.close(writer)


def test_what_hears_signals_leaves_nothing_behind() -> None:
    before = [signal.getsignal(number) for number in SIGNALS], threading.active_count()
    with ended_by_signals("outer") as outer, ended_by_signals("inner") as inner:
        outer.awaited = inner.awaited = True
        signal.raise_signal(signal.SIGTERM)
        assert inner
        assert not outer
    assert ([signal.getsignal(number) for number in SIGNALS], threading.active_count()) == before
    assert signal.set_wakeup_fd(-1) == -1
