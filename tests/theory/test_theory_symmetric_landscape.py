"""The symmetric landscape: the function, and the paper's claims in a small size."""

import csv
import importlib
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgd_jax import dppf

import symmetric_landscape  # isort: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    importlib.reload(symmetric_landscape)  # flags keep what they were given
    monkeypatch.setattr(symmetric_landscape, "STRENGTHS", (symmetric_landscape.SHOWN,))
    return symmetric_landscape


@pytest.mark.parametrize("r", [0.0, 1e-9, 0.0099, 0.0101, 0.5, 1.0, 1.4302966532, 7.3])
def test_the_function_and_its_gradient_are_right_at_the_peak_and_away_from_it(r: float) -> None:
    with jax.enable_x64(True):
        value, gradient = jax.jit(symmetric_landscape.sinc)(jnp.array([0.6 * r, -0.8 * r]))
    np.testing.assert_allclose(value, np.sinc(r), atol=1e-14)
    slope = (np.cos(np.pi * r) - np.sinc(r)) / r if r > 1e-3 else -(np.pi**2) / 3 * r
    np.testing.assert_allclose(gradient, [0.6 * slope, -0.8 * slope], rtol=1e-9, atol=1e-11)


def test_its_gradient_can_be_differentiated_at_the_peak() -> None:
    with jax.enable_x64(True):
        hessian = jax.jit(jax.hessian(lambda x: symmetric_landscape.sinc(x)[0]))(jnp.zeros(2))
    np.testing.assert_allclose(hessian, -(np.pi**2) / 3 * np.eye(2), rtol=1e-12)


@pytest.mark.slow
def test_leaders_bring_all_workers_to_the_ring_and_elastic_averaging_takes_them_to_the_peak(
    script: ModuleType, tmp_path: Path
) -> None:
    assert script.main(["symmetric_landscape.py", "--iterations=150", "--draws=5", f"--workdir={tmp_path}/new"]) == 0
    with (tmp_path / "new/symmetric_landscape.csv").open() as file:
        rows = {(row["method"], row["offset"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert {(row["draws"], row["arrived"]) for row in rows.values() if row["method"] == "lsgd"} == {
        ("1", "1"),
        ("5", "5"),
    }
    assert float(rows["lsgd", "0"]["highest_value"]) < -0.217
    assert float(rows["easgd", "0"]["lowest_value"]) > 0.99
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        *("symmetric_landscape.csv", "trajectories.png", "arrivals.png", "claims.json")
    }


def test_the_claim_fails_for_a_pull_to_the_mean(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "lsgd", lambda base, global_pull, **_: dppf(base, pull=global_pull, push=0.0, period=1))
    with jax.enable_x64(True):
        runs = list(script.sweep(150, draws=5, seed=0))
    first = next(script.claims_of(runs))
    assert first.measured.startswith("in 0 of 5 draws")
    assert first.text.endswith("all of LGD's workers are in the lowest ring within 100 iterations")
    assert not first.held


@pytest.mark.parametrize(
    "argument", ["--iterations=1", "--draws=0", "--seed=-1", "--workdir=/dev/null/x", "--rate=2", "extra"]
)
def test_a_mistake_is_told_in_one_line(script: ModuleType, capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert script.main(["symmetric_landscape.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("symmetric_landscape.py: error: ")
    assert argument.removeprefix("--").partition("=")[0] in err
    assert err.count("\n") == 1


def test_a_draw_arrives_with_the_last_of_its_workers_to_stay() -> None:
    out, within = 0.0, -0.217
    values = np.full((4, 5, 2), within)
    values[1, :2] = out  # both come at iteration 2
    values[2, 3, 1] = out  # one leaves again
    values[3, 4, 0] = out  # and one is out in the end
    run = symmetric_landscape.Trajectories("lsgd", 0.5, 0.05, values, np.zeros((4, 6, 2, 2)), np.zeros(4))
    assert run.arrival.tolist() == [0, 2, 4, run.never]
    assert symmetric_landscape.row_of(run)[3:8] == (4, 3, 0, 4, None)
