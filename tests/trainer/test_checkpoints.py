"""Checkpoints that are damaged, half-written, or do not fit on the disk."""

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from copies import copied

from lsgd_jax.config import train as training
from lsgd_jax.config.config import Config
from lsgd_jax.config.reload import reload_run
from lsgd_jax.config.train import train
from lsgd_jax.errors import DiskFullError, InputError, is_disk_full
from lsgd_jax.files.files import write_json
from lsgd_jax.trainer import checkpoints
from lsgd_jax.trainer.checkpoints import DIGESTS, Checkpoints
from lsgd_jax.trainer.records import Records, read_leaders, read_metrics

RUN: dict[str, Any] = {
    **{"model": "mlp", "groups": 2, "workers": 2, "batch_size": 8, "learning_rate": 0.02, "steps": 24},
    **{"local_period": 4, "global_period": 8, "eval_every": 8, "checkpoint_every": 8},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to its end; it has the checkpoints of steps 16 and 24."""
    workdir = tmp_path_factory.mktemp("checkpoints") / "whole"
    assert train(Config(str(workdir), **RUN), figures=False)
    return workdir


def params_of(workdir: Path) -> list[np.ndarray]:
    state = reload_run(workdir).state
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state, state.losses))]


def flip(folder: Path) -> None:
    """A bit of the largest file, which holds the parameters."""
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])


def lose(folder: Path) -> None:
    (folder / "state" / "manifest.ocdbt").unlink()


def garble(folder: Path) -> None:
    (folder / DIGESTS).write_text("{")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(whole, tmp_path / "run")
    flip(workdir / "checkpoints" / "24")
    assert train(Config(str(workdir), **RUN), resume=True, figures=False)
    told = capsys.readouterr().out
    assert re.search(
        r"^warning: the checkpoint of step 24 is damaged \(\S+ has changed\) and now in \S+24.damaged", told
    )
    assert "resuming" in told
    assert "at step 16 of 24" in told
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"16", "24", "24.damaged"}
    assert read_leaders(workdir) == read_leaders(whole)
    rows = [[{**row, "seconds": None} for row in read_metrics(run)] for run in (workdir, whole)]
    assert rows[0] == rows[1]
    for ours, theirs in zip(params_of(workdir), params_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(flip, "has changed"), (truncate, "_METADATA has changed"), (lose, "manifest.ocdbt has changed"),
     (garble, f"{DIGESTS} cannot be read")],
)  # fmt: skip
def test_whatever_is_damaged_is_seen(
    damage: Any, told: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    checkpoints._sweep(folder)
    assert capsys.readouterr().out == ""
    for step in ("24", "16"):
        damage(folder / step)
    checkpoints._sweep(folder)
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"of step (\d+) is damaged", line)[1] for line in lines] == ["24", "16"]
    assert all(told in line for line in lines)
    assert all(line.endswith(": going on from the beginning") for line in lines)


def made_up(folder: Path, *steps: int) -> dict[Path, bytes]:
    """Whole checkpoints, as far as a sweep looks; returns all their files."""
    for step in steps:
        state = folder / str(step) / "state"
        state.mkdir(parents=True)
        (state / "array").write_bytes(b"x" * step)
        write_json(state.parent / DIGESTS, checkpoints._digests(state.parent))
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize(
    ("name", "owner", "function"),
    [(f"12/{DIGESTS}", Path, "open"), ("12/state/array", Path, "open"), (f"12/{DIGESTS}", Path, "lstat"),
     ("12/state", os, "scandir"), ("", Path, "iterdir")],
)  # fmt: skip
def test_a_checkpoint_that_the_system_does_not_let_us_read_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, owner: Any, function: str, reason: int
) -> None:
    folder = tmp_path / "checkpoints"
    before = made_up(folder, 8, 12)
    original = getattr(owner, function)

    def refuse(path: Any, *args: Any, **more: Any) -> Any:
        if Path(path) == folder / name:
            raise OSError(reason, os.strerror(reason), str(path))
        return original(path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, refuse)
        for look in (lambda: Checkpoints(tmp_path), lambda: checkpoints._sweep(folder)):
            with pytest.raises(
                InputError, match=f"cannot read (or move )?{folder / name} .{os.strerror(reason)}.: make"
            ) as told:
                look()
            assert "\n" not in str(told.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_error_while_a_file_is_read_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tmp_path, 12)

    def no_disk(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoints.hashlib, "file_digest", no_disk)
    with pytest.raises(InputError, match=f"cannot read or move {tmp_path}/12/state/array .Input/output error.: make"):
        checkpoints._sweep(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"state/array": 5}', "[" * 10**5])
def test_damaged_checkpoints_find_a_name_whatever_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    for number, aside in enumerate(("12.damaged1", "12.damaged2")):
        made_up(tmp_path, 12)
        (tmp_path / "12" / DIGESTS).write_text(content)
        (tmp_path / "12.damaged").touch()
        checkpoints._sweep(tmp_path)
        assert f"({DIGESTS} cannot be read) and now in {tmp_path / aside}: going on" in capsys.readouterr().out
        assert len(list(tmp_path.iterdir())) == 2 + number


def test_a_checkpoint_of_a_padded_name_is_to_be_called_as_no_other_is(tmp_path: Path) -> None:
    made_up(tmp_path, 12)
    (tmp_path / "0012").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}/0012 has a name that no checkpoint has: move it away$"):
        checkpoints._sweep(tmp_path)


@pytest.mark.slow
def test_a_run_that_has_lost_its_checkpoints_begins_again_and_keeps_what_it_has_recorded(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints")
    rows = read_metrics(workdir)
    assert train(Config(str(workdir), **RUN | {"steps": 32}), resume=True, figures=False)
    assert "warning: the run had come to step 24, but there is no checkpoint of it" in capsys.readouterr().out
    assert [json.loads(line) for line in (workdir / "metrics.jsonl.before").read_text().splitlines()] == rows
    assert [row["step"] for row in read_metrics(workdir)] == [8, 16, 24, 32]


def test_who_looks_at_a_run_leaves_its_checkpoints_alone(whole: Path, tmp_path: Path) -> None:
    workdir = copied(whole, tmp_path / "run")
    (workdir / "checkpoints" / "32.orbax-checkpoint-tmp").mkdir()
    truncate(workdir / "checkpoints" / "16")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert reload_run(workdir).step == 24
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_who_looks_at_a_run_is_told_of_a_damaged_checkpoint(whole: Path, tmp_path: Path) -> None:
    workdir = copied(whole, tmp_path / "run")
    (workdir / "checkpoints" / "24" / "info" / "metadata").write_text('{"shape": [2')
    with pytest.raises(InputError, match=r"of step 24 in .* is damaged \(info/metadata has changed\): go on with"):
        reload_run(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["024", "٢٤"])
def test_a_checkpoint_that_nobody_would_find_by_its_name_is_told(whole: Path, tmp_path: Path, name: str) -> None:
    workdir = copied(whole, tmp_path / "run")
    (workdir / "checkpoints" / "24").rename(workdir / "checkpoints" / name)
    (workdir / "checkpoints" / "²").mkdir()
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"checkpoints/{name} has a name that no checkpoint has: call it 24, or"):
        train(Config(str(workdir), **RUN), resume=True)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_half_written_checkpoint_is_swept_away_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "checkpoints" / "32.orbax-checkpoint-tmp" / "state"
    half.mkdir(parents=True)
    found = Checkpoints(tmp_path)
    assert found.latest_step() is None
    found.close()
    assert "warning: the checkpoint of step 32 was not finished" in capsys.readouterr().out
    assert not half.parent.exists()


def test_a_checkpoint_whose_digests_were_not_written_any_more_is_not_trusted(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    (folder / "24" / DIGESTS).unlink()
    checkpoints._sweep(folder)
    assert {path.name for path in folder.iterdir()} == {"16", "24.damaged"}
    assert capsys.readouterr().out.endswith(": going on from that of step 16\n")


def test_a_checkpoint_of_an_older_version_is_refused_in_one_line_and_left_alone(whole: Path, tmp_path: Path) -> None:
    workdir = copied(whole, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "16")
    (workdir / "checkpoints" / "24" / DIGESTS).unlink()
    (workdir / "checkpoints" / "24" / "info").rename(workdir / "checkpoints" / "24" / "progress")
    with pytest.raises(
        InputError, match="checkpoint of step 24 is of another model, base optimizer or method"
    ) as refused:
        train(Config(str(workdir), **RUN), resume=True)
    assert "\n" not in str(refused.value)
    assert (workdir / "checkpoints" / "24" / "progress").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB, with ballast that leaves too little for a checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("cannot mount a small disk here: that takes root")
    try:
        (folder / "ballast").write_bytes(os.urandom(1_800_000))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_once_there_is_room(whole: Path, small_disk: Path) -> None:
    workdir = small_disk / "run"
    with pytest.raises(
        DiskFullError, match=r"no room for the checkpoint of step 8 .* go on .* with --resume, c.*before\)$"
    ):
        train(Config(str(workdir), **RUN), figures=False)
    (small_disk / "ballast").unlink()
    summary = train(Config(str(workdir), **RUN | {"steps": 8}), resume=True, figures=False)
    assert summary is not None
    assert {**read_metrics(workdir)[0], "seconds": 0} == {**read_metrics(whole)[0], "seconds": 0}


def test_a_full_disk_is_heard_of_where_records_are_written_and_nothing_hangs(small_disk: Path) -> None:
    records = Records(small_disk, last_step=0)
    (small_disk / "more").write_bytes(bytes(shutil.disk_usage(small_disk).free))

    def go_on() -> None:
        for step in range(10_000):  # the first rows may find room in what is there
            records.add_metrics({"step": step, **{f"figure {i}": 0.5 for i in range(12)}})
            records.flush()

    with pytest.raises(OSError, match="No space left"):
        go_on()
    (small_disk / "more").unlink()
    records.close()


@pytest.mark.slow
def test_a_disk_that_is_full_all_of_a_sudden_ends_the_run_in_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workdir = tmp_path / "run"
    monkeypatch.setattr(Records, "add_metrics", no_room)
    with pytest.raises(DiskFullError, match=f"the disk of --workdir={workdir} is full") as stopped:
        train(Config(str(workdir), **RUN), figures=False)
    assert "train.py with --resume, compare.py as before" in str(stopped.value), "each in its way"
    assert "\n" not in str(stopped.value)
    monkeypatch.setattr(training, "trainer_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(Config(str(tmp_path / "other"), **RUN))


def test_a_full_disk_is_told_from_other_errors() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "here"))
    assert is_disk_full(OSError(errno.EDQUOT, "here"))
    assert is_disk_full(ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device"))
    assert not is_disk_full(OSError(errno.EACCES, "here"))
    assert not is_disk_full(ValueError("no"))


def test_a_checkpoint_lists_the_digest_of_each_of_its_files(whole: Path) -> None:
    folder = whole / "checkpoints" / "24"
    listed = json.loads((folder / DIGESTS).read_text())
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert listed.keys() == files - {DIGESTS}
    assert len(set(listed.values())) > 3


@pytest.mark.slow
def test_a_run_of_before_goes_on_whose_checkpoints_call_their_info_by_another_name(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    folder = run / "checkpoints" / "24"
    (folder / "info").rename(folder / "standing")
    for name in (DIGESTS, "_CHECKPOINT_METADATA"):
        (folder / name).write_text((folder / name).read_text().replace("info", "standing"))
    config = json.loads((run / "config.json").read_text()) | {"workdir": str(run), "steps": 32}
    summary = train(Config(**config), resume=True, figures=False)
    assert summary is not None
    assert summary["step"] == 32
