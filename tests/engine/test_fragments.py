"""Methods whose parameters communicate part by part: in NumPy's trajectory, on any devices, with workers lost."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lsgd_runs import SGD, method, optax_sgd
from method_cases import Case
from numpy_fragments import Fragments
from numpy_lsgd import Faults, Reseed, Settings
from numpy_lsgd import Sgd as NumpySgd
from numpy_lsgd import simulate as simulate_lsgd
from numpy_methods import simulate
from regression import QUICK, in_lanes, local_step, make_problem, numpy_loss_and_grad, with_faults
from thorough import thorough
from train_steps import REGRESSION, STEPS, assert_sends_what_the_ledger_says, faulty_loss, run

from lsgd_jax import Axes, Topology, data_parallel, fragments, ledger, lsgd, make_train_step, periodic
from lsgd_jax.optimizers.fragments import parts_of

PROBLEM = make_problem(count=6, steps=STEPS)
PARTS = [["b"], ["w"]]
LSGD = Settings(groups=2, workers=3, local_pull=0.3, global_pull=0.2, local_period=2, global_period=4,
                stale_local_pull=0.05, stale_global_pull=0.03, window=4)  # fmt: skip
CASES = {
    "local_sgd": Case("local_sgd", {"local_period": 2, "global_period": 4}),
    "easgd": Case("easgd", {"beta": 0.43, "period": 4}),
    "eamsgd": Case("eamsgd", {"momentum": 0.7, "beta": 0.5, "period": 2}, NumpySgd(0.02, weight_decay=0.05)),
    "downpour": Case("downpour", {"period": 4}, NumpySgd(0.002, momentum=0.9, nesterov=True)),
    "diloco": Case("diloco", {"outer": NumpySgd(0.3, 0.5, nesterov=True), "period": 6}),
    "grawa": Case("grawa", {"pull": 0.4, "period": 4, "window": 4}),
    "dppf": Case("dppf", {"pull": 0.4, "push": 0.7, "period": 2}),
}
GROUP_LOST = {(33, rank): ("b",) for rank in (3, 4, 5)}
LOST = Faults(leaves={(6, 1): ("b",), (20, 3): ("w",), (21, 1): ("b", "w")} | GROUP_LOST)
FAULTS = {"nobody is lost": Faults(), "workers are lost": LOST}


@cache
def compiled(name: str, devices: int) -> Any:
    cut = fragments(method(LSGD) if name == "lsgd" else CASES[name].optimizer, 2)
    topology = Topology(2, 3, jax.devices()[:devices])
    assert topology.mesh.size == min(devices, 6)
    return cut, topology, make_train_step(cut, topology, faulty_loss, REGRESSION, compiler_options=QUICK)


@cache
def expected(name: str, faults: str) -> tuple[Any, list[Reseed]]:
    """(trajectory, restarts) of NumPy."""
    gradient = numpy_loss_and_grad(PROBLEM, 3)
    if name == "lsgd":
        how: dict[str, Any] = {"faults": FAULTS[faults], "reseed": True, "fragments": PARTS}
        found = simulate_lsgd(PROBLEM.starts, gradient, LSGD, SGD, STEPS, **how)
        return found.trajectory, found.reseeds
    team: Any = Fragments(CASES[name].team(PROBLEM, reseed=True), PARTS)
    of_all = simulate(team, gradient, STEPS, faults=FAULTS[faults])
    return of_all.trajectory, of_all.restarts


DEVICES: list[Any] = [
    *((name, 1) for name in ("lsgd", "local_sgd", "easgd", "downpour", "diloco", "grawa")),
    *(thorough(name, 1) for name in ("eamsgd", "dppf")),
    ("lsgd", 8),
    thorough("lsgd", 2),
    thorough("local_sgd", 8),
]


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize(("name", "devices"), DEVICES)
def test_the_trajectory_and_the_restarts_are_those_of_numpy(name: str, devices: int, faults: str) -> None:
    reference, restarts = expected(name, faults)
    trajectory, reports, _ = run(with_faults(PROBLEM, FAULTS[faults]), compiled(name, devices))
    assert sorted(trajectory) == list(range(1, STEPS + 1))
    for step, params in trajectory.items():
        for leaf, values in params.items():
            np.testing.assert_allclose(values, reference[leaf][step - 1], rtol=0, atol=1e-5)
    told = [
        Reseed(step, int(rank))
        for step, report in reports
        for news in report.elections.values()
        for rank in np.flatnonzero(news.restarted)
    ]
    assert sorted(told) == sorted(restarts)
    assert bool(restarts) == (faults != "nobody is lost")


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [3, 64])
def test_where_calls_are_cut_changes_nothing(cuts: int) -> None:
    reference, _ = expected("lsgd", "nobody is lost")
    trajectory, _, _ = run(PROBLEM, compiled("lsgd", 1), cuts=cuts)
    assert set(trajectory) >= {2, 3, 4, 6, STEPS}
    for step, params in trajectory.items():
        np.testing.assert_allclose(params["w"], reference["w"][step - 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["lsgd", "diloco"])
def test_the_transform_for_own_loops_does_the_same_and_a_lost_worker_stays_out_of_it(name: str) -> None:
    faults = Faults(leaves={(5, 1): ("w",)})
    gradient = numpy_loss_and_grad(PROBLEM, 3)
    if name == "lsgd":
        reference = simulate_lsgd(PROBLEM.starts, gradient, LSGD, SGD, STEPS, faults=faults, fragments=PARTS).trajectory
    else:
        team: Any = Fragments(CASES[name].team(PROBLEM), PARTS)
        reference = simulate(team, gradient, STEPS, faults=faults).trajectory
    transform = periodic(compiled(name, 1)[0])

    def worker(params: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            carry = local_step(transform, *carry, batch)
            return carry, carry[0]

        return jax.lax.scan(step, (params, transform.init(params)), batches)[1]

    broken = with_faults(PROBLEM, faults)
    trajectory = in_lanes(worker, 2)(broken.initial, broken.batches)
    for leaf, values in trajectory.items():
        ours, theirs = np.asarray(values).swapaxes(0, 1), reference[leaf]
        np.testing.assert_allclose(ours[:, [0, 2, 3, 4, 5]], theirs[:, [0, 2, 3, 4, 5]], rtol=0, atol=1e-5)
    assert not np.isfinite(np.asarray(trajectory["w"])[1, 5:]).any()


def test_integers_stay_each_workers_own_and_the_state_of_all_parts_is_kept() -> None:
    cut = fragments(lsgd(optax.sgd(0.1), global_period=2, global_pull=0.5, stale_global_pull=0.25), 2)
    transform = periodic(cut, group_axis=None)

    def worker(rank: jax.Array) -> Any:
        params = {"a": rank * jnp.ones(3), "count": rank.astype(jnp.int32), "z": rank * jnp.ones(2)}
        state = transform.init(params)
        for _ in range(2):
            grads = jax.tree.map(jnp.zeros_like, params)
            updates, state = transform.update(grads, state, params, value=rank)
            params = optax.apply_updates(params, updates)
        return params, state.inner.global_leader

    params, heard = jax.vmap(worker, axis_name="worker")(jnp.arange(2.0))
    assert params["count"].tolist() == [0, 1]
    assert params["z"].tolist() == [[0, 0], [0.5 - 0.125, 0.5 - 0.125]], "after step 1, with a stale pull after it"
    assert params["a"].tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]], "after step 2"
    assert (heard["count"], heard["a"].tolist()) == (None, [[0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("sizes", "n", "strided", "parts"),
    [
        ([5, 5, 5, 5], 2, False, [[0, 1], [2, 3]]),
        ([5, 5, 5, 5], 2, True, [[0, 2], [1, 3]]),
        ([100, 1, 1, 1], 2, False, [[0], [1, 2, 3]]),
        ([1, 1, 1, 100], 2, False, [[0, 1, 2], [3]]),
        ([1, 1, 100], 3, False, [[0], [1], [2]]),
        ([100, 1, 1], 3, False, [[0], [1], [2]]),
        ([3, 9, 4, 4, 2, 8], 3, False, [[0, 1], [2, 3], [4, 5]]),
        ([7], 1, False, [[0]]),
    ],
)
def test_parts_are_of_about_equal_size_and_none_is_empty(
    sizes: list[int], n: int, strided: bool, parts: list[list[int]]
) -> None:
    assert parts_of(sizes, n, strided=strided) == parts


def test_as_many_bytes_are_sent_in_as_many_steps_and_an_nth_at_a_time() -> None:
    params = {f"layer{i}": jax.ShapeDtypeStruct((64, 16), np.float32) for i in range(8)}
    whole = lsgd(optax.sgd(0.1), local_period=8, global_period=16)
    before, after = (ledger(m, params, groups=2, workers=4) for m in (whole, fragments(whole, 4)))
    assert [(entry.level, entry.period, entry.offset) for entry in after.entries] == [
        *[("local", 8, offset) for offset in (0, 2, 4, 6)], *[("global", 16, offset) for offset in (0, 4, 8, 12)]
    ]  # fmt: skip
    largest = max(entry.sent for entry in after.entries)
    assert largest == pytest.approx(max(entry.sent for entry in before.entries) / 4, rel=0.01)
    assert after.bytes_sent(160) == pytest.approx(before.bytes_sent(160), rel=0.01)
    assert [after.entries[1].times(steps) for steps in (1, 2, 9, 10, 17, 18)] == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("name", ["lsgd", "local_sgd"])
def test_compiled_programs_send_what_the_ledger_says_and_whole_parameters_only_where_a_worker_is_lost(
    name: str,
) -> None:
    assert_sends_what_the_ledger_says(compiled(name, 8)[0], PROBLEM)


def test_what_cannot_be_cut_is_told() -> None:
    whole = lsgd(optax_sgd(), local_period=6, global_period=12)
    with pytest.raises(ValueError, match="n=4 does not divide the period of 6 steps"):
        fragments(whole, 4)
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got 0"):
        fragments(whole, 0)
    with pytest.raises(ValueError, match="no communication to cut"):
        fragments(data_parallel(optax_sgd()), 2)
    with pytest.raises(ValueError, match="n=3 parts of 2 arrays: use at most 2"):
        fragments(whole, 3).init({"a": jnp.ones(2), "b": jnp.ones(3), "steps": jnp.int32(1)}, Axes())
