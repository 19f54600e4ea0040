"""The theorems on strongly convex functions hold for the library's steps, and not for broken ones."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from broken_steps import follow_the_worst, pull_away, push
from claims import Claim, conclude
from strongly_convex import one_step, periods, rate, stochastic_leader
from strongly_convex.measure import Estimate, gaps_of_workers, limit, slope
from strongly_convex.problems import Problem, logistic, quadratic

import convergence  # isort: skip
from lsgd_jax import independent


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def narrow() -> Problem:
    return quadratic(np.random.default_rng(0), 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["quadratic", "logistic"])
def test_the_constants_of_a_problem_bound_its_curvature(problem: str) -> None:
    rng = np.random.default_rng(1)
    made = quadratic(rng, 6, 30) if problem == "quadratic" else logistic(rng, 6, 0.1)
    points = made.optimum + 3 * rng.normal(size=(20, 6))
    curvatures = np.linalg.eigvalsh(jax.jit(jax.vmap(jax.hessian(made.gap)))(points))
    assert curvatures.min() >= made.convexity * (1 - 1e-9)
    assert curvatures.max() <= made.smoothness * (1 + 1e-9)
    np.testing.assert_allclose(jax.jit(jax.grad(made.gap))(made.optimum), 0, atol=1e-12)
    assert abs(made.gap(made.optimum)) < 1e-12
    assert jax.jit(jax.vmap(made.gap))(points).min() > 0


def test_a_slope_is_found_within_its_error() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(100.0, 2000.0)
    found = slope(steps, steps**-1.5 * rng.gamma(2, 0.5, size=(20, len(steps))))
    assert abs(found.value + 1.5) < 4 * found.error < 0.05


def test_a_limit_is_the_mean_of_the_last_half() -> None:
    assert limit(np.array([[9.0, 9, 1, 1], [9.0, 9, 3, 3]])) == Estimate(2, 1)


def test_noise_has_the_variance_that_is_told_and_that_of_scores_is_apart() -> None:
    problem, size = narrow(), 800
    seen = []

    def look(grads: jax.Array, state: jax.Array, params: jax.Array, *, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = grads - jax.grad(problem.gap)(params)
        jax.debug.callback(lambda *numbers: seen.append(np.hstack(numbers)), noise, value - problem.gap(params))
        return jnp.zeros_like(grads), state

    still = independent(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), look))
    sizes = {"workers": 2, "steps": size, "repeats": 1}
    gaps_of_workers(still, problem, np.random.default_rng(0), deviation=3.0, score_deviation=0.5, **sizes)
    jax.effects_barrier()
    noise = np.reshape(seen, (-1, 3))
    assert len(noise) == 2 * size
    np.testing.assert_allclose(np.cov(noise.T), np.diag([4.5, 4.5, 0.25]), atol=0.5)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.1


@pytest.mark.slow
def test_one_step_is_as_good_as_the_theorem_says_and_stops_being_so_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_step, "M_ETAS", one_step.M_ETAS[::3])
    problem = logistic(np.random.default_rng(0), 4, 0.1)
    within, beyond = one_step.run([problem], 40, np.random.default_rng(0), tmp_path)
    assert within.held
    assert within.expected
    assert not beyond.held
    assert not beyond.expected
    assert (tmp_path / "one_step.png").stat().st_size > 10_000
    assert len((tmp_path / "one_step.csv").read_text().splitlines()) == 1 + 4 * 13


def test_a_pull_away_from_the_leader_breaks_the_theorem_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_step, "leader_pull", push)
    monkeypatch.setattr(one_step, "M_ETAS", one_step.M_ETAS[::3])
    within, _ = one_step.conclusions(one_step.survey(narrow(), 40, np.random.default_rng(0)))
    assert not within.held


def test_the_bound_of_the_rate_begins_after_the_first_step() -> None:
    problem = narrow()
    k = 4 * problem.condition + 1 + np.arange(200)
    after_the_first_step, noise = 1e3, 2 * problem.smoothness * rate.NOISE**2 / problem.convexity**2
    curve = rate.Curve(problem, rate.ALONE, k, np.tile(after_the_first_step * k[0] / k, (4, 1)))
    assert after_the_first_step > noise
    assert curve.share_of_bound == pytest.approx(1)
    _, bound = rate.conclusions([curve._replace(gaps=curve.gaps * np.linspace(1, 0.9, 200))])
    assert "ν = max(2Mσ²/m², (4κ + 1)(E f(x_1) − f*))" in bound.text


def claims_on_the_rate(*settings: rate.Setting) -> list[Claim]:
    problem, rng = narrow(), np.random.default_rng(0)
    return rate.conclusions([rate.descend_as(problem, setting, 1000, 8, rng) for setting in settings])


@pytest.mark.slow
def test_lsgd_is_as_fast_as_the_theorem_says_with_exact_and_with_noisy_scores() -> None:
    exact, noisy_leader = rate.SETTINGS[0], rate.SETTINGS[-1]
    assert all(claim.held for claim in claims_on_the_rate(exact, noisy_leader))


def test_a_pull_away_from_the_leader_breaks_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    pull_away(monkeypatch)
    assert not any(claim.held for claim in claims_on_the_rate(rate.SETTINGS[0]))


def claims_on_a_stochastic_leader(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> list[Claim]:
    for name, value in (("WORKERS", (4,)), ("KAPPA_PULLS", (0.8,)), ("SCORE_NOISES", (0.0, 1.0, 30.0))):
        monkeypatch.setattr(stochastic_leader, name, value)
    return stochastic_leader.run(narrow(), 400, 16, np.random.default_rng(0), workdir)


@pytest.mark.slow
def test_a_stochastic_leader_costs_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [claim.held for claim in claims_on_a_stochastic_leader(monkeypatch, tmp_path)] == [True, True, True]
    assert (tmp_path / "stochastic_leader.png").stat().st_size > 10_000


def test_a_pull_away_breaks_the_bound_of_a_stochastic_leader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pull_away(monkeypatch)
    monkeypatch.setattr(stochastic_leader, "draw", lambda *args: None)
    bound, _, gain = claims_on_a_stochastic_leader(monkeypatch, tmp_path)
    assert not bound.held
    assert not gain.held


def test_following_the_worst_is_no_gain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    follow_the_worst(monkeypatch)
    monkeypatch.setattr(stochastic_leader, "draw", lambda *args: None)
    *_, gain = claims_on_a_stochastic_leader(monkeypatch, tmp_path)
    assert not gain.held


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_longer_periods_bring_less_and_a_pull_away_costs(
    broken: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(periods, "PERIODS", (1, 16))
    if broken:
        pull_away(monkeypatch)
        monkeypatch.setattr(periods, "draw", lambda *args: None)
    (claim,) = periods.run(narrow(), 400, 16, np.random.default_rng(0), tmp_path)
    assert claim.held != broken
    assert broken or (tmp_path / "periods.png").stat().st_size > 10_000


def test_the_command_fails_where_a_claim_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    for part in (one_step, rate, stochastic_leader, periods):
        monkeypatch.setattr(part, "run", lambda *args, part=part: seen.append(part) or [Claim("c", "m", True)])
    script = importlib.reload(convergence)  # flags keep what they were given
    assert script.main(["convergence.py", f"--workdir={tmp_path}"]) == 0
    assert seen == [one_step, rate, stochastic_leader, periods]
    assert len(json.loads((tmp_path / "claims.json").read_text())) == 4
    monkeypatch.setattr(rate, "run", lambda *args: [Claim("c", "m", False)])
    assert importlib.reload(convergence).main(["convergence.py", f"--workdir={tmp_path}"]) == 1
    assert conclude(tmp_path, [Claim("c", "m", False, expected=False)]) == 0


@pytest.mark.parametrize(
    "argument", ["--steps=10", "--repeats=1", "--pairs=0", "--seed=-1", "--workdir=/dev/null/x", "x"]
)
def test_a_mistake_is_told_in_one_line(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert importlib.reload(convergence).main(["convergence.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("convergence.py: error: ")
    assert argument.split("=")[0] in err
    assert err.count("\n") == 1
