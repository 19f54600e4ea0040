"""Whether what a program is going to write can be written, tried before it begins."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import a_plan, leave

from lsgd_jax.compare.report import FILES

from lsgd_jax.compare import running  # isort: skip

from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source
from lsgd_jax.config.train import train
from lsgd_jax.errors import InputError
from lsgd_jax.files.writable import REPLACED, check_parts, make_writable
from lsgd_jax.trainer.conditions import conditions_of, write_conditions
from lsgd_jax.trainer.workdir import is_used


def test_processes_that_begin_together_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one tries the folder while this one does; if it is killed meanwhile the folder is still a new one."""
    create, others = os.open, []

    def meanwhile(path: Any, *how: Any, **more: Any) -> int:
        descriptor = create(path, *how, **more)
        if not others:
            others.append(path)
            assert not is_used(tmp_path)
            make_writable(tmp_path)
        return descriptor

    monkeypatch.setattr(os, "open", meanwhile)
    make_writable(tmp_path)
    assert len(others) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_on_a_disk_that_is_read_only_is_told_to_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = os.open

    def read_only(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return create(path, flags, *more, **others)

    config = Config(str(tmp_path), model="mlp", steps=8)
    summary = leave(config)
    write_conditions(tmp_path, conditions_of(find_source(config)))
    monkeypatch.setattr(os, "open", read_only)
    assert train(config, resume=True) == {"metric": "error", **summary}
    assert f"the run in {tmp_path} is already finished, at step 8" in capsys.readouterr().out
    with pytest.raises(InputError, match=rf"cannot read and write {tmp_path} \(Read-only file system\)"):
        train(dataclasses.replace(config, steps=16), resume=True)


@pytest.mark.parametrize("name", [*REPLACED, "figures/error.png"])
def test_a_folder_where_a_run_writes_a_file_is_told_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"{tmp_path / name} is a folder, where a file is to be written: move it away"):
        check_parts(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_report_goes_is_told_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(running, "train", lambda *args, **kwargs: pytest.fail("before that"))
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{tmp_path / name} is a folder"):
        running.compare(a_plan(tmp_path), ["python experiments/compare.py"], StopRequest())
