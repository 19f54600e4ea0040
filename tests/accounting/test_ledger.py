"""The ledger, against the compiled train step and `periodic`, and against figures worked out by hand."""

from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from method_cases import TYPICAL
from regression import QUICK, Problem, laid_out, loss_of, make_problem, on_mesh, scanned
from thorough import mostly
from train_steps import REGRESSION

from lsgd_jax import (
    Axes,
    DistributedOptimizer,
    Ledger,
    Topology,
    data_parallel,
    independent,
    init_state,
    ledger,
    lsgd,
    make_train_step,
    periodic,
)
from lsgd_jax.accounting import compiled as hlo

STEPS = 12
SGD = optax.sgd(0.05, momentum=0.9)
LSGD = partial(lsgd, SGD, local_period=2, global_period=4)
METHODS: dict[str, tuple[DistributedOptimizer, int]] = {
    "lsgd, 2 groups": (LSGD(), 2),
    "lsgd, 1 group": (LSGD(), 1),
    "lsgd, bfloat16 and stale pulls": (
        LSGD(wire_dtype=jnp.bfloat16, stale_local_pull=0.1, stale_global_pull=0.1),
        2,
    ),
    "lsgd around a ring, int8": (LSGD(broadcast="ring", wire_dtype=jnp.int8), 2),
    "data_parallel": (data_parallel(SGD), 2),
    "local_sgd, 1 group": (TYPICAL["local_sgd"].optimizer, 1),
} | {name: (case.optimizer, 2) for name, case in TYPICAL.items()}
# What is sent in a way of its own.
MOST = ("lsgd, 2 groups", "lsgd around a ring, int8", "data_parallel", "downpour", "diloco", "dppf", "independent")
as_compiled = partial(hlo.as_compiled, devices=8)
# Batch statistics, a count of them, and a flag.
MODEL_STATE = {"mean": jnp.zeros(7), "count": jnp.zeros([], jnp.int32), "seen": jnp.zeros([], jnp.bool_)}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(count=8, steps=STEPS)


