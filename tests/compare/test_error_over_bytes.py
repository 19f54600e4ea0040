"""The experiment on errors over bytes: each way of sending beside the methods in full."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import error_over_bytes as script
import pytest
from absl.testing import flagsaver
from made_up_runs import leave

from lsgd_jax.compare import running
from lsgd_jax.config.config import Config

FLAGS = [
    "--dataset=digits", "--model=mlp", "--sampling=iid", "--batch_size=16", "--steps=8", "--eval_every=8",
    "--groups=1", "--workers=2", "--global_period=4",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The script has flags of its own."""
    saved = flagsaver.save_flag_values(script.FLAGS)
    yield
    flagsaver.restore_flag_values(saved, script.FLAGS)


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The settings of the runs, in place of which stands what they leave: here 32 bits a parameter, or fewer."""
    configs = []

    def train(config: Config, **_: Any) -> dict[str, Any]:
        configs.append(config)
        times = config.steps // (1 if config.algorithm == "data_parallel" else config.global_period)
        return leave(config, sent=100 * (config.compress or 32) * times)

    monkeypatch.setattr(running, "train", train)
    return configs


@pytest.mark.thorough
def test_each_way_of_sending_stands_beside_the_method_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[Config]
) -> None:
    monkeypatch.setattr(script, "FEW_BITS", {script.FULL: {}, "4 bits": {"compress": 4}})
    monkeypatch.setattr(script, "SENT_LATE", ("4 bits",))
    arguments = ["error_over_bytes.py", *FLAGS, "--methods=lsgd,data_parallel", "--vary=learning_rate=0.02,0.1",
                 f"--workdir={tmp_path}"]  # fmt: skip
    assert script.main(arguments) == 0
    with (tmp_path / "error_over_bytes.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["method"], row["sent_as"], int(row["seed"])) for row in rows]
    full = [(method, script.FULL) for method in ("lsgd", "data_parallel")]
    few = [("lsgd", "4 bits"), ("lsgd", "4 bits" + script.LATE)]
    assert sorted(found) == sorted((*pair, seed) for pair in (*full, *few) for seed in (1, 2, 3))
    settings = {row["setting"] for row in rows if row["method"] == "lsgd"}
    assert len(settings) == 1, "what has been chosen in full is kept"
    fewer = {row["sent_as"]: float(row["times_fewer"]) for row in rows if row["method"] == "lsgd"}
    assert fewer == {script.FULL: 4, "4 bits": 32, "4 bits" + script.LATE: 32}
    ways = {(c.algorithm, c.compress, c.fragments, c.overlap) for c in trained}
    in_full, late = (None, 1, None), (4, script.PARTS, 2)
    assert ways == {("data_parallel", *in_full), ("lsgd", *in_full), ("lsgd", 4, 1, None), ("lsgd", *late)}
    assert "| lsgd | 4 bits |" in (tmp_path / "error_over_bytes.md").read_text()
    assert (tmp_path / "error_over_bytes.png").stat().st_size > 1000

    script.FLAGS.vary = []
    trained.clear()
    assert script.main(arguments) == 0
    assert not trained, "nothing is run again"


def test_settings_can_be_chosen_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FEW_BITS", {script.FULL: {}, "4 bits": {"compress": 4}})
    monkeypatch.setattr(script, "SENT_LATE", ())
    arguments = ["error_over_bytes.py", *FLAGS, "--methods=lsgd,data_parallel", "--vary=lsgd.global_pull=0.1,0.5",
                 "--vary=data_parallel.learning_rate=0.02,0.1", "--choose_for_each",
                 f"--workdir={tmp_path}"]  # fmt: skip
    assert script.main(arguments) == 0
    for way in ("32_bits", "4_bits"):
        tried = {path.name for path in (tmp_path / way / "runs/lsgd").glob("*") if (path / "seed=0").exists()}
        assert tried == {"global_pull=0.1", "global_pull=0.5"}, "each way has a search of its own"
    assert not (tmp_path / "4_bits/runs/data_parallel").exists()


@pytest.mark.parametrize(
    ("flag", "told"),
    [("--methods=lsgd", "--methods=lsgd: name data_parallel"), ("--compress=4", "--compress: the ways of sending are")],
)
def test_what_makes_no_sense_is_told(flag: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["error_over_bytes.py", *FLAGS, flag, f"--workdir={tmp_path}"]) == 2
    assert told in capsys.readouterr().err
