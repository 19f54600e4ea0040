"""Which GPUs a process uses: those that it sees, or its share of them where others see the same."""

import pathlib
import socket
from collections.abc import Iterator

import jax
import pytest
from jax._src import xla_bridge

from lsgd_jax.cluster import gpus, joining, processes
from lsgd_jax.errors import InputError

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def _gpus_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_PLATFORMS", "JAX_LOCAL_DEVICE_IDS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        ("3,4", ["3", "4"]),
        ("0,1,", ["0", "1"]),
        (" 0, 1", ["0", "1"]),
        ("0,-1,1", ["0"]),
        ("GPU-8932f937,MIG-0/1", ["GPU-8932f937", "MIG-0/1"]),
        ("-1", []),
        ("NoDevFiles", []),
        ("", []),
    ],
)
def test_a_list_of_gpus_is_read_as_cuda_reads_it(monkeypatch: pytest.MonkeyPatch, listed: str, seen: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpus.visible() == seen


def test_without_a_list_all_gpus_are_seen_that_may_be_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    files = [tmp_path / f"nvidia{number}" for number in (1, 3)]
    for file in files:
        file.touch()
    monkeypatch.setattr(gpus.glob, "glob", lambda pattern: [str(tmp_path / "nvidia2"), *map(str, reversed(files))])
    assert gpus.device_files() == list(map(str, files))
    assert gpus.visible() == ["0", "1"]


@pytest.fixture
def restricted() -> Iterator[None]:
    """As JAX leaves it in a Slurm step: the GPU with the local rank."""
    jax.config.update("jax_cuda_visible_devices", "0")
    yield
    jax.config.update("jax_cuda_visible_devices", "all")


@pytest.mark.usefixtures("restricted")
@pytest.mark.parametrize(
    ("others", "number", "used"),
    [
        ([("elsewhere", "0,1,2,3", "", "")], 0, "0,1,2,3"),  # a process a machine
        ([(HOST, "0,1,2,3", "", "")], 1, "2,3"),
        ([(HOST, "0,1,2,3", "", "")] * 3, 3, "3"),
        ([(HOST, "0,1,2,3", "", "")] * 2, 2, "2"),  # the fourth is idle
        ([(HOST, "4,5,6,7", "", "")], 1, "0,1,2,3"),  # dealt by a launcher
        ([(HOST, "0,1,2,3", "/dev/nvidia7", "")], 1, "0,1,2,3"),  # dealt by a scheduler
    ],
)
def test_all_gpus_of_a_machine_are_used(
    monkeypatch: pytest.MonkeyPatch, others: list[tuple[str, ...]], number: int, used: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(gpus, "device_files", list)
    monkeypatch.setattr(processes, "number", lambda: number)
    monkeypatch.setattr(processes, "exchange", lambda name, own: [*others[:number], own, *others[number:]])
    joining._choose_gpus()
    assert xla_bridge.CUDA_VISIBLE_DEVICES.value == used


@pytest.mark.usefixtures("restricted")
def test_what_is_left_idle_is_told_and_too_many_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(processes, "exchange", lambda name, own: [own, own])
    joining._choose_gpus()
    assert capsys.readouterr().out == f"warning: 2 processes on {HOST} use 2 of the 3 GPUs that they all see\n"
    monkeypatch.setattr(processes, "exchange", lambda name, own: [own] * 4)
    with pytest.raises(InputError, match=f"4 processes on {HOST} see the same GPUs, 3 in number"):
        joining._choose_gpus()
