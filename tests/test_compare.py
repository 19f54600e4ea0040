"""The comparison: what it runs, what it chooses by, that it goes on, and what it refuses."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comparison.grid import choose, make_trial, read_variations, settings_of
from comparison.plan import Plan, make_plan
from comparison.running import DIVERGED, Pace, StoppedError, compare, forecast, measure_pace, run
from comparison.trials import Outcome, Trial
from settings import given_settings

import compare as script  # isort: skip
from comparison import running

from lsgd_jax.training.config import Config
from lsgd_jax.training.errors import AllWorkersLostError, InputError
from lsgd_jax.training.methods import METHODS

BASE = Config(workdir="w", groups=2, workers=3, steps=40, batch_size=8, warmup_steps=5)


def a_plan(workdir: Path, **changes: Any) -> Plan:
    """Two methods, one of them with two settings, on an mlp and digits."""
    given = {"workdir": str(workdir), "model": "mlp", "groups": 1, "workers": 2, "steps": 8, "batch_size": 8}
    options: dict[str, Any] = {
        "methods": ["lsgd", "sgd"],
        "vary": ["lsgd.learning_rate=0.01,0.02"],
        "search_seeds": ["0"],
        "test_seeds": ["1", "2", "3"],
        "network": "1 Gb/s Ethernet",
        "compute_seconds": None,
    }
    return make_plan(given | {"global_period": 4, "eval_every": 4}, **options | changes)


def outcome_of(trial: Trial, center: float, leader: float = 1.0, test: float = 0.5) -> Outcome:
    """An outcome whose last evaluation has these validation errors."""
    row = {"step": trial.config.steps, "validation_error": center, "leader_validation_error": leader}
    return Outcome(trial, [row | {"test_error": test, "leader_test_error": test}], {"step": trial.config.steps})


def test_what_varies_for_all_and_for_one_method_makes_a_grid() -> None:
    variations = read_variations(["learning_rate=0.1,0.2", "global_period=16,64", "easgd.beta=0.5,0.9"])
    assert settings_of("easgd", BASE, variations) == [
        (("learning_rate", rate), ("global_period", period), ("beta", beta))
        for rate in (0.1, 0.2)
        for period in (16, 64)
        for beta in (0.5, 0.9)
    ]
    # A method is not run again for what it does not read.
    assert settings_of("data_parallel", BASE, variations) == [(("learning_rate", rate),) for rate in (0.1, 0.2)]
    assert len(settings_of("diloco", BASE, variations)) == 4


def test_a_methods_own_values_take_the_place_of_those_of_all() -> None:
    variations = read_variations(["learning_rate=0.1,0.2", "downpour.learning_rate=0.01", "downpour.global_period=1"])
    assert settings_of("downpour", BASE, variations) == [(("learning_rate", 0.01), ("global_period", 1))]


def test_every_run_sees_as_many_samples_and_sgd_has_one_worker() -> None:
    trials = [make_trial(method, (), 1, "test", BASE) for method in METHODS]
    seen = {t.method: t.config.steps * t.config.groups * t.config.workers for t in trials}
    assert set(seen.values()) == {40 * 6}
    alone = next(t.config for t in trials if t.method == "sgd")
    assert (alone.groups, alone.workers, alone.steps, alone.warmup_steps) == (1, 1, 240, 30)
    assert alone.evaluation_period == 6 * BASE.evaluation_period
    assert len({t.config.workdir for t in trials}) == len(trials)


def test_a_run_of_the_search_is_evaluated_at_its_end_alone() -> None:
    assert make_trial("easgd", (), 0, "search", BASE).config.evaluation_period == 40
    assert make_trial("sgd", (), 0, "search", BASE).config.evaluation_period == 240
    assert make_trial("easgd", (), 0, "test", BASE).config.evaluation_period == BASE.evaluation_period


def test_settings_are_chosen_by_the_mean_validation_error_of_the_better_of_center_and_leader() -> None:
    rates = [(("learning_rate", rate),) for rate in (0.1, 0.2, 0.3)]
    # (center, leader) of the seeds 0 and 1; the test errors would choose otherwise.
    errors = {rates[0]: [(0.3, 0.5), (0.5, 0.6)], rates[1]: [(0.9, 0.2), (0.4, 0.5)], rates[2]: [(0.1, 1), (0.9, 0.8)]}
    outcomes = [
        outcome_of(make_trial("lsgd", rate, seed, "search", BASE), *errors[rate][seed], test=1 - i / 10)
        for i, rate in enumerate(rates)
        for seed in (0, 1)
    ]
    assert choose({"lsgd": rates, "none": [()]}, outcomes) == {"lsgd": rates[1], "none": ()}


def test_a_method_that_diverged_with_every_setting_is_not_chosen() -> None:
    rates = [(("learning_rate", rate),) for rate in (0.1, 0.2)]
    outcomes = [Outcome(make_trial("lsgd", rate, 0, "search", BASE), [], None) for rate in rates]
    assert choose({"lsgd": rates}, outcomes) == {}
    assert choose({"lsgd": rates}, outcomes[:1]) == {}, "the search is not over"
    better = outcome_of(outcomes[1].trial, 0.9)
    assert choose({"lsgd": rates}, [better]) == {}
    assert choose({"lsgd": rates}, [outcomes[0], better]) == {"lsgd": rates[1]}


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        ("learning_rate", "write flag=value"),
        ("learning_rate=", "write flag=value"),
        ("learning_rate=fast", "fast"),
        ("lerning_rate=0.1", "'lerning_rate'"),
        ("lsdg.learning_rate=0.1", "unknown method 'lsdg'"),
        ("seed=1,2", "'seed'"),
        ("steps=10,20", "'steps'"),
        ("scale_learning_rate=true", "'scale_learning_rate'"),
        ("easgd.beta=0.5", "easgd is not among --methods"),
        ("lsgd.beta=0.5", "lsgd does not use it"),
        ("lsgd.local_pull=0.5", "lsgd does not use it here"),
        ("learning_rate=-1", "--learning_rate=-1.0"),
        ("global_pull=2", "--global_pull=2.0"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path: Path, vary: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        a_plan(tmp_path, vary=[vary])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods": ["lsgd", "adam"]}, "unknown method 'adam'"),
        ({"methods": []}, "--methods is empty"),
        ({"test_seeds": ["1", "2"]}, "at least 3"),
        ({"test_seeds": ["1", "2", "2"]}, "at least 3"),
        ({"test_seeds": ["0", "1", "2"]}, "none of them among --search_seeds"),
        ({"search_seeds": ["one"]}, "--search_seeds=one"),
        ({"search_seeds": ["-1"]}, "--search_seeds=-1"),
        ({"network": "tin cans"}, "--network=tin cans"),
        ({"compute_seconds": 0.0}, "--compute_seconds=0.0"),
        ({"vary": ["learning_rate=0.1", "learning_rate=0.2"]}, "varied twice"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        a_plan(tmp_path, **changes)


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.FLAGS.unparse_flags()
    code = script.main(["compare.py", f"--workdir={tmp_path / 'new'}", "--methods=lsgd", "--vary=momentun=0.5"])
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'momentun'" in err
    assert list(tmp_path.iterdir()) == []


def made_up(config: Config, *, resume: bool, source: Any) -> dict[str, Any]:
    """In place of `train`: leaves what a run leaves, without training."""
    del resume, source
    errors = {"validation_error": 0.3, "test_error": 0.3, "leader_validation_error": 0.4, "leader_test_error": 0.4}
    row = {"step": config.steps, "seconds": 1.0, "bytes_communicated": 100, **errors}
    workdir = Path(config.workdir)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    summary = row | {"model": "mlp", "parameters": 10, "batch_size": config.batch_size, "device": "1 × cpu", "jax": "0"}
    (workdir / "summary.json").write_text(json.dumps(summary))
    return summary


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of made-up runs."""
    workdir = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "train", made_up)
        compare(a_plan(workdir), ["python experiments/compare.py"])
    return workdir


