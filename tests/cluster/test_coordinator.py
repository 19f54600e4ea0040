"""The coordinator of a run that outlives its processes: who is in a generation, and when it is over."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lsgd_jax.cluster.coordinator import Coordinator

TIMEOUT = 1.0


class Process:
    """A connection to a coordinator, as a process has it."""

    def __init__(self, port: int, number: int) -> None:
        self.number = number
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(20)
        self._lines = self.socket.makefile()
        self.told = 0

    def tell(self, **message: Any) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def join(self, *steps: int) -> None:
        self.tell(join=self.number, after=self.told, steps=steps, broken=False)

    def hear(self) -> dict[str, Any]:
        message = json.loads(self._lines.readline())
        self.told = message.get("generation", self.told)
        return message

    def hears_nothing(self) -> bool:
        self.socket.settimeout(0.1)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(20)

    def die(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    """Of three processes, without a service of JAX."""
    monkeypatch.setattr(Coordinator, "_serve", lambda self, members: "address")
    made = Coordinator(("127.0.0.1", 0), 3, TIMEOUT)
    yield made
    made.close()


@pytest.fixture
def trio(coordinator: Coordinator) -> list[Process]:
    """Three processes that train together."""
    processes = [Process(coordinator.port, number) for number in range(3)]
    for process in processes:
        process.join()
    for process in processes:
        assert process.hear()["generation"] == 1
    return processes


def test_the_first_generation_waits_for_all(coordinator: Coordinator) -> None:
    processes = [Process(coordinator.port, number) for number in (2, 0, 1)]
    for process in processes[:2]:
        process.join()
    assert processes[0].hears_nothing()
    processes[2].join()
    for process in processes:
        assert process.hear() == {
            "generation": 1, "members": [0, 1, 2], "newcomers": [0, 1, 2], "step": None, "address": "address",
        }  # fmt: skip


def test_the_others_hear_of_a_death_and_go_on_from_the_last_step_that_all_have(trio: list[Process]) -> None:
    trio[1].die()
    for process in (trio[0], trio[2]):
        assert process.hear() == {"lost": 1}
    trio[0].join(16, 32)
    assert trio[0].hears_nothing(), "the other one has not come yet"
    trio[2].join(32, 48)
    for process in (trio[0], trio[2]):
        heard = process.hear()
        assert (heard["members"], heard["newcomers"], heard["step"]) == ([0, 2], [], 32)


def test_who_comes_waits_until_all_have_come_to_the_end_of_a_call(
    trio: list[Process], coordinator: Coordinator
) -> None:
    trio[1].die()
    for process in (trio[0], trio[2]):
        process.hear()
        process.join(16)
    for process in (trio[0], trio[2]):
        process.hear()
    newcomer = Process(coordinator.port, 1)
    newcomer.join()
    for process in (trio[0], trio[2]):
        assert process.hear() == {"wanted": True}
    assert newcomer.hears_nothing()
    for process in (trio[0], trio[2]):
        process.join(32, 48)
    for process in (trio[0], trio[2], newcomer):
        heard = process.hear()
        assert (heard["generation"], heard["members"], heard["newcomers"], heard["step"]) == (3, [0, 1, 2], [1], 48)


def test_one_that_is_silent_is_lost_and_comes_back_as_a_newcomer(trio: list[Process]) -> None:
    end = time.monotonic() + 3 * TIMEOUT
    while time.monotonic() < end:
        for process in (trio[0], trio[1]):
            process.tell(beat=True)
        time.sleep(TIMEOUT / 10)
    for process in (trio[0], trio[1]):
        assert process.hear() == {"lost": 2}
        process.join(16)
    for process in (trio[0], trio[1]):
        assert process.hear()["members"] == [0, 1]
    assert trio[2].hear() == {"evicted": True}
    trio[2].join(8)
    for process in (trio[0], trio[1]):
        assert process.hear() == {"wanted": True}
        process.join(16)
    for process in trio:
        heard = process.hear()
        assert (heard["newcomers"], heard["step"]) == ([2], 16), "what it has kept is of no use"


def test_one_that_cannot_connect_calls_all_together_again(trio: list[Process]) -> None:
    trio[0].tell(join=0, after=1, steps=[16], broken=True)
    for process in trio[1:]:
        assert process.hear() == {"lost": 0}
        process.join(16)
    for process in trio:
        assert process.hear()["members"] == [0, 1, 2]


def test_a_word_that_crosses_with_that_of_a_generation_counts_for_nothing(trio: list[Process]) -> None:
    trio[0].tell(join=0, after=0, steps=[], broken=False)
    trio[1].die()
    for process in (trio[0], trio[2]):
        assert process.hear() == {"lost": 1}, "it is still a member"


def test_of_two_processes_with_one_number_the_later_one_counts(trio: list[Process], coordinator: Coordinator) -> None:
    later = Process(coordinator.port, 1)
    later.join()
    assert "started again" in trio[1].hear()["end"]
    for process in (trio[0], trio[2]):
        assert process.hear() == {"lost": 1}
        process.join(16)
    for process in (trio[0], later, trio[2]):
        assert process.hear()["newcomers"] == [1]


def test_processes_that_have_no_step_in_common_are_told(trio: list[Process]) -> None:
    trio[1].die()
    trio[0].join(16, 32)
    trio[2].join(48, 64)
    for process in (trio[0], trio[2]):
        answers = [process.hear(), process.hear()]
        assert any("no step in common" in answer.get("end", "") for answer in answers)


def test_one_that_comes_after_the_end_is_told(trio: list[Process], coordinator: Coordinator) -> None:
    for process in trio:
        process.tell(leave=True)
    late = Process(coordinator.port, 1)
    late.join()
    assert late.hear() == {"finished": True}
    assert coordinator.present() == 1


def test_all_may_die_and_others_come(trio: list[Process], coordinator: Coordinator) -> None:
    for process in trio:
        process.die()
    time.sleep(0.2)
    newcomer = Process(coordinator.port, 2)
    newcomer.join()
    heard = newcomer.hear()
    assert (heard["members"], heard["step"], heard["address"]) == ([2], None, None)
