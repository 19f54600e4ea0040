"""Files that are whole, and one line about those that are not."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import figures
import pytest
from made_up_runs import leave

from lsgd_jax import load_center
from lsgd_jax.compare.trials import Trial, finished
from lsgd_jax.config import summary
from lsgd_jax.config.checks import load_config
from lsgd_jax.config.config import Config
from lsgd_jax.config.saved import read_config
from lsgd_jax.errors import InputError
from lsgd_jax.files import files
from lsgd_jax.files.files import file_name, read_json, write_json, write_whole
from lsgd_jax.files.paths import expanded
from lsgd_jax.tasks.classification import ERROR
from lsgd_jax.trainer.workdir import is_started


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
    config = Config(str(run))
    whole: dict[str, Any] = {"summary.json": leave(config), "config.json": dataclasses.asdict(config)}
    whole["center/model.json"] = {"model": "mlp", "kind": "text"}
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() * 2)  # what was evaluated once is not drawn
    trial = Trial("lsgd", (), 0, "test", config)
    readers: dict[str, list[tuple[Any, str]]] = {
        "summary.json": [
            (lambda: summary.finished(run, config.steps), "remove it, and --resume writes it again"),
            (lambda: finished(trial, ERROR), "the same command trains this run again"),
            (lambda: figures.read_runs(tmp_path), "leave this run out"),
        ],
        "config.json": [
            (lambda: read_config(run), "use a new --workdir"),
            (lambda: figures.read_runs(tmp_path), "leave this run out"),
        ],
        "center/model.json": [(lambda: load_center(run), "go on with resume, which saves the center again")],
    }
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


# Summaries that are JSON, but not what readers need, and what is told of them.
NO_SUMMARIES: dict[str, tuple[dict[str, Any], str]] = {
    "a step as text": ({"step": "640"}, 'step is "640", which is no int'),
    "no seconds": ({"seconds": None}, "seconds is null, which is no float"),
    "a text for an error": ({"leader_test_error": "x"}, 'leader_test_error is "x", which is no float | None'),
    "no errors of workers": ({"worker_test_error": 0.5}, "worker_test_error is 0.5, which is no list"),
    "text among the errors of workers": ({"worker_test_error": [0.5, "x"]}, 'worker_test_error is [0.5, "x"], which'),
    "a number for figures": ({"figures": [1]}, "figures is [1], which is no list[str]"),
    "no metric": ({"metric": ["error"]}, 'metric is ["error"], which is no str'),
    "another metric": ({"metric": "bits_per_byte"}, "validation_bits_per_byte is missing"),
    "nothing": ({}, "is missing"),
}


@pytest.mark.parametrize(("change", "told"), NO_SUMMARIES.values(), ids=NO_SUMMARIES)
def test_a_summary_that_is_json_but_not_what_readers_need_is_told(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    config = Config(str(tmp_path))
    whole = leave(config)
    assert summary.finished(tmp_path, config.steps) == {"metric": "error", **whole}
    write_json(tmp_path / "summary.json", whole | change if change else {"step": 640})
    trial = Trial("lsgd", (), 0, "test", config)
    readers = (
        lambda: summary.finished(tmp_path, config.steps),
        lambda: finished(trial, ERROR),
        lambda: figures.read_runs(tmp_path),
    )
    for read in readers:
        with pytest.raises(InputError, match=f"^{tmp_path / 'summary.json'} is .*{re.escape(told)}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_center_whose_arrays_are_gone_is_told_in_one_line(tmp_path: Path) -> None:
    how = {"mean": [0.5], "std": [0.2], "crop": None, "flip": False}
    (tmp_path / "center" / "arrays").mkdir(parents=True)
    model = {"model": "mlp", "input_shape": [8, 8, 1], "classes": 10, "preprocessing": how}
    write_json(tmp_path / "center" / "model.json", model)
    with pytest.raises(InputError, match=r"cannot load .*/center \(.+ go on with resume, which saves") as caught:
        load_center(tmp_path)
    assert "\n" not in str(caught.value)
    for name, value in {"classes": "10", "input_shape": 8, "preprocessing": how | {"mean": 0.5}}.items():
        write_json(tmp_path / "center" / "model.json", model | {name: value})
        with pytest.raises(InputError, match=rf"cannot load .*/center \((mean|{name}) is .*, which is no"):
            load_center(tmp_path)


def test_a_folder_where_settings_should_be_is_told_by_all_who_would_read_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert is_started(tmp_path)
    with pytest.raises(InputError, match=r"config.json cannot be read \(Is a directory\): use a new --workdir, or"):
        load_config(str(tmp_path), {}, resume=True)


def test_a_center_of_another_version_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "center").mkdir()
    write_json(tmp_path / "center" / "model.json", {"model": "mlp"})
    with pytest.raises(
        InputError, match=r"cannot load .*center \(input_shape is missing\): if it is damaged, or of an"
    ):
        load_center(tmp_path)


def test_a_run_without_its_last_evaluation_is_not_judged_by_the_one_before(tmp_path: Path) -> None:
    config = Config(str(tmp_path))
    leave(config)
    (tmp_path / "metrics.jsonl").write_text(
        (tmp_path / "metrics.jsonl").read_text().replace("640", "320") + '{"step": 6'
    )
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged .* trains this run again"):
        finished(Trial("lsgd", (), 0, "test", config), ERROR)


# Settings as somebody may have left them, and what is wrong with them.
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a number as text": ({"workdir": "x", "steps": "640"}, 'steps is "640", which is no int'),
    "a number that is missing": ({"workdir": "x", "learning_rate": None}, "learning_rate is null, which is no float"),
    "a switch for a number": ({"workdir": "x", "groups": True}, "groups is true, which is no int"),
    "a number for a switch": ({"workdir": "x", "download": 1}, "download is 1, which is no bool"),
    "a fraction": ({"workdir": "x", "batch_size": 1.5}, "batch_size is 1.5, which is no int | None"),
    "a list": ({"workdir": "x", "model": ["mlp"]}, 'model is ["mlp"], which is no str | None'),
    "no workdir": ({"steps": 3}, "workdir is missing"),
    "of a newer version": (
        {"workdir": "x", "warp": 9},
        "of another version of lsgd_jax (it has an unknown field 'warp')",
    ),
}


@pytest.mark.parametrize(("saved", "told"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_are_told_with_their_file(tmp_path: Path, saved: dict[str, Any], told: str) -> None:
    write_json(tmp_path / "config.json", saved)
    with pytest.raises(InputError) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} is ")
    assert told in str(caught.value)
    assert str(caught.value).endswith(": use a new --workdir, or restore it")


@pytest.mark.parametrize(
    ("saved", "told"),
    [({"steps": -4}, "--steps=-4: must be at least 1"), ({"algorithm": "magic"}, "--algorithm=magic"),
     ({"schedule": "drop"}, "--drop_at"), ({"momentum": 2}, "--momentum=2")],
)  # fmt: skip
def test_a_saved_setting_that_cannot_be_is_blamed_on_its_file_and_a_given_one_on_its_flag(
    tmp_path: Path, saved: dict[str, Any], told: str
) -> None:
    write_json(tmp_path / "config.json", {"workdir": "x"} | saved)
    with pytest.raises(InputError) as caught:
        load_config(str(tmp_path), {"model": "mlp"}, resume=True)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} is damaged (")
    assert told in str(caught.value)
    assert str(caught.value).endswith("): use a new --workdir, or restore it")
    write_json(tmp_path / "config.json", {"workdir": "x"})
    assert load_config(str(tmp_path), saved, resume=True).workdir == str(tmp_path), "told when it is checked"


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