def test_a_comparison_leaves_runs_and_a_report(done: Path) -> None:
    runs = sorted(str(path.parent.relative_to(done / "runs")) for path in done.rglob("summary.json"))
    tested = {run for run in runs if not run.endswith("seed=0")}
    assert [run for run in runs if run.endswith("seed=0")] == [f"lsgd/learning_rate=0.0{i}/seed=0" for i in (1, 2)]
    assert {run for run in tested if run.startswith("sgd")} == {f"sgd/as_given/seed={seed}" for seed in (1, 2, 3)}
    assert len({run.rpartition("/")[0] for run in tested}) == 2, "the chosen setting of each method"
    assert not list(done.rglob("checkpoints"))
    assert {"report.md", "runs.csv", "curves.csv", "curves.png"} <= {path.name for path in done.iterdir()}


def test_a_finished_run_is_never_run_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "train", lambda *args, **kwargs: pytest.fail("it has been run already"))
    before = {path: path.stat().st_mtime_ns for path in (done / "runs").rglob("*")}
    compare(a_plan(done), ["python experiments/compare.py"])
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

    def train(config: Config, *, resume: bool, source: Any) -> Any:
        resumed.append(resume)
        summary = made_up(config, resume=resume, source=source)
        if len(resumed) == 1:  # as if a signal had come
            Path(config.workdir, "summary.json").unlink()
            return None
        return summary

    monkeypatch.setattr(running, "train", train)
    with pytest.raises(StoppedError):
        run(stopped, plan.source, "")
    assert (Path(stopped.config.workdir) / "checkpoints").exists()
    assert run(stopped, plan.source, "").summary is not None
    assert run(unborn, plan.source, "").summary is not None
    assert resumed == [False, True, False]


