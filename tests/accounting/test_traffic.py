"""The collectives that are read from a trace, against those of the compiled program."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec
from regression import mesh_of

from lsgd_jax import GROUP, WORKER
from lsgd_jax.accounting import compiled as hlo
from lsgd_jax.accounting.traffic import collectives_of

EVERYWHERE = (GROUP, WORKER)
RING = [(rank, (rank + 1) % 8) for rank in range(8)]
ARGUMENTS = (jnp.zeros((64, 3)), jnp.zeros(8, jnp.int8), jnp.zeros(5, jnp.int32))


def step_of_a_ring(_: Any, x: jax.Array) -> jax.Array:
    return lax.ppermute(x + x, EVERYWHERE, RING)


# Each is a function of one worker, of floats [64, 3], bytes [8] and integers [5].
FUNCTIONS = {
    "sums over all": lambda x, y, z: (lax.psum(x, EVERYWHERE), lax.psum(z, EVERYWHERE)),
    "a tree": lambda x, y, z: lax.psum({"x": x, "y": [y, z]}, WORKER),
    "a mean inside a group": lambda x, y, z: lax.pmean(x, WORKER),
    "extremes across groups": lambda x, y, z: (lax.pmin(x, GROUP), lax.pmax(z, GROUP)),
    "an all_gather": lambda x, y, z: (lax.all_gather(x, WORKER), lax.all_gather(y, EVERYWHERE, tiled=True)),
    "an all-to-all": lambda x, y, z: (lax.all_to_all(x, WORKER, 0, 0, tiled=True), lax.all_to_all(y, EVERYWHERE, 0, 0)),
    "a reduce-scatter": lambda x, y, z: (lax.psum_scatter(x, WORKER, tiled=True), lax.psum_scatter(x[:8], EVERYWHERE)),
    "a ring in a fori_loop": lambda x, y, z: lax.fori_loop(0, 9, step_of_a_ring, y),
    "a ring in a scan": lambda x, y, z: lax.scan(lambda y, _: (step_of_a_ring(0, y), y), y, length=9),
    "a loop in a loop": lambda x, y, z: lax.fori_loop(0, 3, lambda _, y: lax.fori_loop(0, 5, step_of_a_ring, y), y),
    "an incomplete permutation": lambda x, y, z: lax.ppermute(x, WORKER, [(0, 1), (2, 3), (3, 2)]),
    "inside jit": lambda x, y, z: jax.jit(lambda x: lax.psum(x, WORKER))(x),
    "inside checkpoint": lambda x, y, z: jax.checkpoint(lambda x: lax.psum(x, WORKER))(x),
    "in both branches": lambda x, y, z: lax.cond(
        z[0] > 0, lambda x: lax.pmax(x, WORKER), lambda x: lax.pmax(x * 2, WORKER), x
    ),
    "nothing": lambda x, y, z: x + lax.axis_index(EVERYWHERE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_kinds_sizes_and_counts_are_those_of_the_compiled_program(name: str) -> None:
    function = FUNCTIONS[name]
    traced = hlo.as_compiled(collectives_of(function, *ARGUMENTS, groups=2, workers=4), devices=8)

    def of_device(*args: jax.Array) -> Any:
        # The argument differs on each device, or the compiler would compute on one for all.
        return jax.tree.map(lambda x: x[None], function(*(x[0] for x in args)))

    each = PartitionSpec(EVERYWHERE)
    mapped = jax.shard_map(of_device, mesh=mesh_of(2, 4), in_specs=each, out_specs=each, check_vma=False)
    shapes = [jax.ShapeDtypeStruct((8, *x.shape), x.dtype) for x in ARGUMENTS]
    outside, branches = hlo.sent(jax.jit(mapped).lower(*shapes).compile().as_text())
    assert outside + sum(branches[:1], Counter()) == traced
    assert all(branch == branches[0] for branch in branches)
    assert bool(traced) == (name != "nothing")


def test_a_worker_sends_what_the_algorithms_say() -> None:
    def function(x: jax.Array) -> Any:  # 48 bytes
        everybody = (
            lax.psum(x, EVERYWHERE),
            lax.all_gather(x, EVERYWHERE),
            lax.psum_scatter(x, EVERYWHERE, tiled=True),
        )
        return (*everybody, lax.ppermute(x, WORKER, [(0, 1)]), lax.psum(x, GROUP))

    sent = collectives_of(function, jnp.zeros(12), groups=3, workers=4)
    assert [(one.kind, one.bytes, one.workers, one.senders) for one in sent] == [
        ("all-reduce", 48, 12, 12),
        ("all-gather", 48, 12, 12),
        ("reduce-scatter", 48, 12, 12),
        ("collective-permute", 48, 4, 1),
        ("all-reduce", 48, 3, 3),
    ]
    assert [one.sent for one in sent] == [2 * 11 * 4, 11 * 48, 11 * 4, 48, 2 * 2 * 16]
    assert [one.messages for one in sent] == [22, 11, 11, 1, 4]
    assert [one.sent_together for one in sent] == [12 * 88, 12 * 528, 12 * 44, 48, 3 * 64]


def test_a_worker_alone_sends_nothing() -> None:
    def function(x: jax.Array) -> Any:
        everybody = lax.psum(x, EVERYWHERE), lax.all_gather(x, EVERYWHERE), lax.psum_scatter(x, EVERYWHERE)
        return *everybody, lax.ppermute(x, EVERYWHERE, [(0, 0)])

    for one in collectives_of(function, jnp.zeros(1), groups=1, workers=1):
        assert (one.sent, one.messages, one.sent_together) == (0, 0, 0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 1000))
def test_an_all_reduce_costs_what_its_two_halves_cost(groups: int, workers: int, length: int) -> None:
    size = groups * workers

    def halves(x: jax.Array) -> jax.Array:
        return lax.all_gather(lax.psum_scatter(x, EVERYWHERE, tiled=True), EVERYWHERE, tiled=True)

    x = jax.ShapeDtypeStruct((size * length,), jnp.float32)
    (whole,) = collectives_of(lambda x: lax.psum(x, EVERYWHERE), x, groups=groups, workers=workers)
    scatter, gather = collectives_of(halves, x, groups=groups, workers=workers)
    assert whole.sent_together == scatter.sent_together + gather.sent_together
    assert whole.messages == scatter.messages + gather.messages


REFUSED = {
    "loop of unknown length": lambda x: lax.while_loop(lambda x: x[0] < 9, lambda x: lax.psum(x, WORKER), x),
    "loop of unknown length: ": lambda x: lax.fori_loop(0, x.astype(int)[0], lambda _, x: lax.psum(x, WORKER), x),
    "only some branches": lambda x: lax.cond(x[0] > 0, lambda x: lax.psum(x, WORKER), lambda x: x, x),
    "axis_index_groups": lambda x: lax.psum(x, WORKER, axis_index_groups=[[0, 1], [2, 3]]),
    "ragged_all_to_all is no collective that can be counted": lambda x: lax.ragged_all_to_all(
        x, x, *[jnp.zeros(4, jnp.int32)] * 4, axis_name=WORKER
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_counted_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=reason.removesuffix(": ")):
        collectives_of(REFUSED[reason], jnp.zeros(4), groups=2, workers=4)
