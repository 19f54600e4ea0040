"""Layer 1, over devices, lanes and both: elections, broadcasts, means."""

import re
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

from lsgd_jax import GROUP, WORKER, broadcast_from_leader, elect_leader
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


DTYPES = {
    "float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16,
    "int32": jnp.int32, "uint8": jnp.uint8, "int8": jnp.int8, "bool": jnp.bool_,
}  # fmt: skip


def trees() -> dict[str, np.ndarray]:
    """What six workers hold: [6, 7] of every dtype."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(scale=40, size=(6, 7))
    return {
        name: np.array(jnp.asarray(numbers if name != "bool" else numbers > 0, dtype)) for name, dtype in DTYPES.items()
    }


@cache
def broadcasts(way: str, wire_dtype: str | None = None, axes: Any = EVERYBODY) -> Any:
    def run(tree: Any, score: jax.Array) -> Any:
        return broadcast_from_leader(tree, elect_leader(score, axes), axes, wire_dtype=wire_dtype)

    compiled = WAYS[way](run)
    return lambda tree, score: jax.device_get(compiled(tree, np.asarray(score, np.float32)))


def bits(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).view(np.uint8)


@every_way
def test_everybody_gets_the_leaders_tree_with_its_dtypes(way: str) -> None:
    tree = trees()
    received = broadcasts(way)(tree, [5, 4, 3, 2, 1, 6])
    for name, leaf in tree.items():
        assert received[name].dtype == leaf.dtype
        np.testing.assert_array_equal(bits(received[name]), bits(np.tile(leaf[4], (6, 1))), err_msg=name)


@every_way
def test_over_one_axis_each_group_gets_its_own_leaders_tree(way: str) -> None:
    tree = trees()
    received = broadcasts(way, axes=WORKER)(tree, [5, 4, 6, 2, 3, 6])
    for name, leaf in tree.items():
        np.testing.assert_array_equal(received[name], leaf[[1, 1, 1, 3, 3, 3]], err_msg=name)


@every_way
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_others_hold_never_enters(way: str, bad: float) -> None:
    tree = trees()
    for name in ("float32", "bfloat16", "float16"):
        tree[name][[0, 1, 3, 4, 5]] = bad
    received = broadcasts(way)(tree, [5, 4, 3, 5, 5, 6])
    for name, leaf in tree.items():
        np.testing.assert_array_equal(received[name], np.tile(leaf[2], (6, 1)), err_msg=name)


@every_way
def test_without_a_leader_each_keeps_its_own_tree(way: str) -> None:
    tree = trees()
    for wire_dtype in (None, "bfloat16"):
        kept = broadcasts(way, wire_dtype)(tree, [NAN] * 6)
        for name, leaf in tree.items():
            np.testing.assert_array_equal(bits(kept[name]), bits(leaf), err_msg=name)


@pytest.mark.parametrize(
    ("way", "wire_dtype"), [*((way, "bfloat16") for way in WAYS), ("mesh", "float16"), ("lanes", "float32")]
)
def test_a_wire_dtype_rounds_wider_floats_for_all_but_the_leader(way: str, wire_dtype: str) -> None:
    tree = trees()
    received = broadcasts(way, wire_dtype)(tree, [5, 4, 3, 0, 1, 6])
    for name, leaf in tree.items():
        wider = name == "float32" and wire_dtype != "float32"
        rounded = leaf[3].astype(jnp.dtype(wire_dtype)).astype(leaf.dtype) if wider else leaf[3]
        assert wider != np.array_equal(rounded, leaf[3]), "the rounding must show"
        reference = np.tile(rounded, (6, 1))
        reference[3] = leaf[3]
        assert received[name].dtype == leaf.dtype
        np.testing.assert_array_equal(received[name], reference, err_msg=name)


@pytest.mark.parametrize("wire_dtype", ["float16", "bfloat16"])
def test_what_is_too_large_for_the_wire_arrives_finite(wire_dtype: str) -> None:
    def run(leaf: jax.Array, score: jax.Array) -> jax.Array:
        return broadcast_from_leader(leaf, elect_leader(score, EVERYBODY), EVERYBODY, wire_dtype=wire_dtype)

    largest = np.full(6, np.finfo(np.float32).max)
    received = WAYS["lanes"](run)(largest, np.arange(6, dtype=np.float32))
    assert received[0] == largest[0]
    np.testing.assert_array_equal(received[1:], np.float32(jnp.finfo(wire_dtype).max))


def sums_on_the_wire(dtype: Any, wire_dtype: str | None) -> list[str]:
    """Types of the arrays of seven numbers that the compiled program sums over devices."""

    def run(leaf: jax.Array, score: jax.Array) -> jax.Array:
        return broadcast_from_leader(leaf, elect_leader(score, EVERYBODY), EVERYBODY, wire_dtype=wire_dtype)

    program = WAYS["mesh"](run).lower(jnp.zeros((6, 7), dtype), jnp.zeros(6)).compile().as_text()
    lines = [line for line in program.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    return [kind for line in lines for kind in re.findall(r"(\w+)\[(?:1,)?7\]", line.split(" all-reduce")[0])]


@pytest.mark.parametrize(
    ("dtype", "wire_dtype", "travels"),
    [
        (jnp.bfloat16, None, "u16"),
        (jnp.float16, None, "u16"),
        (jnp.float32, "bfloat16", "u16"),
        (jnp.float32, "float16", "u16"),
        (jnp.bfloat16, "float16", "u16"),
        (jnp.float32, None, "f32"),
        (jnp.int32, "bfloat16", "s32"),
        (jnp.int8, None, "s8"),
        (jnp.bool_, "bfloat16", "u8"),
    ],
)
def test_narrow_floats_travel_as_integers_of_their_size(dtype: Any, wire_dtype: str | None, travels: str) -> None:
    assert sums_on_the_wire(dtype, wire_dtype) == [travels]


@cache
def means(way: str) -> Any:
    """Over those who take part: of all workers and in each group. And over all, and over nobody."""

    def run(tree: Any, taking_part: jax.Array) -> Any:
        some = [mean(tree, axes, where=taking_part) for axes in (EVERYBODY, WORKER)]
        return [*some, mean(tree, EVERYBODY), mean(tree, EVERYBODY, where=False)]

    return WAYS[way](run)


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


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"score must be a scalar.*\(3,\)"):
        jax.vmap(lambda score: elect_leader(score, WORKER), axis_name=WORKER)(jnp.zeros((2, 3)))
    leader = Leader(jnp.array(0), jnp.array(0.0), jnp.array(True), jnp.array(True))
    for wire_dtype in (jnp.int8, jnp.bool_, "uint16", jnp.complex64):
        with pytest.raises(ValueError, match="wire_dtype"):
            broadcast_from_leader({"x": jnp.zeros(2)}, leader, WORKER, wire_dtype=wire_dtype)