def one_of(tree: Any) -> Any:
    """One worker's part of a tree of arrays [workers, ...]."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def assert_same(program: str, expected: Ledger, steps: int, start: Counter[hlo.Sent] | None = None) -> None:
    """In each branch is one level of the ledger; outside of branches are the start and the gradients of all steps."""
    levels = {entry.level: entry.collectives for entry in expected.entries}
    gradients = as_compiled(levels.pop("gradient", ()), steps)
    outside, branches = hlo.sent(program)
    assert outside == gradients + (start or Counter())
    assert sorted(branches, key=str) == sorted(map(as_compiled, levels.values()), key=str)


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(METHODS, *MOST, "lsgd, bfloat16 and stale pulls", "easgd", "local_sgd"))
def test_it_is_what_the_compiled_train_step_sends(problem: Problem, name: str) -> None:
    optimizer, groups = METHODS[name]
    topology = Topology(groups, 8 // groups)
    assert topology.mesh.size == 8

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        del key
        return loss_of(params, batch), model_state

    params = one_of(problem.initial)
    state = init_state(optimizer, topology, lambda key: (params, MODEL_STATE), jax.random.key(0))
    data = jax.device_put(laid_out(problem.batches, groups), topology.per_worker)
    train_step = make_train_step(optimizer, topology, loss, REGRESSION)
    program = train_step.lower(state, data, jnp.int32(1)).compile(QUICK).as_text()
    sends = ledger(optimizer, params, MODEL_STATE, groups=groups, workers=8 // groups)
    assert_same(program, sends, 1)
    assert bool(sends.entries) == (name != "independent")


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(METHODS, *MOST, "easgd", "local_sgd, 1 group"))
def test_it_is_what_a_compiled_loop_around_periodic_sends(problem: Problem, name: str) -> None:
    optimizer, groups = METHODS[name]
    loop = on_mesh(partial(scanned, periodic(optimizer)), groups, 8 // groups)
    program = loop.lower(problem.initial, problem.batches).compile(QUICK).as_text()
    sends = ledger(optimizer, one_of(problem.initial), groups=groups, workers=8 // groups)
    assert_same(program, sends, STEPS, as_compiled(sends.start))
    assert bool(sends.start) == (name in ("easgd", "eamsgd", "diloco"))


@pytest.mark.parametrize("name", mostly(["lsgd, 2 groups", *TYPICAL], "lsgd, 2 groups", "easgd", "eamsgd", "local_sgd"))
def test_center_is_what_the_compiled_center_sends(problem: Problem, name: str) -> None:
    optimizer, _ = METHODS[name]
    sends = ledger(optimizer, one_of(problem.initial), groups=2, workers=4)
    mapped = on_mesh(lambda params: optimizer.center(params, optimizer.init(params, Axes()), Axes()), 2, 4)
    outside, _ = hlo.sent(mapped.lower(problem.initial).compile(QUICK).as_text())
    assert outside == as_compiled(sends.start + sends.center) != Counter()
    assert bool(sends.center) != bool(sends.start)


PARAMS = {"w": jnp.zeros((5, 2)), "b": jnp.zeros(2), "count": jnp.zeros(3, jnp.int32)}
BYTES = 4 * (10 + 2)  # a count is not averaged and pulled nowhere: it stays where it is


def sent(method: Any, groups: int, workers: int, steps: int) -> int:
    shapes = jax.eval_shape(lambda: PARAMS)
    from_arrays, from_shapes = (ledger(method, tree, groups=groups, workers=workers) for tree in (PARAMS, shapes))
    assert from_arrays == from_shapes
    return from_shapes.bytes_sent(steps)


def around(workers: int, size: int) -> int:
    """What all of them send in an all-reduce: each sends 2 (workers - 1) parts of 1/workers each."""
    return 2 * (workers - 1) * size


def test_bytes_of_several_groups_are_those_of_every_local_and_global_communication() -> None:
    method = lsgd(SGD, local_period=4, global_period=8)
    # A score and a rank of 4 bytes each, then the leader's parameters.
    local, everywhere = around(3, 8 + BYTES), around(6, 8 + BYTES)
    for steps, times in {0: (0, 0), 3: (0, 0), 4: (1, 0), 7: (1, 0), 8: (2, 1), 17: (4, 2), 800: (200, 100)}.items():
        assert sent(method, 2, 3, steps) == times[0] * 2 * local + times[1] * everywhere


def test_bytes_of_one_group_are_those_of_global_communications_alone() -> None:
    method = lsgd(SGD, local_period=4, global_period=8)
    assert [sent(method, 1, 6, steps) for steps in (7, 8, 17)] == [n * around(6, 8 + BYTES) for n in (0, 1, 2)]
    assert sent(method, 1, 1, 100) == 0


def test_what_travels_narrower_counts_as_narrower_but_model_state_as_it_is() -> None:
    method = lsgd(SGD, global_period=8, wire_dtype=jnp.bfloat16)
    assert sent(method, 1, 6, 8) == around(6, 8 + 2 * (10 + 2))
    with_state = ledger(method, PARAMS, {"count": jnp.zeros(3, jnp.int32)}, groups=1, workers=6)
    assert with_state.bytes_sent(8) == around(6, 8 + 2 * (10 + 2) + 4 * 3)


def test_data_parallel_sends_every_gradient_around_the_ring_twice() -> None:
    assert sent(data_parallel(SGD), 2, 3, 17) == 17 * around(6, BYTES)
    assert sent(data_parallel(SGD), 1, 1, 17) == 0


def test_what_one_worker_sends_is_told_by_level() -> None:
    local, everywhere = ledger(LSGD(), PARAMS, groups=2, workers=4).entries
    assert (local.level, local.period, everywhere.level, everywhere.period) == ("local", 2, "global", 4)
    assert local.sent == 2 * 3 / 4 * (8 + BYTES)
    assert everywhere.sent == 2 * 7 / 8 * (8 + BYTES)
    # The score, the rank and the leader's tree.
    assert (local.messages, everywhere.messages) == (3 * 2 * 3, 3 * 2 * 7)
    assert {one.axes for one in local.collectives} == {("worker",)}
    assert {one.axes for one in everywhere.collectives} == {("group", "worker")}


def test_the_table_has_the_sums() -> None:
    table = ledger(lsgd(SGD, wire_dtype="bfloat16"), PARAMS, groups=2, workers=4).table()
    rows = [line.split() for line in table.splitlines()]
    assert ["local", "16", "all-reduce", "int32", "2", "12", "42"] in rows, "the rank, and the parameters"
    assert ["global", "64", "all-reduce", "int32", "2", "28", "49"] in rows
    assert ["global", "64", "all", "3", "42", "56"] in rows


def test_a_thousand_workers_need_no_devices() -> None:
    (gradient,) = ledger(data_parallel(SGD), PARAMS, groups=128, workers=8).entries
    assert gradient.sent == 2 * 1023 / 1024 * BYTES
    assert gradient.messages == 2 * 1023


def test_16_bit_numbers_are_summed_in_a_message_of_32_bits_with_the_others() -> None:
    halves = {"w": jnp.zeros(5, jnp.bfloat16), "b": jnp.zeros(2)}
    (gradient,) = ledger(data_parallel(SGD), halves, groups=2, workers=4).entries
    assert gradient.sent == 2 * 7 / 8 * 4 * (5 + 2)
    assert gradient.messages == 2 * 7


def test_periods_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="global_period=6 is no multiple of local_period=4"):
        ledger(lsgd(SGD, local_period=4, global_period=6), PARAMS, groups=2, workers=4)


def test_an_update_that_communicates_is_refused() -> None:
    """It has kept the axes that only `init` is given."""
    kept: list[Axes] = []
    plain = independent(SGD)

    def init(params: Any, axes: Axes) -> Any:
        kept.append(axes)
        return plain.init(params, axes)

    def update(grads: Any, state: Any, params: Any, **extra: Any) -> Any:
        return plain.update(jax.lax.pmean(grads, kept[-1].all), state, params, **extra)

    method = plain._replace(init=init, update=update)
    told = r"update communicates \(all-reduce over group, worker\), in every step: use a communication, or reduce_grad"
    with pytest.raises(ValueError, match=told):
        ledger(method, PARAMS, groups=2, workers=4)
