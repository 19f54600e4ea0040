"""Methods whose communications take effect later: in NumPy's trajectory, on any devices, with workers lost."""

import functools
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lsgd_runs import SGD, method, optax_sgd
from method_cases import Case
from numpy_lsgd import Faults, Reseed, Settings
from numpy_lsgd import Sgd as NumpySgd
from numpy_lsgd import simulate as simulate_lsgd
from numpy_methods import simulate
from numpy_overlapped import LATE
from regression import QUICK, in_lanes, local_step, make_problem, numpy_loss_and_grad, with_faults
from thorough import thorough
from train_steps import REGRESSION, STEPS, faulty_loss, run, started

from lsgd_jax import Topology, data_parallel, downpour, fragments, ledger, make_train_step, overlapped, periodic
from lsgd_jax.engine.carried import carriers_of, make_carried_step, moved
from lsgd_jax.engine.communications import begins_at, kinds_of_call
from lsgd_jax.engine.train_step import round_steps
from lsgd_jax.optimizers.distributed_optimizer import communications_of

PROBLEM = make_problem(count=6, steps=STEPS)
LSGD = Settings(groups=2, workers=3, local_pull=0.3, global_pull=0.2, local_period=4, global_period=8,
                stale_local_pull=0.05, stale_global_pull=0.03, window=4)  # fmt: skip
CASES = {
    "local_sgd": Case("local_sgd", {"local_period": 3, "global_period": 6}),
    "easgd": Case("easgd", {"beta": 0.43, "period": 5}),
    "eamsgd": Case("eamsgd", {"momentum": 0.7, "beta": 0.5, "period": 5}),
    "diloco": Case("diloco", {"outer": NumpySgd(0.3, 0.5, nesterov=True), "period": 6}),
    "grawa": Case("grawa", {"pull": 0.4, "period": 4, "window": 4}),
    "dppf": Case("dppf", {"pull": 0.4, "push": 0.7, "period": 3}),
}
DELAYS = {"a while": 2, "a period": None}
SHORTEST = {"lsgd": 4, "local_sgd": 3, "easgd": 5, "eamsgd": 5, "diloco": 6, "grawa": 4, "dppf": 3}
# Before a communication has begun, while one is under way, at the step at which it takes effect, and a group.
GROUP_LOST = {(33, rank): ("b",) for rank in (3, 4, 5)}
LOST = Faults(leaves={(2, 1): ("b",), (13, 2): ("w",), (20, 3): ("w",), (24, 1): ("b", "w")} | GROUP_LOST)
FAULTS = {"nobody is lost": Faults(), "workers are lost": LOST}


def late(name: str, delay: int | None, keep: float = 0.25) -> Any:
    return overlapped(method(LSGD) if name == "lsgd" else CASES[name].optimizer, delay=delay, keep=keep)


@cache
def compiled(name: str, devices: int, delay: int | None, cut: bool = False) -> Any:
    whole = method(LSGD) if name == "lsgd" else CASES[name].optimizer
    optimizer = overlapped(fragments(whole, 2), delay=delay) if cut else late(name, delay)
    topology = Topology(2, 3, jax.devices()[:devices])
    return optimizer, topology, make_train_step(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)


@cache
def expected(name: str, faults: str, delay: int | None, *, reseed: bool = True) -> tuple[Any, list[Reseed]]:
    """(trajectory, restarts) of NumPy."""
    gradient, delay = numpy_loss_and_grad(PROBLEM, 3), delay or SHORTEST[name]
    if name == "lsgd":
        how: dict[str, Any] = {"faults": FAULTS[faults], "reseed": reseed, "delay": delay}
        found = simulate_lsgd(PROBLEM.starts, gradient, LSGD, SGD, STEPS, **how)
        return found.trajectory, found.reseeds
    case = CASES[name]
    team = LATE[name](PROBLEM.starts, case.base, 2, reseed, delay=delay, keep=0.25, **case.arguments)
    of_all = simulate(team, gradient, STEPS, faults=FAULTS[faults])
    return of_all.trajectory, of_all.restarts


def told(reports: list[Any]) -> list[Reseed]:
    return [
        Reseed(step, int(rank))
        for step, report in reports
        for news in report.elections.values()
        for rank in np.flatnonzero(news.restarted)
    ]


