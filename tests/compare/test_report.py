"""The report of a comparison: its figures against those worked out by hand, and what must stand nowhere in it."""

import csv
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from absl.testing import flagsaver
from made_up_runs import (
    CHOSEN,
    COMPUTE,
    LSGD,
    NETWORK,
    PARALLEL,
    STEPS,
    Figures,
    cells,
    comparison,
    falling,
    methods,
    outcome,
)
from matplotlib.axes import Axes as Panel

from lsgd_jax import train
from lsgd_jax.commands.settings import given_settings
from lsgd_jax.compare import figures, palette, report
from lsgd_jax.compare.evaluations import final_validation_error
from lsgd_jax.compare.figures import levels, sensitivity
from lsgd_jax.compare.tables import (
    at_the_edge,
    main_table,
)
from lsgd_jax.compare.trials import TrialOutcome
from lsgd_jax.config.checks import load_config
from lsgd_jax.config.config import Config
from lsgd_jax.config.methods import METHODS


def write(workdir: Path, outcomes: Sequence[TrialOutcome], chosen: dict[str, Any] = CHOSEN) -> dict[str, str]:
    """The texts and pictures of a report, by the names of their files."""
    workdir.mkdir(exist_ok=True)
    commands = ["python experiments/compare.py --workdir=runs/comparison"]
    paths = report.write_report(workdir, outcomes, chosen, network=NETWORK, compute_seconds=COMPUTE, commands=commands)
    assert sorted(paths) == sorted(workdir.iterdir())
    return {path.name: path.read_bytes().decode("latin-1" if path.suffix == ".png" else "utf-8") for path in paths}


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write(tmp_path_factory.mktemp("report") / "whole", comparison())


@pytest.mark.slow
def test_the_report_has_its_tables_figures_and_facts(written: dict[str, str]) -> None:
    figures = {"curves.png", "learning_rate.png", "period.png"}
    assert written.keys() == {"report.md", "runs.csv", "curves.csv"} | figures
    text = written["report.md"]
    assert all(f"]({figure})" in text for figure in figures)
    for told in ("data set digits; model cnn3 (53,002 parameters); 2 × 4 workers", "16,384 samples a run",
                 "batches of 32 samples", "device 8 × cpu; commit unknown", "; jax 0.12.0.1;", "search seeds (0, 1)",
                 "test seeds (100, 101, 102)", "--workdir=runs/comparison"):  # fmt: skip
        assert told in text
    assert "Not complete" not in text
    assert "diverged)" not in text
    assert "Chosen at the edge of the grid: lsgd (global_period 16), data_parallel (learning_rate 0.05)." in text


def test_the_main_table_has_mean_and_sample_deviation_over_the_test_seeds(written: dict[str, str]) -> None:
    table = main_table(list(methods(comparison()).values()))
    assert table in written["report.md"]
    name, setting, validation, test, deployed, center, leader, sent, _, _ = cells(table, "lsgd")
    assert (name, setting) == ("lsgd", "learning_rate 0.05, global_period 16")
    assert (validation, test, center, leader) == ("3.00 ± 1.00", "3.00 ± 1.00", "3.00 ± 1.00", "6.00 ± 2.00")
    assert (deployed, sent) == ("center", "4")
    assert cells(table, "data_parallel")[3] == "1.00 ± 0.00"
    assert table.index("data_parallel") < table.index("lsgd"), "the lowest test error comes first"


def test_predicted_time_is_that_of_steps_and_messages() -> None:
    end = methods(comparison())["data_parallel"].test[0].end
    parameters = 3 * 3 * 32 + 32 + 3 * 3 * 32 * 64 + 64 + 2 * 2 * 64 * 128 + 128 + 128 * 10 + 10
    message = 14 * 100e-6 + 14 / 8 * 4 * parameters / 125e6  # an all-reduce of 8 workers over 1 Gb/s
    assert end.predicted_seconds == pytest.approx(STEPS * (COMPUTE + message))
    assert (end.step, end.samples, end.bytes) == (64, 64 * 32 * 8, 12 * 10**6)