def test_a_run_that_diverged_is_written_down_and_never_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = a_plan(tmp_path)
    trial, _ = plan.search()

    def train(config: Config, **_: Any) -> None:
        Path(config.workdir).mkdir(parents=True)
        raise AllWorkersLostError("all workers were lost")

    monkeypatch.setattr(running, "train", train)
    assert run(trial, plan.source, "").summary is None
    assert json.loads((Path(trial.config.workdir) / DIVERGED).read_text()) == {"reason": "all workers were lost"}
    monkeypatch.setattr(running, "train", lambda *args, **kwargs: pytest.fail("it has been run already"))
    assert run(trial, plan.source, "").summary is None


@pytest.fixture
def _paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "measure_pace", lambda config, source: Pace(start=60.0, sample=0.0, evaluation=0.0))


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


def test_the_pace_of_this_machine_is_measured(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, methods=["sgd"], vary=["learning_rate=0.01,0.02"])
    assert all(seconds > 0 for seconds in measure_pace(plan.search()[0].config, plan.source))


@pytest.mark.parametrize(("name", "settings"), [("digits", 2), ("cifar10_cnn7_4_workers", 2)])
def test_the_flagfiles_give_every_method_as_many_settings(name: str, settings: int) -> None:
    flagfile = Path(script.__file__).parent / "flagfiles" / f"{name}.flags"
    script.FLAGS.unparse_flags()
    script.FLAGS(["compare.py", f"--flagfile={flagfile}"])
    base = Config(workdir="w", **given_settings(script.FLAGS))
    variations = read_variations(script.FLAGS.vary)
    assert {len(settings_of(method, base, variations)) for method in script.FLAGS.methods} == {settings}
    assert set(script.FLAGS.methods) == set(METHODS)


def test_a_signal_stops_the_comparison_and_leaves_it_to_be_continued(tmp_path: Path) -> None:
    command = [
        *(sys.executable, script.__file__, f"--workdir={tmp_path}", "--methods=none", "--model=mlp"),
        *("--groups=1", "--workers=2", "--batch_size=8", "--steps=20000", "--eval_every=20000"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("compiling" in line for line in iter(process.stdout.readline, ""))
        while process.poll() is None and not list(tmp_path.rglob("metrics.jsonl")):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.rstrip().endswith("compare.py: stopped; the same command goes on from here")
    (run_folder,) = tmp_path.glob("runs/none/as_given/seed=1")
    assert (run_folder / "config.json").exists()
    assert not (run_folder / "summary.json").exists()