RUNS: list[Any] = [("lsgd", 1, delay) for delay in DELAYS] + [("lsgd", 2, "a while"), ("local_sgd", 8, "a period")]
RUNS += [(name, 1, "a while") for name in ("local_sgd", "easgd", "diloco", "grawa")]
RUNS += [thorough(name, 1, "a while") for name in ("eamsgd", "dppf")]
RUNS += [thorough(name, 1, "a period") for name in CASES]
RUNS += [thorough("lsgd", devices, "a while") for devices in (4, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize(("name", "devices", "delay"), RUNS)
def test_the_trajectory_and_the_restarts_are_those_of_numpy(name: str, devices: int, delay: str, faults: str) -> None:
    reference, restarts = expected(name, faults, DELAYS[delay])
    parts = compiled(name, devices, DELAYS[delay])
    trajectory, reports, _ = run(with_faults(PROBLEM, FAULTS[faults]), parts)
    for step, params in trajectory.items():
        for leaf, values in params.items():
            np.testing.assert_allclose(values, reference[leaf][step - 1], rtol=0, atol=1e-5)
    assert sorted(told(reports)) == sorted(restarts)
    assert bool(restarts) == (faults != "nobody is lost")


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("delay", ["a while", thorough("a period")])
def test_parts_may_be_overlapped_too(delay: str, faults: str) -> None:
    how: dict[str, Any] = {"faults": FAULTS[faults], "reseed": True, "fragments": [["b"], ["w"]]}
    gradient, steps = numpy_loss_and_grad(PROBLEM, 3), DELAYS[delay] or SHORTEST["lsgd"]
    reference = simulate_lsgd(PROBLEM.starts, gradient, LSGD, SGD, STEPS, delay=steps, **how)
    trajectory, reports, _ = run(with_faults(PROBLEM, FAULTS[faults]), compiled("lsgd", 2, DELAYS[delay], True))
    for step, params in trajectory.items():
        for leaf, values in params.items():
            np.testing.assert_allclose(values, reference.trajectory[leaf][step - 1], rtol=0, atol=1e-5)
    assert sorted(told(reports)) == sorted(reference.reseeds)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, thorough(True)])
def test_programs_that_the_host_chooses_do_the_same(cut: bool) -> None:
    optimizer, topology, step = compiled("lsgd", 2, 2, cut)
    whole, _, _ = run(PROBLEM, (optimizer, topology, step), cuts=64)
    kinds = set()

    def chosen(state: Any, data: Any, steps: Any) -> Any:
        begins = begins_at(optimizer, 2, int(state.step))
        kinds.add(begins)
        return step(state, data, steps, begins=begins)

    trajectory, _, _ = run(PROBLEM, (optimizer, topology, chosen), cuts=64)
    assert trajectory.keys() == whole.keys()
    for name, values in trajectory[STEPS].items():
        np.testing.assert_allclose(values, whole[STEPS][name], rtol=0, atol=1e-6)
    assert sorted(kinds) == kinds_of_call(optimizer, 2)
    assert len(kinds) == (4 if cut else 3), "none, those of groups, and all; of two parts each"


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, thorough(True)])
def test_devices_of_their_own_may_carry_what_is_under_way(cut: bool) -> None:
    optimizer, topology, step = compiled("lsgd", 2, 2, cut)
    faults = FAULTS["workers are lost"]
    whole, told_there, _ = run(with_faults(PROBLEM, faults), (optimizer, topology, step), cuts=2)
    carriers = Topology(2, 3, jax.devices()[4:6])
    carried = make_carried_step(
        optimizer, topology, carriers, faulty_loss, REGRESSION, longest_call=64, compiler_options=QUICK
    )

    def in_three(state: Any, data: Any, steps: Any) -> Any:
        begins = begins_at(optimizer, 2, int(state.step))
        sends = moved((state.params, state.opt_state, state.losses), carriers)
        news = carried.begin(*sends, begins=begins) if begins else ()
        assert {device for x in jax.tree.leaves(news) for device in x.devices()} <= set(carriers.devices or ())
        return carried.end(carried.steps(state, data, steps), moved(news, topology), begins=begins)

    cuts = round_steps(optimizer, 2)
    trajectory, reports, _ = run(with_faults(PROBLEM, faults), (optimizer, topology, in_three), cuts=min(cuts, 2))
    assert told(reports) == told(told_there)
    assert trajectory.keys() == whole.keys()
    for at, params in trajectory.items():
        for name, values in params.items():
            np.testing.assert_allclose(values, whole[at][name], rtol=0, atol=1e-6)
    assert carriers_of(topology) is None, "in one process nothing has a wire"


