"""The curvature of a loss against its Hessian in full, and the command that measures it at the end of runs."""

import csv
import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from made_up_runs import leave

from lsgd_jax.config.config import Config
from lsgd_jax.config.train import train
from lsgd_jax.models.convolution import conv_general_dilated

import curvature  # isort: skip
import flatness  # isort: skip

LAYOUT = ("NHWC", "HWIO", "NHWC")


def loss_with(convolve: Any) -> Any:
    """The squared error of a convolution, tanh and a dense layer."""

    def loss(params: Any, batch: Any) -> jax.Array:
        images, wanted = batch
        hidden = convolve(images, params["kernel"], (1, 1), "VALID", dimension_numbers=LAYOUT)
        outputs = jnp.tanh(hidden).reshape(len(images), -1) @ params["dense"]
        return jnp.square(outputs - wanted).mean()

    return loss


def test_eigenvalue_and_trace_are_those_of_the_hessian_in_full() -> None:
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 3, 2, 4)), "dense": rng.normal(size=(16, 3))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    batches = (rng.normal(size=(3, 8, 4, 4, 2)).astype(np.float32), rng.normal(size=(3, 8, 3)).astype(np.float32))
    flat, unravel = ravel_pytree(params)
    whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    plain = loss_with(lax.conv_general_dilated)
    hessian = np.asarray(jax.hessian(lambda x: plain(unravel(x), whole))(flat), np.float64)
    found = curvature.curvature(loss_with(conv_general_dilated), params, batches, probes=200, seed=1)
    assert found.loss == pytest.approx(float(plain(params, whole)), rel=1e-5)
    values = np.linalg.eigvalsh(hessian)
    assert values[0] < -0.01 * values[-1], "not at a minimum, so that the largest in absolute terms could be another"
    assert found.eigenvalue == pytest.approx(values[-1], rel=1e-3)
    assert abs(found.trace - np.trace(hessian)) < 4 * found.trace_error
    # Of one probe: twice the squares off the diagonal.
    deviation = np.sqrt(2 * (np.square(hessian).sum() - np.square(np.diag(hessian)).sum()))
    assert found.trace_error * np.sqrt(200) == pytest.approx(deviation, rel=0.2)


def test_the_largest_eigenvalue_is_no_negative_one_of_greater_size() -> None:
    diagonal = np.array([-9.0, 1.0, 4.0], np.float32)
    rng = np.random.default_rng(0)
    assert curvature.largest_eigenvalue(lambda x: diagonal * x.reshape(-1), 3, rng) == pytest.approx(4, rel=1e-3)
    trace, error = curvature.trace_of(lambda x: diagonal * x, 3, 5, rng)
    assert (trace, error) == (-4, 0), "signs alone cannot miss a diagonal"


@pytest.mark.slow
@pytest.mark.thorough
def test_finished_runs_are_measured_each_at_its_deployed_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script: Any = importlib.reload(flatness)  # flags keep what they were given
    settings: dict[str, Any] = {"model": "mlp", "groups": 1, "workers": 2, "batch_size": 8, "eval_every": 8}
    for method, seed in (("lsgd", 1), ("lsgd", 2), ("none", 1)):
        workdir = str(tmp_path / f"runs/{method},1/seed={seed}")
        train(Config(workdir, algorithm=method, seed=seed, steps=8, **settings), figures=False)
    capsys.readouterr()
    arguments = [f"--runs={tmp_path}/runs/*/seed=[12]", f"--workdir={tmp_path}/out", "--samples=128", "--probes=2"]
    assert script.main(["flatness.py", *arguments]) == 0
    with (tmp_path / "out/flatness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"]) for row in rows] == [
        ("lsgd,1/seed=1", "1"),
        ("lsgd,1/seed=2", "2"),
        ("none,1/seed=1", "1"),
    ]
    assert all(row["model"] in ("center", "leader") and float(row["eigenvalue"]) > 0 for row in rows)
    mean = np.mean([float(row["eigenvalue"]) for row in rows[:2]])
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert [line.split(" | ")[0:3] for line in table[2:]] == [
        ["| lsgd", "lsgd,1/seed=1", "2"],
        ["| none", "none,1/seed=1", "1"],
    ]
    assert f"{mean:.4g} ± " in table[2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--runs is missing"),
        (["--runs=/nowhere"], "--runs=/nowhere: there is no such folder"),
        (["--runs=/nowhere/*"], "--runs=/nowhere/*: there is no such folder"),
        (["--runs=x", "--samples=100"], "--samples=100: must be at least 128"),
        (["--runs=x", "--samples=200"], "--samples=200: must be a multiple of 128"),
        (["--runs=x", "--probes=1"], "--probes=1: must be at least 2"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script: Any = importlib.reload(flatness)
    assert script.main(["flatness.py", f"--workdir={tmp_path}/out", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err
    assert not (tmp_path / "out").exists()


def test_runs_that_are_not_finished_or_of_text_are_refused_before_any_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script: Any = importlib.reload(flatness)
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be " * 500)
    for name, more in (("a", {}), ("b", {"text_file": str(text), "batch_size": 2, "sequence_length": 8})):
        settings: dict[str, Any] = {"groups": 1, "workers": 2, "steps": 4, **more}
        leave(Config(str(tmp_path / "runs" / name), **settings))
    assert script.main(["flatness.py", f"--runs={tmp_path}/runs", f"--workdir={tmp_path}/out", "--samples=128"]) == 2
    assert f"{tmp_path}/runs/b is not of images that fit in memory" in capsys.readouterr().err
    (tmp_path / "runs/a/summary.json").unlink()
    assert script.main(["flatness.py", f"--runs={tmp_path}/runs", f"--workdir={tmp_path}/out", "--samples=128"]) == 2
    assert f"{tmp_path}/runs/a is not finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