def test_one_worker_is_as_far_in_samples_after_as_many_times_the_steps() -> None:
    varied = (("learning_rate", 0.05),)
    alone = outcome("sgd", varied, 100, "test", falling(0.02), groups=1, workers=1, steps=512, eval_every=128)
    run = methods([alone, *comparison()])["sgd"].test[0]
    assert (run.end.step, run.end.samples, run.end.bytes) == (512, 16_384, 0)
    assert run.end.predicted_seconds == pytest.approx(512 * COMPUTE)


@pytest.mark.parametrize(
    ("figures", "deployed", "test"),
    [
        ((0.05, 0.10, 0.04, 0.20), "leader", 0.20),  # though its test error is the higher one
        ((0.04, 0.20, 0.05, 0.10), "center", 0.20),
        ((0.04, 0.20, 0.04, 0.10), "center", 0.20),
        ((None, 0.10, 0.9, 0.20), "leader", 0.20),
        ((0.05, None, 0.06, 0.20), "center", 1.0),
        ((None, 0.10, None, 0.20), "center", 0.10),
    ],
)
def test_validation_alone_decides_which_model_is_deployed(figures: Figures, deployed: str, test: float) -> None:
    made = outcome("lsgd", LSGD, 100, "test", [*falling(0.1)[:3], figures], sent=1)
    end = methods([made])["lsgd"].test[0].end
    assert (end.deployed, end.test.deployed) == (deployed, test)
    known = [error for error in (figures[0], figures[2]) if error is not None]
    assert end.validation.deployed == final_validation_error(made) == min([*known, 1.0])


@pytest.mark.slow
def test_test_errors_of_the_search_change_nothing(tmp_path: Path) -> None:
    def searched(row: dict[str, Any], phase: str) -> dict[str, Any]:
        return {name: x for name, x in row.items() if phase == "test" or "test" not in name}

    made = comparison()
    without = [run._replace(curve=[searched(row, run.trial.phase) for row in run.curve]) for run in made]
    assert without != made
    assert write(tmp_path / "with", made) == write(tmp_path / "without", without)


def test_the_csv_files_have_every_run_and_evaluation_and_test_errors_of_test_runs_alone(
    written: dict[str, str],
) -> None:
    runs, curves = rows(written["runs.csv"]), rows(written["curves.csv"])
    assert (len(runs), len(curves)) == (22, 22 * 4)
    for row in runs + curves:
        shown = [value for name, value in row.items() if "test_error" in name]
        assert len(shown) == 3
        assert all(shown) if row["phase"] == "test" else not any(shown)
    first = runs[0]
    assert (first["method"], first["phase"], first["seed"]) == ("lsgd", "search", "0")
    assert (first["learning_rate"], first["global_period"], first["workers"]) == ("0.02", "16", "8")
    assert (first["step"], first["samples"], first["bytes"], first["seconds"]) == ("64", "16384", "4000000", "2")
    assert (first["center_validation_error"], first["leader_validation_error"]) == ("0.03", "0.06")
    assert {row["global_period"] for row in runs if row["method"] == "data_parallel"} == {""}
    assert [row["step"] for row in curves[:4]] == ["16", "32", "48", "64"]


def test_a_run_that_diverged_is_wrong_from_then_on() -> None:
    lost = outcome("lsgd", LSGD, 102, "test", falling(0.04)[:2], sent=10**6, diverged=True)
    outcomes = [made for made in comparison() if (made.trial.method, made.trial.seed) != ("lsgd", 102)]
    lsgd = methods([*outcomes, lost])["lsgd"]
    table = main_table([lsgd])
    assert cells(table, "lsgd")[3] == "35.00 ± 56.29 (1 of 3 diverged)"  # of 2, 3 and 100 %
    diverged = lsgd.test[2].evaluations
    assert [evaluation.step for evaluation in diverged] == [16, 32, 48, 64]
    assert [evaluation.test.deployed for evaluation in diverged] == pytest.approx([0.32, 0.16, 1, 1])
    assert [evaluation.diverged for evaluation in diverged] == [False, False, True, True]
    assert diverged[3].samples == lsgd.test[0].end.samples
    assert final_validation_error(lost) == 1.0
    assert [level.highest for level in levels(lsgd)] == pytest.approx([32, 16, 100, 100])
    assert levels(lsgd)[0].mean == pytest.approx(8 * (2 + 3 + 4) / 3)


