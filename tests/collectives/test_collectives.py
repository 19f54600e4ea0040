"""Elections and means, over devices, lanes and both."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regression import GROUPS, WORKERS, in_lanes, on_mesh, on_mesh_of_lanes

from lsgd_jax import GROUP, WORKER, elect_leader
from lsgd_jax.collectives import Leader, mean

NAN, INF = np.nan, np.inf
EVERYBODY = (GROUP, WORKER)
AXES = [WORKER, GROUP, (WORKER,), EVERYBODY, (WORKER, GROUP)]
Mapping = Callable[[Callable[..., Any]], Callable[..., Any]]
WAYS: dict[str, Mapping] = {
    "mesh": partial(on_mesh, groups=GROUPS, workers=WORKERS),
    "lanes": partial(in_lanes, groups=GROUPS),
    "mesh of lanes": partial(on_mesh_of_lanes, groups=GROUPS),
}
every_way = pytest.mark.parametrize("way", WAYS)


@cache
def elections(way: str) -> Any:
    """Six scores, of two groups of three, to the outcomes over each of `AXES`."""
    return WAYS[way](lambda score: [elect_leader(score, axes) for axes in AXES])


def elect(way: str, scores: Any, axes: Any = EVERYBODY) -> Leader:
    """The outcome on each of the six workers, as NumPy arrays."""
    return jax.device_get(elections(way)(np.asarray(scores, np.float32))[AXES.index(axes)])


def expected_ranks(scores: np.ndarray) -> np.ndarray:
    """By `np.argmin`, along the last axis: the rank of the leader, or -1."""
    counted = np.where(np.isfinite(scores), scores, np.inf)
    return np.where(np.isfinite(counted).any(axis=-1), counted.argmin(axis=-1), -1)


@every_way
def test_the_lowest_score_wins_and_ranks_are_row_major(way: str) -> None:
    for winner in range(6):
        scores = np.full(6, 2.0)
        scores[winner] = 1.0
        leader = elect(way, scores)
        np.testing.assert_array_equal(leader.rank, np.full(6, winner))
        np.testing.assert_array_equal(leader.score, np.ones(6, np.float32))
        np.testing.assert_array_equal(leader.is_leader, np.arange(6) == winner)
        assert leader.valid.all()
        assert (leader.rank.dtype, leader.is_leader.dtype, leader.valid.dtype) == (np.int32, np.bool_, np.bool_)


@every_way
def test_over_one_axis_each_group_has_a_leader_of_its_own(way: str) -> None:
    for axes in (WORKER, (WORKER,)):
        leader = elect(way, [3, 1, 2, 6, 5, 4], axes)
        np.testing.assert_array_equal(leader.rank, [1, 1, 1, 2, 2, 2])
        np.testing.assert_array_equal(leader.score, [1, 1, 1, 4, 4, 4])
        np.testing.assert_array_equal(leader.is_leader, [False, True, False, False, False, True])
    across = elect(way, [3, 1, 2, 2, 5, 4], GROUP)
    np.testing.assert_array_equal(across.rank, [1, 0, 0, 1, 0, 0])


@every_way
def test_the_outermost_axis_comes_first(way: str) -> None:
    for winner in range(6):
        scores = np.full(6, 2.0)
        scores[winner] = 1.0
        j, i = divmod(winner, WORKERS)
        leader = elect(way, scores, (WORKER, GROUP))
        np.testing.assert_array_equal(leader.rank, np.full(6, i * GROUPS + j))
        np.testing.assert_array_equal(leader.is_leader, np.arange(6) == winner)


@every_way
def test_ties_go_to_the_lowest_rank(way: str) -> None:
    leader = elect(way, [5, 4, 3, 3, 4, 3])
    np.testing.assert_array_equal(leader.rank, np.full(6, 2))
    assert leader.is_leader.sum() == 1
    np.testing.assert_array_equal(elect(way, np.zeros(6)).rank, np.zeros(6))
    np.testing.assert_array_equal(elect(way, [0, 0, 0, 2, 1, 1], WORKER).rank, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(elect(way, [1, 0.0, -0.0, 1, 1, 1]).rank, np.full(6, 1))


@every_way
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_score_that_is_not_finite_cannot_win(way: str, bad: float) -> None:
    leader = elect(way, [bad, 7, bad, 6, bad, 8])
    np.testing.assert_array_equal(leader.rank, np.full(6, 3))
    np.testing.assert_array_equal(leader.score, np.full(6, 6))
    assert leader.valid.all()


@every_way
def test_without_a_finite_score_nobody_is_elected(way: str) -> None:
    leader = elect(way, [NAN, INF, -INF, NAN, NAN, INF])
    np.testing.assert_array_equal(leader.rank, np.full(6, -1))
    np.testing.assert_array_equal(leader.score, np.full(6, INF))
    assert not leader.is_leader.any()
    assert not leader.valid.any()
    one_group = elect(way, [NAN, INF, -INF, NAN, 2, INF], WORKER)
    np.testing.assert_array_equal(one_group.rank, [-1, -1, -1, 1, 1, 1])
    np.testing.assert_array_equal(one_group.valid, [False] * 3 + [True] * 3)


numbers = st.floats(width=32, allow_subnormal=False)
few_numbers = st.sampled_from([0.0, -0.0, 1.0, -3.0, NAN, INF, -INF])


@every_way
@settings(max_examples=40, deadline=None)
@given(scores=st.one_of(st.lists(few_numbers, min_size=6, max_size=6), st.lists(numbers, min_size=6, max_size=6)))
def test_an_election_is_an_argmin_over_the_finite_scores(way: str, scores: list[float]) -> None:
    table = np.array(scores, np.float32)
    for axes, grouped in ((EVERYBODY, table[None]), (WORKER, table.reshape(GROUPS, WORKERS))):
        leader = elect(way, table, axes)
        ranks = expected_ranks(grouped)
        np.testing.assert_array_equal(
            leader.rank.reshape(grouped.shape), np.broadcast_to(ranks[:, None], grouped.shape)
        )
        places = np.arange(grouped.shape[1])[None] == ranks[:, None]
        np.testing.assert_array_equal(leader.is_leader.reshape(grouped.shape), places)
        np.testing.assert_array_equal(leader.valid.reshape(grouped.shape).any(axis=1), ranks >= 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_scores_of_other_dtypes_are_compared_as_float32(dtype: Any) -> None:
    leader = in_lanes(lambda score: elect_leader(score, EVERYBODY), GROUPS)(jnp.array([5, 4, 3, 6, 3, 7], dtype))
    np.testing.assert_array_equal(leader.rank, np.full(6, 2))
    assert leader.score.dtype == jnp.float32


@cache
def means(way: str) -> Any:
    """Over those who take part: of all workers and in each group. And over all, and over nobody."""

    def run(tree: Any, taking_part: jax.Array) -> Any:
        some = [mean(tree, axes, where=taking_part) for axes in (EVERYBODY, WORKER)]
        return [*some, mean(tree, EVERYBODY), mean(tree, EVERYBODY, where=False)]

    return WAYS[way](run)


@pytest.mark.slow
@every_way
def test_a_mean_is_taken_over_those_who_take_part(way: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
    taking_part = np.array([True, False, True, True, False, False])
    x[1], x[4] = NAN, INF
    of_all, in_groups, *_ = means(way)({"full": x, "half": jnp.asarray(x, jnp.bfloat16)}, taking_part)
    np.testing.assert_allclose(of_all["full"], np.tile(x[taking_part].mean(axis=0), (6, 1)), rtol=1e-6)
    reference = np.stack([x[[0, 2]].mean(axis=0)] * 3 + [x[3]] * 3)
    np.testing.assert_allclose(in_groups["full"], reference, rtol=1e-6)
    np.testing.assert_allclose(in_groups["half"].astype(jnp.float32), reference, rtol=1e-2)


@every_way
def test_a_mean_of_all_keeps_dtypes_and_one_of_nobody_is_nan(way: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    tree = {"full": x, "half": jnp.asarray(x, jnp.bfloat16)}
    *_, everybody, nobody = means(way)(tree, np.ones(6, np.bool_))
    for name, leaf in tree.items():
        assert everybody[name].dtype == nobody[name].dtype == leaf.dtype
        np.testing.assert_array_equal(everybody[name].astype(jnp.float32), np.tile([5.0, 6.0], (6, 1)))
        assert np.isnan(nobody[name].astype(jnp.float32)).all()


def test_leaves_that_are_no_numbers_to_average_stay_each_workers_own() -> None:
    keys = jax.random.split(jax.random.key(0), 6)
    tree = {"count": jnp.arange(6), "flag": jnp.arange(6) > 2, "key": keys, "z": 1j * jnp.arange(6)}
    everybody = in_lanes(lambda tree: mean(tree, EVERYBODY), GROUPS)(tree)
    assert all((everybody[name] == leaf).all() for name, leaf in tree.items() if name != "z")
    np.testing.assert_allclose(everybody["z"], np.full(6, 2.5j))


def test_axes_that_are_not_bound_are_named() -> None:
    for call in (lambda x: mean(x, EVERYBODY), lambda x: elect_leader(x, EVERYBODY)):
        with pytest.raises(ValueError, match=r"axis 'group' is not bound: .*Axes\(group=\(\)\)"):
            jax.vmap(call, axis_name=WORKER)(jnp.zeros(2))


def test_a_score_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score must be a scalar.*\(3,\)"):
        jax.vmap(lambda score: elect_leader(score, WORKER), axis_name=WORKER)(jnp.zeros((2, 3)))
