"""`lsgd` through `periodic`, against the simulation in NumPy, and its arguments."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from lsgd_runs import PLAIN, STALE, assert_same, expected, method, train
from numpy_lsgd import Settings
from regression import GROUPS, STEPS, in_lanes, make_problem

from lsgd_jax import WORKER, lsgd
from lsgd_jax.optimizers.distributed_optimizer import Axes, communications_of

CASES = {
    "no stale pull": PLAIN,
    "stale pulls": STALE,
    "a stale local pull alone": replace(PLAIN, stale_local_pull=0.05),
    "a stale global pull alone": replace(PLAIN, stale_global_pull=0.03),
    "pulls of 1.0": replace(PLAIN, local_pull=1.0, global_pull=1.0),
    "no pull at all": replace(PLAIN, local_pull=0.0, global_pull=0.0),
    "every step, window 1": replace(PLAIN, local_period=1, global_period=1, window=1),
    "a window longer than the run": replace(PLAIN, window=STEPS + 1),
    "one group, periods that do not fit": replace(STALE, groups=1, workers=6, local_period=4),
    "a leader by chance": replace(STALE, election="random"),
    "a soft leader": replace(STALE, temperature=0.1),
    "a leader that is hardly soft": replace(PLAIN, temperature=1e-4),
    "groups of one": replace(STALE, groups=6, workers=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_the_trajectory_is_that_of_the_simulation(settings: Settings) -> None:
    problem = make_problem()
    run = expected(problem, settings)
    assert len({election.rank for election in run.elections}) > 1, "a test in which one worker always leads is weak"
    assert_same(train(problem, settings), run)


def test_by_chance_every_worker_leads_about_as_often() -> None:
    settings = replace(PLAIN, election="random", local_period=1, global_period=1)
    ranks = [election.rank for election in expected(make_problem(), settings).elections if election.group is None]
    assert sorted({*ranks}) == list(range(6))
    assert max(ranks.count(rank) for rank in range(6)) < len(ranks) / 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"election": "loss"},
        {"temperature": -1},
        {"temperature": math.inf},
        {"temperature": 1, "election": "random"},
        {"temperature": 1, "wire_dtype": "int8"},
        {"temperature": 1, "broadcast": "ring"},
    ],
)
def test_elections_that_cannot_be_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"election|temperature"):
        lsgd(optax.sgd(0.1), **arguments)


def test_leaders_stay_where_they_are_and_a_pull_of_one_makes_others_equal() -> None:
    problem = make_problem()
    settings = CASES["pulls of 1.0"]
    run = expected(problem, settings)
    trajectory = train(problem, settings)
    for election in run.elections:
        if election.level == "global":
            at_leader = trajectory["w"][election.rank, election.step - 1]
            np.testing.assert_allclose(trajectory["w"][:, election.step - 1], at_leader[None].repeat(6, 0), atol=1e-6)


@pytest.mark.slow
def test_in_one_group_nothing_local_has_any_effect() -> None:
    problem = make_problem()
    one = CASES["one group, periods that do not fit"]
    other = replace(one, local_pull=0.9, local_period=7, stale_local_pull=0.4)
    for name, leaf in train(problem, one).items():
        np.testing.assert_array_equal(leaf, train(problem, other)[name])


def test_equal_scores_elect_the_lowest_rank() -> None:
    # The loss sees the biases alone, which are equal and stay so under pulls of one half; the weights are not.
    problem = make_problem()
    inputs, targets = np.zeros_like(problem.batches.inputs), np.zeros_like(problem.batches.targets)
    problem = problem._replace(
        initial=problem.initial | {"b": np.ones((6, 2), np.float32)},
        batches=problem.batches._replace(inputs=inputs, targets=targets),
    )
    settings = replace(PLAIN, local_pull=0.5, global_pull=0.5)
    run = expected(problem, settings)
    assert {(election.group, election.rank) for election in run.elections} == {(0, 0), (1, 3), (None, 0)}
    assert_same(train(problem, settings), run)


@pytest.mark.slow
def test_what_travels_as_bfloat16_is_rounded_for_everybody_but_the_leader() -> None:
    problem = make_problem()
    run = expected(problem, STALE, wire=lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(leaf.dtype))
    assert np.abs(expected(problem, STALE).trajectory["w"] - run.trajectory["w"]).max() > 1e-4, "it must show"
    assert_same(train(problem, STALE, "bfloat16"), run)


@pytest.mark.slow
def test_a_momentum_is_not_touched_by_a_pull() -> None:
    params = {"w": jnp.arange(6.0)}
    optimizer = method(PLAIN)
    state = optimizer.init(params, Axes())
    grads = {"w": jnp.ones(6)}
    _, state = optimizer.update(grads, state, params, value=1.0)

    def communicate(x: jax.Array, score: jax.Array) -> Any:
        outcome = optimizer.communications[0].apply({"w": x}, state, score, (WORKER,))
        return outcome.state.base, outcome.params["w"]

    base, moved = jax.vmap(communicate, axis_name=WORKER)(
        jnp.stack([params["w"], params["w"] + 1]), jnp.array([2.0, 1])
    )
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, np.stack([old, old])), base, state.base)
    np.testing.assert_allclose(moved[0], params["w"] + 0.3, rtol=1e-6)


def test_no_copy_of_a_leader_is_kept_without_a_stale_pull() -> None:
    params = {"w": jnp.zeros(1000)}
    sgd = optax.sgd(0.1)

    def kept(**pulls: float) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(lsgd(sgd, **pulls).init(params, Axes())))

    assert kept() < 1000
    assert kept(stale_local_pull=0.1) < 2 * 4000
    assert kept(stale_local_pull=0.1, stale_global_pull=0.1) >= 2 * 4000


def test_the_center_is_the_mean_of_workers_that_are_finite_over_all_groups() -> None:
    optimizer = lsgd(optax.sgd(0.1))
    w = np.arange(12, dtype=np.float32).reshape(6, 2)
    w[1, 0], w[5, 1] = np.nan, np.inf
    center = in_lanes(lambda x: optimizer.center({"w": x}, optimizer.init({"w": x}, Axes()), Axes()), GROUPS)(w)
    np.testing.assert_allclose(center["w"], np.tile(w[[0, 2, 3, 4]].mean(axis=0), (6, 1)), rtol=1e-6)


PULLS = ("local_pull", "global_pull", "stale_local_pull", "stale_global_pull")
COUNTS = ("local_period", "global_period", "window")
BAD_ARGUMENTS = [
    *((name, value) for name in PULLS for value in (-0.1, 1.1, math.nan)),
    *((name, value) for name in COUNTS for value in (0, -1, 2.5, math.nan, math.inf)),
    ("wire_dtype", jnp.int16),
    ("broadcast", "tree"),
]


@pytest.mark.parametrize(("name", "value"), BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        lsgd(optax.sgd(0.1), **{name: value})


@pytest.mark.parametrize("name", PULLS)
def test_a_schedule_is_refused_as_a_pull(name: str) -> None:
    # Nothing counts the updates for it: taken, it would fail far away or stay at its first value.
    with pytest.raises(ValueError, match=name):
        lsgd(optax.sgd(0.1), **{name: optax.linear_schedule(0.0, 1.0, 10)})


def test_arguments_at_their_limits_are_taken() -> None:
    lsgd(optax.sgd(0.1), local_pull=0, global_pull=1, local_period=1, global_period=1, window=1, wire_dtype="bfloat16")


def test_a_global_period_must_be_a_multiple_only_where_there_are_several_groups() -> None:
    optimizer = lsgd(optax.sgd(0.1), local_period=4, global_period=6)
    with pytest.raises(ValueError, match="global_period=6 is no multiple of local_period=4"):
        communications_of(optimizer, groups=2)
    assert [due.level for due in communications_of(optimizer, groups=1)] == ["global"]
    fitting = lsgd(optax.sgd(0.1), local_period=3, global_period=6)
    assert [(due.level, due.period) for due in communications_of(fitting, groups=2)] == [("local", 3), ("global", 6)]
