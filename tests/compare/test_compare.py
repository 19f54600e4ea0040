"""The comparison: what it runs, that it goes on, and how it stops."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import a_plan, leave

from lsgd_jax.cluster.stopping import StopRequest, stop_on_signals
from lsgd_jax.compare import command as script
from lsgd_jax.compare import running
from lsgd_jax.compare.plan import make_plan
from lsgd_jax.compare.running import DIVERGED, MeasuredPace, StoppedError, compare, forecast, measure_pace, run
from lsgd_jax.config.config import Config
from lsgd_jax.errors import AllWorkersLostError, ExitCode, InputError


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.FLAGS.unparse_flags()
    code = script.main(["compare.py", f"--workdir={tmp_path / 'new'}", "--methods=lsgd", "--vary=momentun=0.5"])
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'momentun'" in err
    assert list(tmp_path.iterdir()) == []


def made_up(config: Config, *, figures: bool, **_: Any) -> dict[str, Any]:
    """In place of `train`: leaves what a run leaves, without training."""
    assert not figures, "those of the report will do"
    Path(config.workdir, "checkpoints").mkdir(parents=True, exist_ok=True)
    return leave(config)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of made-up runs."""
    workdir = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "train", made_up)
        compare(a_plan(workdir), ["python experiments/compare.py"], StopRequest())
    return workdir


@pytest.mark.slow
def test_a_comparison_leaves_runs_and_a_report(done: Path) -> None:
    runs = sorted(str(path.parent.relative_to(done / "runs")) for path in done.rglob("summary.json"))
    tested = {run for run in runs if not run.endswith("seed=0")}
    assert [run for run in runs if run.endswith("seed=0")] == [f"lsgd/learning_rate=0.0{i}/seed=0" for i in (1, 2)]
    assert {run for run in tested if run.startswith("sgd")} == {f"sgd/as_given/seed={seed}" for seed in (1, 2, 3)}
    assert len({run.rpartition("/")[0] for run in tested}) == 2, "the chosen setting of each method"
    assert not list(done.rglob("checkpoints"))
    assert {"report.md", "runs.csv", "curves.csv", "curves.png"} <= {path.name for path in done.iterdir()}


def test_runs_of_the_search_may_be_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = a_plan(tmp_path, search_steps=2)
    monkeypatch.setattr(running, "train", made_up)
    compare(plan, ["python experiments/compare.py"], StopRequest())
    steps = {trial.config.steps for trial in plan.search()}
    assert (steps, {trial.config.eval_every for trial in plan.search()}) == ({2}, {2})
    chosen = {method: settings[0] for method, settings in plan.settings.items()}
    assert {(trial.method, trial.config.steps) for trial in plan.test(chosen)} == {("lsgd", 8), ("sgd", 16)}
    assert "Runs of the search took 25% of the samples of a test run.\n" in (tmp_path / "report.md").read_text()
    with pytest.raises(InputError, match=r"--search_steps=9: must be more than 0, and at most --steps=8"):
        a_plan(tmp_path, search_steps=9)


@pytest.mark.slow
def test_a_finished_run_is_never_run_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "train", lambda *args, **kwargs: pytest.fail("it has been run already"))
    before = {path: path.stat().st_mtime_ns for path in (done / "runs").rglob("*")}
    compare(a_plan(done), ["python experiments/compare.py"], StopRequest())
    assert before == {path: path.stat().st_mtime_ns for path in (done / "runs").rglob("*")}


def test_other_settings_in_the_same_folder_are_refused(done: Path) -> None:
    given = dataclasses.replace(a_plan(done).base, momentum=0.5)
    with pytest.raises(InputError, match=r"--momentum was 0.9, is 0.5.*use another --workdir"):
        make_plan(
            dataclasses.asdict(given), methods=["lsgd"], vary=["lsgd.learning_rate=0.01,0.02"], search_seeds=["0"],
            test_seeds=["1", "2", "3"], network="1 Gb/s Ethernet", compute_seconds=None,
        )  # fmt: skip


def test_a_run_that_was_stopped_goes_on_and_one_that_never_began_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = a_plan(tmp_path)
    stopped, unborn = plan.search()
    (Path(unborn.config.workdir) / "checkpoints").mkdir(parents=True)  # killed before it wrote its settings
    resumed = []

    def train(config: Config, *, resume: bool, **more: Any) -> Any:
        resumed.append(resume)
        summary = made_up(config, **more)
        if len(resumed) == 1:  # as if a signal had come
            Path(config.workdir, "summary.json").unlink()
            return None
        return summary

    monkeypatch.setattr(running, "train", train)
    with pytest.raises(StoppedError):
        run(stopped, plan.source, "", StopRequest())
    assert (Path(stopped.config.workdir) / "checkpoints").exists()
    assert run(stopped, plan.source, "", StopRequest()).summary is not None
    assert run(unborn, plan.source, "", StopRequest()).summary is not None
    assert resumed == [False, True, False]


