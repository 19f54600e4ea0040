"""Whole runs of the command line: what they leave behind, and how they stop and go on."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from copies import copied
from thorough import thorough

from lsgd_jax import load_center
from lsgd_jax.config.checks import check_settings, load_config
from lsgd_jax.config.config import Config
from lsgd_jax.config.train import train
from lsgd_jax.data.datasets import find_dataset, load_dataset
from lsgd_jax.errors import AllWorkersLostError, InputError
from lsgd_jax.tasks import classification
from lsgd_jax.trainer.provenance import provenance
from lsgd_jax.trainer.records import read_leaders, read_metrics

pytestmark = pytest.mark.processes

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "model": "mlp",
    "workers": 2,
    "batch_size": 16,
    "steps": 60,
    "local_period": 4,
    "global_period": 8,
    "stale_local_pull": 0.02,
    "eval_every": 10,
    "checkpoint_every": 12,
    "schedule": "cosine",
}
METRICS = {
    "step", "seconds", "bytes_communicated", "train_loss", "validation_loss", "validation_error", "test_loss",
    "test_error", "leader_validation_error", "leader_test_error",
}  # fmt: skip


def start(workdir: pathlib.Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "experiments/train.py", f"--workdir={workdir}", *more]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        "PYTHONUNBUFFERED": "1",
        # All these runs compile the same programs.
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def flags() -> list[str]:
    return [f"--{name}={value}" for name, value in SETTINGS.items()]


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def saved_state(workdir: pathlib.Path) -> list[np.ndarray]:
    """All arrays of the last checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / str(SETTINGS["steps"]) / "state").absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Bitwise the same parameters, metrics and leaders; only seconds may differ."""
    for ours, theirs in zip(saved_state(one), saved_state(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (one / "leaders.csv").read_bytes() == (other / "leaders.csv").read_bytes()
    rows = [[{**row, "seconds": None} for row in read_metrics(workdir)] for workdir in (one, other)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run from beginning to end."""
    workdir = tmp_path_factory.mktemp("run") / "undisturbed"
    code, output = finish(start(workdir, *flags(), f"--profile_dir={workdir.parent / 'profile'}"))
    assert code == 0, output
    assert re.search(r"center +\d+\.\d\d % +\d+\.\d\d %", output), output
    return workdir


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(undisturbed: pathlib.Path) -> None:
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert all(set(row) >= METRICS and 0 <= row["test_error"] <= 1 for row in rows)
    leaders = read_leaders(undisturbed)
    assert {row.step for row in leaders if row.level == "local"} == set(range(4, 61, 4))
    assert {row.step for row in leaders if row.level == "global"} == set(range(8, 61, 8))
    assert {row.leader // 2 == row.group for row in leaders if row.level == "local"} == {True}
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["test_error"] == rows[-1]["test_error"]
    assert len(summary["worker_test_error"]) == 4
    assert {name: summary[name] for name in provenance()} == provenance()
    for name in ("config.json", "checkpoints/60", "center", "figures/error.png", "figures/leaders.png"):
        assert (undisturbed / name).exists(), name
    assert list((undisturbed / "tensorboard").glob("events.*"))


def test_the_saved_center_is_the_one_that_was_evaluated(undisturbed: pathlib.Path) -> None:
    model, params = load_center(undisturbed)
    test = load_dataset(find_dataset("digits"), seed=0).test
    error = float((model(jnp.array(test.images)).argmax(-1) != test.labels).mean())
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert error == pytest.approx(summary["test_error"], abs=1e-6)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == summary["parameters"]


def test_without_a_center_one_is_told_how_to_get_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="finish it with resume=True"):
        load_center(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals", [{signal.SIGTERM: 12}, thorough({signal.SIGTERM: 12, signal.SIGINT: 36})], ids=["one", "two"]
)
def test_a_signal_saves_and_a_resumed_run_is_bitwise_the_same(
    signals: dict[signal.Signals, int], undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    resumed, process = "", start(tmp_path / "run", *flags())
    for number, step in signals.items():
        wait_for(process, lambda step=step: (tmp_path / f"run/checkpoints/{step}").exists())
        process.send_signal(number)
        code, output = finish(process)
        assert code == 0, output
        stopped = int(re.search(r"stopped at step (\d+) of 60", output)[1])
        assert step <= stopped < 60
        assert resumed in output
        resumed = f"at step {stopped} of 60"
        assert "--resume" in output
        assert "Traceback" not in output
        process = start(tmp_path / "run", "--resume")
    code, output = finish(process)
    assert code == 0, output
    assert resumed in output
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_checkpoint_resumes_bitwise(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"

    def unfinished() -> list[pathlib.Path]:
        return [path for path in checkpoints.glob("*") if not path.name.isdigit()] if checkpoints.exists() else []

    process, half_written = start(workdir, *flags()), 0
    for _ in range(2):
        wait_for(process, lambda: bool(unfinished()))
        process.kill()
        process.wait()
        half_written += bool(unfinished())
        process = start(workdir, "--resume")
        wait_for(process, lambda: not unfinished())  # swept away at the start
    code, output = finish(process)
    assert code == 0, output
    assert half_written, "no kill fell into the writing of a checkpoint"
    assert_same_run(undisturbed, workdir)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_killed_between_two_checkpoints_resumes_bitwise(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, *flags())
    wait_for(process, lambda: len(read_metrics(workdir)) >= 3 and (workdir / "checkpoints/24").exists())
    process.kill()
    process.wait()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # as a crash leaves it
    code, output = finish(start(workdir, "--resume"))
    assert code == 0, output
    assert_same_run(undisturbed, workdir)


def wait_for(process: subprocess.Popen, condition: Any) -> None:
    """Returns as soon as the condition holds; the run must not end before."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_a_larger_number_of_steps_goes_on(undisturbed: pathlib.Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    code, output = finish(start(undisturbed, "--resume"))
    assert code == 0
    assert "already finished, at step 60" in output
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
    assert load_config(str(undisturbed), {"steps": 80}, resume=True).steps == 80


@pytest.mark.parametrize("change", [{"learning_rate": 0.2}, {"groups": 1, "seed": 3}, {"local_pull": 0.3}])
def test_a_change_of_the_algorithm_is_refused_at_resume(undisturbed: pathlib.Path, change: dict[str, Any]) -> None:
    config = load_config(str(undisturbed), change, resume=True)
    with pytest.raises(InputError) as refused:
        check_settings(config, undisturbed, resume=True)
    assert all(f"--{name}" in str(refused.value) for name in change)


def test_fewer_steps_than_the_checkpoint_has_are_refused_and_nothing_is_changed(undisturbed: pathlib.Path) -> None:
    before = (undisturbed / "config.json").read_bytes()
    config = load_config(str(undisturbed), {"steps": 20}, resume=True)
    (undisturbed / "summary.json").rename(undisturbed / "kept.json")  # as after a kill before the end
    with pytest.raises(InputError, match="checkpoint at step 60"):
        train(config, resume=True)
    (undisturbed / "kept.json").rename(undisturbed / "summary.json")
    assert (undisturbed / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_stopped_exactly_at_its_new_end_is_evaluated_there(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(undisturbed, tmp_path / "run", step=48)
    summary = train(load_config(str(workdir), {"steps": 48}, resume=True), resume=True)
    assert summary["step"] == 48
    assert "note: --steps was 60, is 48: the cosine ends there" in capsys.readouterr().out
    assert summary["train_loss"] is not None
    assert [row["step"] for row in read_metrics(workdir)] == [10, 20, 30, 40, 48]


def test_a_checkpoint_with_other_arrays_is_refused_in_one_line(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    saved = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(saved | {"momentum": 0.0}))
    with pytest.raises(
        InputError, match="checkpoint of step 60 is of another model, base optimizer or method"
    ) as refused:
        train(load_config(str(workdir), {"steps": 70}, resume=True), resume=True)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_lost_workers_are_reported_and_the_run_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain = classification.classification_loss

    def sometimes_not_finite(model: Any) -> Any:
        def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
            value, model_state = plain(model)(params, model_state, batch, key)
            return jnp.where(jax.random.uniform(key) < 0.01, jnp.nan, 1.0) * value, model_state

        return loss

    monkeypatch.setattr(classification, "classification_loss", sometimes_not_finite)
    summary = train(Config(**SETTINGS | {"workdir": str(tmp_path / "run"), "steps": 120}))
    log = capsys.readouterr().err
    lost = re.findall(r"step (\d+): worker (\d) has parameters that are not finite", log)
    again = re.findall(r"step (\d+): worker (\d) starts again from the (local|global) leader, worker (\d)", log)
    assert lost
    assert {worker for _, worker in lost} == {worker for _, worker, *_ in again}
    assert all(worker != leader for _, worker, _, leader in again)
    assert summary["test_error"] < 0.3


@pytest.mark.slow
def test_a_run_that_loses_every_worker_stops_and_names_the_last_good_checkpoint(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = classification.classification_loss

    def not_finite_once_it_is_small(model: Any) -> Any:
        def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
            value, model_state = plain(model)(params, model_state, batch, key)
            return value / jnp.where(value < 0.5, 0.0, 1.0), model_state

        return loss

    monkeypatch.setattr(classification, "classification_loss", not_finite_once_it_is_small)
    workdir = tmp_path / "run"
    with pytest.raises(AllWorkersLostError) as stopped:
        train(Config(**SETTINGS | {"workdir": str(workdir), "checkpoint_every": 4, "eval_every": 4}))
    step, last = map(int, re.search(r"by step (\d+) .* is that of step (\d+)$", str(stopped.value)).groups())
    assert "use a smaller --learning_rate" in str(stopped.value)
    assert step % SETTINGS["global_period"] == 0, "where somebody could have started them again"
    assert step - 8 <= last < step
    assert last == max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    last_row = read_metrics(workdir)[-1]
    assert last_row["step"] == step - 4
    assert (last_row["leader"] == -1) == (last < step - 4), "an evaluation in between, but no checkpoint"
    assert not (workdir / "center").exists()


@pytest.mark.slow
def test_the_first_rounds_are_traced_and_compiled_programs_kept_where_told(undisturbed: pathlib.Path) -> None:
    assert len(list((undisturbed.parent / "profile").rglob("*.xplane.pb"))) == 1
    assert any((undisturbed.parent.parent / "compiled").iterdir())
    assert "profile_dir" not in json.loads((undisturbed / "config.json").read_text())
