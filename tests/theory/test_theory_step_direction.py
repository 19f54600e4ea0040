"""The theorem on the step's direction, and broken steps for which it does not hold."""

import csv
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from broken_steps import push

import lsgd_jax

import step_direction  # isort: skip

SMALL = ("--points=12", "--candidates=100")


def run(monkeypatch: pytest.MonkeyPatch, workdir: Path, *arguments: str) -> int:
    """The script, with fresh flags, on two quadratics."""
    script = importlib.reload(step_direction)
    monkeypatch.setattr(script, "QUADRATICS", ((10, 2), (100, 10)))
    return script.main(["step_direction.py", f"--workdir={workdir}", *arguments])


@pytest.mark.slow
def test_at_least_half_of_the_candidates_serve_where_the_theorem_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, tmp_path, *SMALL, "--seed=3") == 0
    inside, beyond = json.loads((tmp_path / "claims.json").read_text())
    assert inside["held"]
    assert inside["expected"]
    assert not beyond["held"]
    assert not beyond["expected"]
    with (tmp_path / "step_direction.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(step_direction.QUADRATICS) * 12 * len(step_direction.PULLS)
    assert {row["pairs"] for row in rows} == {"50"}
    assert any(int(row["neither"]) for row in rows), "where λ is large"
    assert "neither does in 0 of " in inside["measured"]
    assert (tmp_path / "step_direction.png").stat().st_size > 10_000


def test_one_pair_of_which_neither_serves_refutes_the_theorem() -> None:
    fits = step_direction.Share(10, 2, 45.0, 1.0, share=0.5, error=0.05, pairs=100, neither=0)
    for neither in (0, 1):
        inside, _ = step_direction.conclusions([fits, fits._replace(neither=neither, share=0.495)])
        assert inside.held == (not neither)
    inside, _ = step_direction.conclusions([fits, fits._replace(neither=1, pull=fits.threshold * 1.01)])
    assert inside.held, "beyond it says nothing"


def test_a_push_away_from_the_leader_breaks_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsgd_jax, "leader_pull", push)
    assert run(monkeypatch, tmp_path, *SMALL) == 1


def test_the_angle_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    curvatures = np.array([1.0, 3, 20])
    x = rng.normal(size=(4, 3))
    leaders = step_direction.sample_leaders(curvatures, x, 25, rng)
    assert ((leaders**2 @ curvatures) <= (x**2 @ curvatures)[:, None]).all()
    pulls = np.array([0.1, 5.0])
    with jax.enable_x64(True):
        degrees, serves = step_direction.serving(curvatures, x, leaders, pulls)

    def angle(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    for i in range(4):
        assert np.radians(degrees[i]) == pytest.approx(angle(-x[i], -curvatures * x[i]))
        for j, pull in enumerate(pulls):
            steps = -curvatures * x[i] + pull * (leaders[i] - x[i])
            expected = [angle(-x[i], step) <= np.radians(degrees[i]) for step in steps]
            assert serves[j, i].tolist() == expected


def test_candidates_are_uniform_in_the_ellipsoid() -> None:
    rng = np.random.default_rng(0)
    curvatures, x = np.array([1.0, 10, 100]), np.array([[1.0, 0.2, 0.1]])
    leaders = step_direction.sample_leaders(curvatures, x, 20_000, rng)[0]
    depth = (leaders**2 @ curvatures) / (x[0] ** 2 @ curvatures)
    assert (depth**1.5 < 0.3).mean() == pytest.approx(0.3, abs=0.01), "the share of volume within a depth"
    np.testing.assert_allclose(leaders.mean(0), 0, atol=1e-12)


@pytest.mark.parametrize("argument", ["--points=0", "--candidates=2", "--seed=-1", "--workdir=/dev/null/x", "x"])
def test_a_mistake_is_told_in_one_line(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert importlib.reload(step_direction).main(["step_direction.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step_direction.py: error: ")
    assert argument.split("=")[0] in err
    assert err.count("\n") == 1
