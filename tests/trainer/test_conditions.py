"""What has to be the same when a run goes on: its data, and how products are computed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from made_up_runs import a_plan, leave
from prepared_sets import examples, labelled, write_imagenet, write_set
from refusals import refusal

from lsgd_jax.cluster import processes
from lsgd_jax.config.checks import check_settings
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source
from lsgd_jax.config.reload import reload_run
from lsgd_jax.config.train import train
from lsgd_jax.data.datasets import Source, find_dataset
from lsgd_jax.data.fingerprint import digest_of, once
from lsgd_jax.data.images import Images
from lsgd_jax.data.streamed import StreamedSource
from lsgd_jax.trainer.conditions import FILE, agreed_conditions, conditions_of, read_conditions, write_conditions

RUN: dict[str, Any] = {"algorithm": "none", "model": "mlp", "groups": 1, "workers": 2, "batch_size": 4, "steps": 2}


def begun(config: Config) -> Path:
    """The folder of a run that has been started with these settings."""
    workdir = Path(config.workdir)
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    write_conditions(workdir, conditions_of(find_source(config)))
    return workdir


def resumed(config: Config) -> None:
    check_settings(config, Path(config.workdir), resume=True)


def text_run(tmp_path: Path) -> tuple[Path, Config]:
    """A text, and a run on it that has been started."""
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be " * 100)
    config = Config(str(tmp_path / "run"), **RUN | {"model": "lstm", "sequence_length": 8}, text_file=str(text))
    begun(config)
    return text, config


def test_a_run_goes_on_with_its_text_wherever_that_is_and_with_no_other(tmp_path: Path) -> None:
    text, config = text_run(tmp_path)
    moved = tmp_path / "elsewhere" / "hamlet.txt"
    moved.parent.mkdir()
    text.rename(moved)
    resumed(dataclasses.replace(config, text_file=str(moved)))
    other = tmp_path / "other.txt"
    other.write_text(moved.read_text().replace("not", "Not", 1))
    with refusal("'other.txt' is not the data set", config.workdir, "('text.txt')", "new --workdir"):
        resumed(dataclasses.replace(config, text_file=str(other)))
    shutil.copy(other, text)
    with refusal("'text.txt' is not", "'text.txt' as it was then", "--text_file"):
        resumed(config)


def test_a_run_goes_on_with_its_tfds_set_and_with_no_other(tmp_path: Path) -> None:
    splits = {"train": labelled(*range(20)), "test": labelled(20, 21)}
    config = Config(str(tmp_path / "run"), **RUN, dataset="tiny", data_dir=write_set(tmp_path / "a", splits))
    begun(config)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    resumed(dataclasses.replace(config, data_dir=str(tmp_path / "b")))
    splits["train"][7]["label"] = 3 - splits["train"][7]["label"]
    other = write_set(tmp_path / "c", splits)
    with refusal("'tiny'", "as it was then", "--data_dir"):
        resumed(dataclasses.replace(config, data_dir=other))


def test_a_streamed_set_is_known_by_some_of_its_images(tmp_path: Path) -> None:
    def digest(name: str, *numbers: int) -> str:
        source = find_dataset("tiny", data_dir=write_imagenet(tmp_path / name, examples(*numbers)))
        assert isinstance(source, StreamedSource)
        return source.digest

    first = digest("a", *range(20))
    assert digest("b", *range(20)) == first
    assert digest("c", *range(19)) != first
    assert digest("d", *range(19), 21) != first


def test_arrays_are_known_by_shape_type_and_content() -> None:
    def digest(*arrays: Any) -> str:
        return digest_of(lambda: arrays)

    zeros = np.zeros((2, 3), np.int32)
    assert digest(zeros) == digest(zeros.copy()) == digest(np.asfortranarray(zeros))
    others = [zeros.reshape(3, 2), zeros.astype(np.float32), zeros + 1]
    assert len({digest(array) for array in [zeros, *others]}) == 4
    assert digest(zeros, zeros) != digest(zeros)


def test_data_that_are_read_once_keep_what_they_are_known_by(tmp_path: Path) -> None:
    text, config = text_run(tmp_path)
    read = find_source(config).read
    assert digest_of(once(read)) == digest_of(read)
    kept = once(read)
    first = kept()
    text.unlink()
    assert kept() is first


def own(seed: int = 0) -> Source:
    """A set of one's own, of the shape of digits."""
    rng = np.random.default_rng(seed)
    images = Images(rng.integers(0, 17, (60, 8, 8, 1), dtype=np.uint8), rng.integers(0, 10, 60).astype(np.int32))
    return Source("mine", (8, 8, 1), 10, 60, None, False, lambda: (images, images))