@pytest.mark.parametrize("left", ["checkpoints/4/state", "summary.json", "metrics.jsonl", DIVERGED])
def test_what_a_run_has_left_is_refused_without_its_settings_and_nothing_of_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    trial = a_plan(tmp_path).search()[1]
    made_up(trial.config, figures=False)
    kept = trial.workdir / left
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.touch()
    (trial.workdir / "config.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(running, "train", lambda *args, **kwargs: pytest.fail("nobody knows with which settings"))
    with pytest.raises(InputError, match=f"{trial.workdir} holds .* no config.json: restore it, or move") as told:
        compare(a_plan(tmp_path), ["python experiments/compare.py"])
    assert "\n" not in str(told.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_settings_that_cannot_be_read_are_told_with_the_run_that_is_to_be_moved_away(tmp_path: Path) -> None:
    """Not with the advice to begin all of the comparison again."""
    trial = a_plan(tmp_path).search()[1]
    made_up(trial.config, figures=False)
    path = trial.workdir / "config.json"
    path.write_text("{")
    with pytest.raises(InputError, match=rf"{path} is damaged .* move {trial.workdir} away, and the same"):
        a_plan(tmp_path)


def test_a_run_that_diverged_is_written_down_and_never_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = a_plan(tmp_path)
    trial, _ = plan.search()

    def train(config: Config, **_: Any) -> None:
        Path(config.workdir).mkdir(parents=True)
        raise AllWorkersLostError("all workers were lost")

    monkeypatch.setattr(running, "train", train)
    assert run(trial, plan.source, "", StopRequest()).summary is None
    assert json.loads((Path(trial.config.workdir) / DIVERGED).read_text()) == {"reason": "all workers were lost"}
    monkeypatch.setattr(running, "train", lambda *args, **kwargs: pytest.fail("it has been run already"))
    assert run(trial, plan.source, "", StopRequest()).summary is None


def test_a_signal_at_the_very_end_of_a_run_stops_the_comparison_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def train(config: Config, **more: Any) -> Any:
        begun.append(config.workdir)
        summary = made_up(config, **more)
        signal.raise_signal(signal.SIGINT)  # nothing is left to be stopped
        return summary

    monkeypatch.setattr(running, "train", train)
    before = signal.getsignal(signal.SIGINT)
    for runs in (1, 2):
        with pytest.raises(StoppedError), stop_on_signals() as stop:
            compare(a_plan(tmp_path), ["python experiments/compare.py"], stop)
        assert len(begun) == len(set(begun)) == len(list(tmp_path.rglob("summary.json"))) == runs
        assert "**Not complete**" in (tmp_path / "report.md").read_text()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def _paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        running, "measure_pace", lambda config, source: MeasuredPace(start=60.0, sample=0.0, evaluation=0.0)
    )


@pytest.mark.usefixtures("_paced")
def test_a_forecast_lists_the_runs_and_adds_up_their_time(tmp_path: Path) -> None:
    told = forecast(a_plan(tmp_path))
    assert re.search(r"search +lsgd +2 settings: 2 of 2 runs to do", told)
    assert re.search(r"test +sgd +the chosen setting: 3 of 3 runs to do", told)
    assert "about 2.0 minutes of search and 6.0 minutes of test" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_paced")
def test_a_forecast_leaves_out_what_is_finished(done: Path) -> None:
    told = forecast(a_plan(done))
    assert "0 of 2 runs to do" in told
    assert "about 0.0 minutes of search and 0.0 minutes of test" in told


@pytest.mark.slow
def test_the_pace_of_this_machine_is_measured(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, methods=["sgd"], vary=["learning_rate=0.01,0.02"])
    assert all(seconds > 0 for seconds in measure_pace(plan.search()[0].config, plan.source))


@pytest.mark.slow
def test_a_signal_stops_the_comparison_and_leaves_it_to_be_continued(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "lsgd_jax.compare", f"--workdir={tmp_path}", "--methods=none", "--model=mlp"),
        *("--groups=1", "--workers=2", "--batch_size=8", "--steps=20000", "--eval_every=20000"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("compiling" in line for line in iter(process.stdout.readline, ""))
        while process.poll() is None and not list(tmp_path.rglob("metrics.jsonl")):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == ExitCode.STOPPED
    assert err.rstrip().endswith("lsgd_jax.compare: stopped; the same command goes on from here")
    (run_folder,) = tmp_path.glob("runs/none/as_given/seed=1")
    assert (run_folder / "config.json").exists()
    assert not (run_folder / "summary.json").exists()