@pytest.mark.slow
def test_the_transform_for_own_loops_does_the_same() -> None:
    reference, _ = expected("lsgd", "nobody is lost", 2, reseed=False)
    transform = periodic(late("lsgd", 2))

    def worker(params: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            carry = local_step(transform, *carry, batch)
            return carry, carry[0]

        return jax.lax.scan(step, (params, transform.init(params)), batches)[1]

    trajectory = in_lanes(worker, 2)(PROBLEM.initial, PROBLEM.batches)
    for leaf, values in trajectory.items():
        np.testing.assert_allclose(np.asarray(values).swapaxes(0, 1), reference[leaf], rtol=0, atol=1e-5)


def test_leaders_are_told_when_the_pull_takes_effect_with_the_score_of_their_election() -> None:
    gradient = numpy_loss_and_grad(PROBLEM, 3)
    reference = simulate_lsgd(PROBLEM.starts, gradient, LSGD, SGD, STEPS, delay=2)
    _, reports, _ = run(PROBLEM, compiled("lsgd", 1, 2))
    found = [
        (step, int(report.elections["global"].leader.rank[0, 0]), float(report.elections["global"].leader.score[0, 0]))
        for step, report in reports
        if report.elections["global"].due.all() and report.elections["global"].leader.valid.all()
    ]
    rows = [(row.step, row.rank, row.score) for row in reference.elections if row.level == "global"]
    assert [row[0] for row in rows] == list(range(10, STEPS + 1, 8))
    assert [row[:2] for row in found] == [row[:2] for row in rows]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in rows], rtol=1e-4)


@pytest.mark.slow
def test_a_state_amid_a_communication_goes_on_bit_for_bit() -> None:
    optimizer, topology, step = compiled("lsgd", 1, 2)
    whole, _, _ = run(PROBLEM, (optimizer, topology, step))
    trajectory, _, state = run(PROBLEM, (optimizer, topology, step), steps=9)  # it began at 8, and ends at 10
    assert state.opt_state.heard[1].waiting.all()
    again = jax.tree.map(lambda x: jnp.array(np.asarray(x)), state._replace(keys=None))  # as from a checkpoint
    again = again._replace(keys=started(optimizer, topology, PROBLEM).keys)
    parts = (optimizer, topology, functools.partial(_from, again, step))
    rest, _, _ = run(PROBLEM, parts)
    for leaf, values in rest[STEPS].items():
        np.testing.assert_array_equal(values, whole[STEPS][leaf])
    np.testing.assert_array_equal(trajectory[9]["w"], whole[9]["w"])


def _from(start: Any, step: Any, state: Any, data: Any, steps: Any) -> Any:
    """A call of the train step, of the run's state from its own on."""
    return step(jax.tree.map(jnp.copy, start) if int(state.step) < 9 else state, data, steps)


def test_communications_that_take_effect_send_nothing_and_those_that_begin_send_as_much_as_before() -> None:
    params = {"w": jax.ShapeDtypeStruct((30, 20), np.float32)}
    whole = method(LSGD)
    before, after = (ledger(each, params, groups=2, workers=3) for each in (whole, overlapped(whole, delay=3)))
    assert [(e.level, e.period, e.offset, e.sent) for e in after.entries] == [
        (e.level, e.period, e.offset, e.sent) for e in before.entries
    ]
    assert [after.entries[0].times(steps) for steps in (0, 4, 5, 8, 9)] == [0, 0, 1, 1, 2], "with the next step"
    assert round_steps(overlapped(whole, delay=3), 2) == 1
    assert round_steps(overlapped(whole, delay=2), 2) == 2
    assert round_steps(overlapped(whole), 2) == 4


def test_what_cannot_wait_is_told() -> None:
    whole = method(LSGD)
    with pytest.raises(ValueError, match="delay=5 is longer than the period of 4 steps: use at most that"):
        communications_of(overlapped(whole, delay=5), groups=2)
    assert len(communications_of(overlapped(whole, delay=8), groups=1)) == 2, (
        "of one group only the global level counts"
    )
    with pytest.raises(ValueError, match="delay must be a whole number of at least 1, got 0"):
        overlapped(whole, delay=0)
    with pytest.raises(ValueError, match=r"keep must lie in \[0, 1\], got 1.5"):
        overlapped(whole, keep=1.5)
    with pytest.raises(ValueError, match="no communication to wait for"):
        overlapped(data_parallel(optax_sgd()))
    with pytest.raises(ValueError, match="would be sent twice: use another, such as local_sgd"):
        overlapped(downpour(optax.sgd(0.1), period=4))
    with pytest.raises(ValueError, match="is overlapped already"):
        overlapped(overlapped(whole))
    with pytest.raises(ValueError, match=r"overlapped\(fragments\(method, n\)\)"):
        fragments(overlapped(whole), 2)