@pytest.mark.slow
def test_a_run_on_data_of_ones_own_does_not_go_on_with_others(tmp_path: Path) -> None:
    config = Config(str(tmp_path / "run"), **RUN)
    assert train(config, source=own(), figures=False)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    longer = dataclasses.replace(config, steps=4)
    for source, name in ((None, "'digits'"), (own(1), "'mine'"), (dataclasses.replace(own(1), name="digits"), "")):
        with refusal(name, "'mine'", "the data that it had"):
            train(longer, source=source, resume=True)
    with refusal("'digits'", "'mine'"):
        reload_run(tmp_path / "run")
    with (
        jax.default_matmul_precision("highest"),
        refusal("JAX_DEFAULT_MATMUL_PRECISION is highest", "began with unset"),
    ):
        train(longer, source=own(), resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")} == before
    (tmp_path / "run" / FILE).unlink()  # as older versions leave it
    summary = train(longer, source=own(), resume=True, figures=False)
    assert summary is not None
    assert summary["step"] == 4
    assert read_conditions(tmp_path / "run") == conditions_of(own())


def test_of_an_old_run_the_name_of_its_text_counts_and_that_its_data_are_not_known_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, config = text_run(tmp_path)
    (Path(config.workdir) / FILE).unlink()
    other = shutil.copy(text, tmp_path / "other.txt")
    with refusal("'other.txt' is not the data set that", config.workdir, "('text.txt')", "--text_file"):
        resumed(dataclasses.replace(config, text_file=str(other)))
    assert capsys.readouterr().out == ""
    (tmp_path / "moved").mkdir()
    moved = shutil.move(text, tmp_path / "moved")
    resumed(dataclasses.replace(config, text_file=str(moved)))
    told = capsys.readouterr().out
    assert told.startswith(f"note: what data the run in {config.workdir} began with is not known (it has no {FILE}")
    assert "going on with 'text.txt'" in told
    assert told.count("\n") == 1


def test_a_comparison_tells_once_that_the_data_of_its_runs_are_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = a_plan(tmp_path).search()
    for trial in (first, second):
        leave(trial.config)
    a_plan(tmp_path)
    told = capsys.readouterr().out
    assert told.startswith(f"note: what data the run in {first.workdir} began with is not known")
    assert told.endswith("; likewise for 1 more\n")


@pytest.mark.parametrize(
    "changed", [{"digest": None}, {"digest": 5}, {"data": ["text.txt"]}, {"matmul_precision": 3}, {"warp": 9}]
)
def test_conditions_that_are_json_but_of_other_types_are_told(tmp_path: Path, changed: dict[str, Any]) -> None:
    _, config = text_run(tmp_path)
    path = Path(config.workdir) / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with refusal(f"{path} is damaged", next(iter(changed)), "remove it"):
        resumed(config)


def test_conditions_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    _, config = text_run(tmp_path)
    (Path(config.workdir) / FILE).write_text('{"data": ')
    with refusal(f"{config.workdir}/{FILE} is damaged", "remove it"):
        resumed(config)


def test_processes_with_other_data_than_the_first_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    of_main = conditions_of(own())
    monkeypatch.setattr(processes, "from_main", lambda function: of_main._asdict())
    assert agreed_conditions(own()) == of_main
    with refusal("'mine' is not the data set that process 0 has", "give all processes the same files"):
        agreed_conditions(own(1))


def test_a_comparison_does_not_mix_runs_on_different_data(tmp_path: Path) -> None:
    trial = a_plan(tmp_path).search()[0]
    workdir = Path(trial.config.workdir)
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(trial.config)))
    write_conditions(workdir, conditions_of(find_dataset("digits")))
    a_plan(tmp_path)
    write_conditions(workdir, conditions_of(own()))
    with refusal(str(workdir), "'digits' is not", "'mine'"):
        a_plan(tmp_path)
