"""Files that are whole, and one line about those that are not."""

import json
import os
from pathlib import Path
from typing import Any

import figures
import pytest
from comparison.trials import Trial, finished

from lsgd_jax import load_center
from lsgd_jax.training import files
from lsgd_jax.training.config import Config
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.files import file_name, read_json, write_json, write_whole
from lsgd_jax.training.paths import expanded
from lsgd_jax.training.trainer import _finished
from lsgd_jax.training.workdir import read_config


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, happened = tmp_path / "file", []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        happened.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda self, to: happened.append("renamed") or replace(self, to))
    write_whole(path, "one ×\n")
    assert happened == ["file.partial", "renamed", tmp_path.name]
    assert path.read_bytes() == "one ×\n".encode()
    write_json(path, {"x": float("nan"), "y": 1})
    assert json.loads(path.read_text()) == {"x": None, "y": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


# What may have become of a file with an object in it.
NO_OBJECTS: dict[str, bytes] = {
    "cut off": b'{"step": 640, "test_er',
    "emptied": b"",
    "zeros": b"\0" * 20,
    "no text": b"\xff\xfe{}",
    "a list": b"[1]",
    "brackets without end": b"[" * 10**5,
}


@pytest.mark.parametrize("content", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_whoever_reads_a_damaged_file_names_it_and_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    run = tmp_path / "run"
    (run / "center").mkdir(parents=True)
    rows = [{"step": step, "test_error": 0.5, "seconds": 1.0} for step in (320, 640)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "leaders.csv").write_text("step,level,group,leader,score\n")
    trial = Trial("lsgd", (), 0, "test", Config(str(run)))
    readers: dict[str, list[tuple[Any, str]]] = {
        "summary.json": [
            (lambda: _finished(Config(str(run)), run), "remove it, and --resume writes it again"),
            (lambda: finished(trial), "the same command trains this run again"),
            (lambda: figures.read_runs(tmp_path), "leave this run out"),
        ],
        "config.json": [
            (lambda: read_config(run), "use a new --workdir"),
            (lambda: figures.read_runs(tmp_path), "leave this run out"),
        ],
        "center/model.json": [(lambda: load_center(run), "go on with --resume, which saves the center again")],
    }
    whole = {"summary.json": {"step": 640}, "config.json": {"workdir": "x"}, "center/model.json": {"kind": "text"}}
    for name, all_of_it in readers.items():
        for other, tree in whole.items():
            write_json(run / other, tree)
        (run / name).write_bytes(content)
        for read, todo in all_of_it:
            with pytest.raises(InputError) as told:
                read()
            assert str(run / name) in str(told.value)
            assert todo in str(told.value)
            assert "\n" not in str(told.value)
        assert (run / name).read_bytes() == content


def test_a_center_of_another_version_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "center").mkdir()
    write_json(tmp_path / "center" / "model.json", {"model": "mlp"})
    with pytest.raises(InputError, match=r"model.json is of another version of lsgd_jax \(KeyError"):
        load_center(tmp_path)


def test_a_run_without_its_last_evaluation_is_not_judged_by_the_one_before(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"step": 640, "test_error": 0.25})
    (tmp_path / "metrics.jsonl").write_text('{"step": 320}\n{"step": 6')
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged .* trains this run again"):
        finished(Trial("lsgd", (), 0, "test", Config(str(tmp_path))))


# Settings as somebody may have left them, and what is wrong with them.
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a number as text": ({"workdir": "x", "steps": "640"}, 'steps is "640", which is no int'),
    "a number that is missing": ({"workdir": "x", "learning_rate": None}, "learning_rate is null, which is no float"),
    "a switch for a number": ({"workdir": "x", "groups": True}, "groups is true, which is no int"),
    "a number for a switch": ({"workdir": "x", "download": 1}, "download is 1, which is no bool"),
    "a fraction": ({"workdir": "x", "batch_size": 1.5}, "batch_size is 1.5, which is no int | None"),
    "a list": ({"workdir": "x", "model": ["mlp"]}, 'model is ["mlp"], which is no str | None'),
    "no workdir": ({"steps": 3}, "workdir is null, which is no str"),
    "of a newer version": ({"workdir": "x", "warp": 9}, "of another version of lsgd_jax, which has a setting 'warp'"),
}


@pytest.mark.parametrize(("saved", "told"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_are_told_with_their_file(tmp_path: Path, saved: dict[str, Any], told: str) -> None:
    write_json(tmp_path / "config.json", saved)
    with pytest.raises(InputError) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} is ")
    assert told in str(caught.value)
    assert str(caught.value).endswith(": use a new --workdir, or restore it")


def test_settings_of_an_older_version_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"workdir": "x", "learning_rate": 1, "batch_size": None, "clip_norm": 2})
    assert read_config(tmp_path)["learning_rate"] == 1
    with pytest.raises(InputError, match=r"nowhere/config.json cannot be read \(No such file"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\): mend it"):
        read_json(tmp_path, "mend it")


def test_names_are_as_long_as_file_systems_take_them_and_told_apart() -> None:
    assert file_name("a" * 255) == "a" * 255
    long = ["a" * 254 + "é", "a" * 256, "é" * 200 + "1", "é" * 200 + "2"]
    names = [file_name(text) for text in long]
    assert names == [file_name(text) for text in long]
    assert len(set(names)) == 4
    assert all(200 < len(name.encode()) <= 255 for name in names)
    assert file_name("b" * 50, room=40)[:20] == "b" * 20


def test_where_nobody_has_a_home_a_path_from_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert expanded("runs/~") == Path("runs/~")
    with pytest.raises(InputError, match="~/runs: there is no home directory for ~: set HOME"):
        expanded("~/runs")