@pytest.mark.slow
def test_a_comparison_in_which_all_runs_diverged_has_a_report(tmp_path: Path) -> None:
    lost = [outcome("lsgd", LSGD, seed, phase, [], diverged=True) for seed, phase in ((0, "search"), (9, "test"))]
    text = write(tmp_path / "lost", lost, {"lsgd": LSGD})["report.md"]
    assert "100.00 (1 of 1 diverged)" in text
    assert "1 of 1 (1 of 1 diverged)" in text


@pytest.mark.slow
def test_a_method_that_diverged_with_every_setting_is_not_said_to_be_missing(tmp_path: Path) -> None:
    lost = [outcome("dppf", (("learning_rate", rate),), 0, "search", [], diverged=True) for rate in (0.1, 0.2)]
    tested = [outcome("none", PARALLEL, 9, "test", falling(0.0))]
    text = write(tmp_path / "diverged", [*lost, *tested], {"none": PARALLEL, "dppf": None})["report.md"]
    assert "Not complete" not in text
    assert "**Diverged with every setting**, so without a test run: dppf." in text
    assert "| dppf | learning_rate 0.1, 0.2 | 2 of 2 (2 of 2 diverged) | none: all diverged |  | – |" in text
    text = write(tmp_path / "on the way", lost, {})["report.md"]
    assert "dppf has no chosen setting" in text
    assert "Diverged with every setting" not in text


@pytest.mark.slow
def test_a_report_on_the_way_says_what_is_missing(tmp_path: Path) -> None:
    whole = comparison()
    gone = {("lsgd", "search", 1), ("data_parallel", "test", 102)}
    part = [made for made in whole if (made.trial.method, made.trial.phase, made.trial.seed) not in gone]
    text = write(tmp_path / "part", part)["report.md"]
    assert "**Not complete**: lsgd has 6 of 12 search runs; data_parallel has 2 of 3 test runs." in text
    assert "| 6 of 12 |" in text
    assert "| 2 of 3 |" in text
    assert "1.00 ± 0.00" in text

    searching = [made for made in whole if made.trial.phase == "search"]
    files = write(tmp_path / "search", searching, {"data_parallel": PARALLEL})
    assert "lsgd has no chosen setting; data_parallel has no test run." in files["report.md"]
    assert "No test run is there yet." in files["report.md"]
    assert "curves.png" not in files
    assert {"learning_rate.png", "period.png"} < files.keys()


def test_one_method_alone_that_sends_nothing_has_a_report(tmp_path: Path) -> None:
    runs = [
        outcome("none", PARALLEL, seed, phase, falling(0.0), groups=1) for seed, phase in ((0, "search"), (9, "test"))
    ]
    files = write(tmp_path / "alone", runs, {"none": PARALLEL})
    assert files.keys() == {"report.md", "runs.csv", "curves.csv", "curves.png"}, "the grid varies nothing"
    assert "At equal bytes" not in files["report.md"]
    assert "All workers are one group" in files["report.md"]
    assert "| none | learning_rate 0.05 | 0.00 | 0.00 | center | 0.00 | 0.00 | 0 |" in files["report.md"]


def test_sensitivity_takes_the_best_of_the_other_flags_for_each_value() -> None:
    lsgd = methods(comparison())["lsgd"]
    assert sensitivity(lsgd, "learning_rate") == pytest.approx({0.02: 0.031, 0.05: 0.021, 0.1: 0.061})
    assert sensitivity(lsgd, "global_period") == pytest.approx({16: 0.021, 32: 0.0315})
    assert sensitivity(lsgd, "push") == {}
    assert at_the_edge([lsgd]) == ["lsgd (global_period 16)"]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"algorithm": "easgd", "beta": 0.5, "global_period": 4, "seed": 101},
        {"dataset": "cifar10", "data_dir": "/data/of mine", "download": True, "model": "cnn7", "groups": 1},
        {"algorithm": "data_parallel", "learning_rate": 1e-5, "scale_learning_rate": True, "warmup_steps": 3},
    ],
)
def test_the_command_of_a_setting_repeats_it(changed: dict[str, Any]) -> None:
    config = Config("runs/x", **changed)
    words = shlex.split(report.train_command(config))
    assert words[:3] == ["python", "-m", "lsgd_jax.train"]
    assert len(words) == 3 + len(changed) + (4 if "dataset" in changed else 0), "those that differ, or may"
    with flagsaver.flagsaver():
        train.FLAGS(words[2:])
        assert load_config("runs/x", given_settings(train.FLAGS) | {"workdir": "runs/x"}, resume=False) == config


