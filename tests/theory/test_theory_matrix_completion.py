"""Matrix completion: the formulas against the direct ones, and the paper's claims in a small size."""

import csv
import importlib
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgd_jax import dppf, easgd, elect_leader

import claims  # isort: skip
import low_rank  # isort: skip
import matrix_completion  # isort: skip

SMALL = ["--dimension=100", "--ranks=3", "--draws=3", "--iterations=60"]


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
        function = low_rank.factorization(jnp.asarray(triangle[:4]))
        value, gradient = function(jnp.asarray(rotation.T @ x))
    np.testing.assert_allclose(value, (miss**2).sum() / 4, rtol=1e-8)
    np.testing.assert_allclose(rotation @ np.asarray(gradient), miss @ x, rtol=1e-6, atol=1e-7 * distance)


@pytest.mark.slow
def test_a_leader_breaks_the_symmetry_and_elastic_averaging_does_not(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "STRENGTHS", ())
    assert script.main(["matrix_completion.py", *SMALL, f"--workdir={tmp_path}/new"]) == 0
    with (tmp_path / "new/matrix_completion.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 60
    with (tmp_path / "new/draws.csv").open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["0", "1", "2"] * 4
    with (tmp_path / "new/sides.csv").open() as file:
        shares = {(row["side"], row["method"]): (row["converged"], row["draws"]) for row in csv.DictReader(file)}
    assert {shares[str(side), "lsgd"] for side in range(4, 9)} == {("3", "3")}
    assert shares["8", "easgd"] == ("3", "3"), "where nobody is on the other side"
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        *("matrix_completion.csv", "matrix_completion.png", "draws.csv", "sides.csv", "strengths.csv", "sweeps.png"),
        "claims.json",
    }


@pytest.mark.slow
def test_elastic_averaging_gets_through_in_some_draws_with_workers_on_both_sides() -> None:
    with jax.enable_x64(True):
        sgd = optax.sgd(0.5 / 1000)
        problems = low_rank.draw_problems(0, 60, 1000, 1)
        eagd = low_rank.run("easgd", easgd(sgd, beta=0.9, period=1), problems, 60)
        half, flipped = matrix_completion.on_sides(problems, 4), matrix_completion.on_sides(problems, 8)
    assert (eagd.converged.sum(), (eagd.converged & (problems.sides < low_rank.WORKERS)).sum()) == (26, 25)
    assert eagd.stuck[0], "the draw that the paper's figure is like"
    assert set(half.sides) == {4}
    assert set(flipped.sides) == {8}
    np.testing.assert_array_equal(np.abs(half.starts), np.abs(problems.starts))


@pytest.mark.slow
def test_the_span_of_the_starts_is_the_whole_space() -> None:
    """In coordinates of all 40 dimensions a method does the same, to rounding."""
    rng = np.random.default_rng((5, 2))
    triangle = np.linalg.qr(rng.normal(size=(40, 2)), mode="r")
    whole = low_rank.Problems(triangle[None], rng.normal(size=(1, low_rank.WORKERS, 40, 2)))
    with jax.enable_x64(True):
        method = easgd(optax.sgd(0.5 / 40), beta=0.9, period=1)
        lines = [low_rank.run("easgd", method, each, 30) for each in (whole, low_rank.draw_problems(5, 1, 40, 2))]
    assert low_rank.draw_problems(5, 1, 40, 2).starts.shape == (1, low_rank.WORKERS, 18, 2)
    np.testing.assert_allclose(lines[0].best, lines[1].best, rtol=1e-8)


def test_shares_have_intervals() -> None:
    for count, of in ((26, 60), (0, 60), (60, 60)):
        low, high = claims.interval(count, of)
        for share in {low, high} - {count / of}:  # where the observed share is 1.96 of its deviations away
            assert (count / of - share) ** 2 == pytest.approx(1.96**2 * share * (1 - share) / of, abs=1e-12)
        assert low - 1e-9 <= count / of <= high + 1e-9
    assert (claims.interval(0, 60)[0], claims.interval(60, 60)[1]) == pytest.approx((0, 1))
    assert claims.share([True, False]) == "1 of 2 draws (95 %: 0.09 to 0.91)"


BROKEN = {
    "a pull to the mean": (
        "matrix_completion.leader_descent",
        lambda base, pull: dppf(base, pull=pull, push=0.0, period=1),
    ),
    "the worst leads": (
        "lsgd_jax.optimizers.sending.elect_leader",
        lambda score, axis_name: elect_leader(-score, axis_name),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, *BROKEN])
def test_a_weak_pull_does_if_it_is_to_the_leader(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, how: str | None
) -> None:
    if how:
        name, broken = BROKEN[how]
        module, function = name.rsplit(".", 1)
        monkeypatch.setattr(importlib.import_module(module), function, broken)
    with jax.enable_x64(True):
        problems = low_rank.mirrored(low_rank.draw_problems(0, 2, 100, 1))
        lgd = next(script.by_strength(problems, optax.sgd(0.5 / 100), 60))
    claim = next(script.claims_of_strengths([lgd]))
    assert claim.text.endswith("LGD gets below 1e-6 at every strength")
    assert claim.held == (not how)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--dimension=1", "--dimension=1"),
        ("--draws=0", "--draws=0"),
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
