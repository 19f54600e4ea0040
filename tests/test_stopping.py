"""The signals that stop a run."""

import signal
from collections.abc import Iterator

import pytest

from lsgd_jax.training.stopping import SIGNALS, stop_on_signals


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
        signal.raise_signal(signal.SIGTERM)
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