def test_the_report_has_the_command_of_each_chosen_setting(written: dict[str, str]) -> None:
    commands = re.findall(r"^python -m lsgd_jax\.train .*", written["report.md"], re.MULTILINE)
    tested = {made.trial.method: made for made in reversed(comparison()) if made.trial.phase == "test"}
    assert commands == [report.train_command(tested[method].trial.config) for method in CHOSEN]


def test_the_report_tells_what_its_runs_were_computed_with(tmp_path: Path) -> None:
    known = [
        {"commit": "abc1234", "lsgd_jax": "0.1.0", "python": "3.13.0", "jax": "0.12.0.1", "device": "2 × cpu"},
        {"commit": "def5678+", "lsgd_jax": "0.1.0", "python": "3.11.9", "jax": "0.10.1", "device": "8 × cpu"},
        {"commit": None, "lsgd_jax": None, "jax": "0.10.1", "device": "8 × cpu"},
    ]
    made = [run._replace(summary=run.summary | known[i % 3]) for i, run in enumerate(comparison()) if run.summary]
    text = write(tmp_path / "report", made)["report.md"]
    assert "device 2 × cpu and 8 × cpu; commit abc1234 and def5678+ and unknown; lsgd_jax 0.1.0 and unknown;" in text
    assert "jax 0.10.1 and 0.12.0.1; optax unknown; numpy unknown; python 3.11.9 and 3.13.0 and unknown;" in text


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outcomes is empty"):
        write(tmp_path, [])
    with pytest.raises(ValueError, match="unknown network 'carrier pigeon'"):
        report.write_report(tmp_path, comparison(), CHOSEN, network="carrier pigeon", compute_seconds=1, commands=[])


@pytest.mark.slow
def test_methods_of_ones_own_are_in_every_table_figure_and_csv_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["mine.py:second", "mine.py:first"]
    for name in own:
        monkeypatch.setitem(METHODS, name, METHODS["easgd"])
    made = [outcome(name, PARALLEL, 0, "search", falling(0.2), sent=10**6) for name in own]
    for at in (1, 2):
        made += [outcome(name, PARALLEL, at, "test", falling(0.1 * at), sent=10**6) for name in own]
    files = write(tmp_path / "own", [*comparison(), *made], CHOSEN | dict.fromkeys(own, PARALLEL))
    text = files["report.md"]
    assert "# Comparison of lsgd, data_parallel, mine.py:first, mine.py:second" in text
    for name in own:
        assert text.count(f"\n| {name} |") == 4, "settings, and what is equal: samples, bytes, predicted time"
        assert f"python -m lsgd_jax.train --algorithm={name} " in text
        assert sum(row["method"] == name for row in rows(files["curves.csv"])) == 3 * 4
    plot, lines = Panel.plot, list[dict[str, Any]]()
    monkeypatch.setattr(Panel, "plot", lambda panel, *data, **style: (lines.append(style), plot(panel, *data, **style)))
    figures.draw_figures(tmp_path, list(methods([*comparison(), *made], CHOSEN).values()), NETWORK)
    drawn = {name: {(s["color"], s["marker"]) for s in lines if s.get("label") == name} for name in (*CHOSEN, *own)}
    assert [len(styles) for styles in drawn.values()] == [1] * 4, "the same in all figures"
    assert len(set.union(*drawn.values())) == 4, "told apart"


def test_every_method_is_drawn_in_a_way_of_its_own() -> None:
    own = [f"mine.py:m{i}" for i in range(28)]
    styles = {name: palette.style_of(name, own) for name in own}
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(own)
    assert not {style.marker for style in styles.values()} & {style.marker for style in palette.STYLES.values()}
    assert palette.style_of(own[5], reversed(own)) == styles[own[5]], "whatever their order"
    assert palette.STYLES.keys() == METHODS.keys()
    assert len(set(palette.STYLES.values())) == len(METHODS)
    assert len({style.marker for style in palette.STYLES.values()}) == len(METHODS), "told apart in grey"
