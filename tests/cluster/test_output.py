"""Output that nobody can read any more does not end a run."""

import io
import os
import pathlib
import sys

import pytest

from lsgd_jax.config.config import Config
from lsgd_jax.config.train import train
from lsgd_jax.files.output import lasting_output


def lose_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes standard output and standard error pipes without a reader."""
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True))


def test_what_nobody_reads_is_dropped_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_output(monkeypatch)
    with lasting_output():
        for stream in (sys.stdout, sys.stderr):
            for _ in range(3):
                print("lost", file=stream, flush=True)
    with pytest.raises(BrokenPipeError):
        print("lost")


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_output(monkeypatch)
    config = Config(str(tmp_path), algorithm="none", model="mlp", groups=1, workers=1, batch_size=8, steps=8)
    summary = train(config, figures=False)
    assert summary is not None
    assert summary["step"] == 8


def test_what_can_be_read_is_written_as_before(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "told").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print("before ", end="")
        with lasting_output():
            assert sys.stdout.encoding == "ascii"
            print("2 × 4")
    assert (tmp_path / "told").read_text() == "before 2 \\xd7 4\n"


def test_closed_streams_take_all_and_those_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    others = io.StringIO()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", others)
    with lasting_output():
        assert sys.stderr is others
        assert not sys.stdout.isatty()
        print("lost", flush=True)
    assert sys.stdout is None
