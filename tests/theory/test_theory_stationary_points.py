"""Theorem 1: where methods rest, against derivatives of their objectives; and the claims in a small size."""

import csv
import importlib
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rest_points

from lsgd_jax import GROUP, WORKER, dppf, lsgd, periodic

import stationary_points  # isort: skip

PLACE = "tilted double well"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with fresh flags, on one function."""
    for name in set(rest_points.LANDSCAPES) - {PLACE}:
        monkeypatch.delitem(rest_points.LANDSCAPES, name)
    return importlib.reload(stationary_points)


def objective(name: str, x: jax.Array, strength: float) -> jax.Array:
    """Each as it is defined."""
    values = jax.vmap(rest_points.LANDSCAPES[PLACE].function)(x)
    leader = x[jnp.argmin(values)]
    to = {"lsgd": jax.lax.stop_gradient(leader), "easgd": x.mean(axis=0)}[name]
    return values.sum() + strength / 2 * ((x - to) ** 2).sum()


@pytest.mark.slow
@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("name", ["lsgd", "easgd"])
def test_a_method_rests_where_its_objective_is_stationary(name: str) -> None:
    start = jnp.array([[-1.5, 0.5], [-0.3, 1.0], [0.4, -0.5], [1.2, 0.1]])
    with jax.enable_x64(True):
        index, strength = jnp.int32(0), jnp.float64(0.03)
        end = rest_points.move(name, index, strength, start.astype(float), 8000)
        assert jnp.abs(end - end[0]).max() > 0.5, "all in one place, where the strength does not matter"
        assert jnp.abs(jax.jit(jax.grad(objective, argnums=1), static_argnums=0)(name, end, strength)).max() < 1e-12
        assert jnp.abs(rest_points.move(name, index, strength, end) - end).max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("stale", ["", "stale_"])
def test_groups_rest_where_the_objective_with_leaders_of_both_levels_is_stationary(stale: str) -> None:
    rate, local, everywhere = 0.5, 0.003, 0.002
    pulls = {"local_pull": 0.0, "global_pull": 0.0, f"{stale}local_pull": local, f"{stale}global_pull": everywhere}
    optimizer = periodic(lsgd(optax.sgd(rate), **pulls, local_period=1, global_period=1, window=1))
    kept = 1 - local - everywhere if stale else 1 - everywhere  # of a worker's own step, after the global pull
    local_strength = local / (kept if stale else kept * (1 - local)) / rate
    global_strength = everywhere / kept / rate
    function = rest_points.LANDSCAPES["Styblinski-Tang"].function

    def descent(x: jax.Array) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            x, state = carry
            value, grad = jax.value_and_grad(function)(x)
            updates, state = optimizer.update(grad, state, x, value=value)
            return (x + updates, state), None

        return jax.lax.scan(step, (x, optimizer.init(x)), length=1000)[0][0]

    def objective(x: jax.Array) -> jax.Array:
        values = jax.vmap(jax.vmap(function))(x)
        leaders = jax.lax.stop_gradient(x[jnp.arange(2), values.argmin(axis=1)])
        to_local = ((x - leaders[:, None]) ** 2).sum()
        to_global = ((x - leaders[values.min(axis=1).argmin()]) ** 2).sum()
        return values.sum() + local_strength / 2 * to_local + global_strength / 2 * to_global

    with jax.enable_x64(True):
        start = jnp.array([[[2.5, 2.5], [-2.5, 2.5]], [[2.5, -2.5], [-2.5, -2.5]]])  # a worker near each minimum
        end = jax.jit(jax.vmap(jax.vmap(descent, axis_name=WORKER), axis_name=GROUP))(start)
        assert jnp.abs(end - start).max() < 0.5, "some are together, where the strengths do not matter"
        assert jnp.abs(jax.jit(jax.grad(objective))(end)).max() < 1e-12


@pytest.mark.slow
def test_the_leader_is_stationary_where_the_objective_is_and_for_elastic_averaging_nobody_need_be(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rest_points.SEARCHES, "lsgd", ("Newton",))
    monkeypatch.setitem(rest_points.SEARCHES, "easgd", ("descent",))
    assert script.main(["stationary_points.py", "--starts=10", "--iterations=4000", f"--workdir={tmp_path}/new"]) == 0
    with (tmp_path / "new/stationary_points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(rest_points.STRENGTHS) * 3
    gradients = {name: [float(row["leader_gradient"]) for row in rows if row["objective"] == name] for name in
                 ("lsgd", "easgd", "through")}  # fmt: skip
    assert max(gradients["lsgd"]) < 1e-9
    assert max(gradients["easgd"]) > 1e-3
    assert max(gradients["through"]) > 1e-3
    assert sum(int(row["unique"]) for row in rows if row["objective"] == "lsgd") > 5
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        *("stationary_points.csv", "stationary_points.png", "claims.json")
    }


def test_the_claims_fail_where_the_pull_is_to_the_mean(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = lambda base, global_pull, **_: dppf(base, pull=global_pull, push=0.0, period=1)  # noqa: E731
    monkeypatch.setattr(rest_points, "lsgd", broken)
    monkeypatch.setattr(rest_points, "SEARCHES", {"lsgd": ("descent",)})
    with jax.enable_x64(True):
        rows = [row for row, _ in rest_points.search(10, 2000, 0)]
    one_step, at_rest, *_ = script.claims_of(
        rows + [row._replace(objective=o) for row in rows for o in ("easgd", "through")]
    )
    assert one_step.text.startswith("Theorem 1, a test of the library: ")
    assert at_rest.text.startswith("Theorem 1, which follows: where the LSGD objective is stationary")
    assert not one_step.held
    assert not at_rest.held


@pytest.mark.usefixtures("script")
def test_newtons_method_finds_a_saddle_that_no_descent_does() -> None:
    with jax.enable_x64(True):
        start = jnp.full((4, 2), 0.1, float)
        places, moves = rest_points.newton(lambda x: rest_points.move("lsgd", jnp.int32(0), jnp.float64(0.1), x), start)
        last = jax.device_get((places[-1], moves[-1]))
    assert places.shape == moves.shape == (rest_points.NEWTON_STEPS, 4, 2)
    saddle = np.sort(np.roots([4, 0, -4, 0.3]))[1]  # of (x² - 1)² + 0.3 x
    np.testing.assert_allclose(last[0], [[saddle, 0.0]] * 4, atol=1e-9)
    np.testing.assert_allclose(last[1], 0, atol=1e-14)


@pytest.mark.parametrize("argument", ["--starts=0", "--iterations=0", "--seed=-1", "--workdir=/dev/null/x", "extra"])
def test_a_mistake_is_told_in_one_line(script: ModuleType, capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert script.main(["stationary_points.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("stationary_points.py: error: ")
    assert argument.removeprefix("--").partition("=")[0] in err
    assert err.count("\n") == 1
