"""A process as a member: what becomes of it where a generation is over, and it waits for something that never comes."""

import os
import time
from collections.abc import Iterator

import pytest

from lsgd_jax.cluster import generations
from lsgd_jax.cluster.coordinator import Coordinator
from lsgd_jax.cluster.generations import CANNOT_BE_INTERRUPTED, Membership


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which this process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(generations, "PARTING_SECONDS", 0.2)
    return codes


@pytest.fixture
def member() -> Iterator[Membership]:
    """A process that trains, as if it were connected to others."""
    coordinator = Coordinator(("127.0.0.1", 0), 1, 10)
    found = Membership(("127.0.0.1", coordinator.port), 0, 10, 10)
    assert found.join([]).members == (0,)
    found._connected = True
    yield found
    found._connected = False
    coordinator.close()


def test_a_process_that_nothing_brings_back_ends(
    member: Membership, exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    member._interrupt()
    time.sleep(0.5)
    assert exits == [1]
    assert CANNOT_BE_INTERRUPTED in capsys.readouterr().err


def test_a_process_whose_work_is_done_meanwhile_does_not(member: Membership, exits: list[int]) -> None:
    member._interrupt()
    member.leave()
    time.sleep(0.5)
    assert exits == []
