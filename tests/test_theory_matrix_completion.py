"""Matrix completion: the formulas against the direct ones, and the paper's claims in a small size."""

import csv
import importlib
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgd_jax import dppf, elect_leader

import matrix_completion  # isort: skip

SMALL = ["--dimension=100", "--ranks=3", "--iterations=60"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    importlib.reload(matrix_completion)  # flags keep what they were given
    monkeypatch.setattr(matrix_completion, "STRENGTHS", (0.1,))
    return matrix_completion


@pytest.mark.parametrize("distance", [1.0, 1e-6])
def test_values_and_gradients_are_those_of_the_whole_matrix_near_a_minimum_too(distance: float) -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=(30, 4))
    x = u @ np.linalg.qr(rng.normal(size=(4, 4)))[0] + distance * rng.normal(size=(30, 4))
    rotation, triangle = np.linalg.qr(u, mode="complete")
    miss = (x @ x.T - u @ u.T).astype(np.longdouble)
    with jax.enable_x64(True):
        function = matrix_completion.factorization(jnp.asarray(triangle[:4]))
        value, gradient = function(jnp.asarray(rotation.T @ x))
    np.testing.assert_allclose(value, (miss**2).sum() / 4, rtol=1e-8)
    np.testing.assert_allclose(rotation @ np.asarray(gradient), miss @ x, rtol=1e-6, atol=1e-7 * distance)


def test_a_leader_breaks_the_symmetry_and_elastic_averaging_does_not(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "STRENGTHS", ())
    assert script.main(["matrix_completion.py", *SMALL, f"--workdir={tmp_path}/new"]) == 0
    with (tmp_path / "new/matrix_completion.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 60
    with (tmp_path / "new/sides.csv").open() as file:
        even = {row["method"]: float(row["best_value"]) for row in csv.DictReader(file) if row["side"] == "4"}
    assert even["lsgd"] < 1e-6 < 1 < even["easgd"]
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        *("matrix_completion.csv", "matrix_completion.png", "sides.csv", "strengths.csv", "sweeps.png", "claims.json")
    }


BROKEN = {
    "a pull to the mean": (
        "matrix_completion.leader_descent",
        lambda base, pull: dppf(base, pull=pull, push=0.0, period=1),
    ),
    "the worst leads": (
        "lsgd_jax.optimizers.lsgd.elect_leader",
        lambda score, axis_name: elect_leader(-score, axis_name),
    ),
}


@pytest.mark.parametrize("how", [None, *BROKEN])
def test_a_weak_pull_does_if_it_is_to_the_leader(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, how: str | None
) -> None:
    if how:
        name, broken = BROKEN[how]
        module, function = name.rsplit(".", 1)
        monkeypatch.setattr(importlib.import_module(module), function, broken)
    with jax.enable_x64(True):
        lgd = next(script.by_strength(0, 100, 60))
    claims = {claim.text: claim.held for claim in script.claims_of({}, [], [lgd], 60)}
    assert claims["rank 1, 4 on each side, mirror images: LGD gets below 1e-6 at every strength of 0.1"] == (not how)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--dimension=1", "--dimension=1"),
        ("--iterations=1", "--iterations=1"),
        ("--seed=-1", "--seed=-1"),
        ("--ranks=1,x", "--ranks=1,x"),
        ("--ranks=2000", "--ranks=2000"),
        ("--ranks=", "--ranks="),
        ("--workdir=/dev/null/x", "--workdir=/dev/null/x"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    script: ModuleType, capsys: pytest.CaptureFixture[str], argument: str, told: str
) -> None:
    assert script.main(["matrix_completion.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("matrix_completion.py: error: ")
    assert told in err
    assert err.count("\n") == 1
