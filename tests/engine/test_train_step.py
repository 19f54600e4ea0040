"""The trainer's step: the simulation's trajectory with lost workers restarted, on any devices."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lsgd_runs import PLAIN, SGD, STALE, method, optax_sgd
from numpy_lsgd import Election, Faults, Reseed, Run, Settings, simulate
from regression import (
    GROUPS,
    WORKERS,
    in_lanes,
    laid_out,
    make_problem,
    numpy_loss_and_grad,
    on_mesh,
    on_mesh_of_lanes,
    on_pmap_of_lanes,
    run_scanned,
    with_faults,
)
from thorough import thorough
from train_steps import REGRESSION, STEPS, faulty_loss, run, started

from lsgd_jax import Topology, data_parallel, init_state, make_train_step, periodic
from lsgd_jax.accounting import compiled as hlo
from lsgd_jax.engine.train_step import end_of_call

NAN, INF = float("nan"), float("inf")
SETTINGS = {"plain": PLAIN, "stale": STALE}
HELD_OUT = jax.tree.map(lambda leaf: leaf[0, 0], make_problem(seed=5).batches)


def held_out_loss(params: Any) -> Any:
    """In NumPy and in JAX, of samples that no worker trains on."""
    return ((HELD_OUT.inputs @ params["w"] + params["b"] - HELD_OUT.targets) ** 2).mean()


@cache
def compiled(
    settings: Settings, devices: int = 1, lanes: str = "sequential", algorithm: str = "lsgd", held_out: bool = False
) -> Any:
    topology = Topology(settings.groups, settings.workers, jax.devices()[:devices], lanes)
    optimizer = method(settings) if algorithm == "lsgd" else data_parallel(optax_sgd())
    score = (lambda params, model_state: held_out_loss(params)) if held_out else None
    return optimizer, topology, make_train_step(optimizer, topology, faulty_loss, REGRESSION, score=score)


def told(reports: list[Any], workers: int) -> tuple[list[Election], list[Reseed]]:
    """Elections and restarts, as the simulation lists them."""
    elections, restarts = [], []
    for step, report in reports:
        for level in ("local", "global"):
            if level not in report.elections or not report.elections[level].due.all():
                continue
            news = report.elections[level]
            for group in range(news.due.shape[0] if level == "local" else 1):
                if news.leader.valid[group, 0]:
                    rank = int(news.leader.rank[group, 0]) + (group * workers if level == "local" else 0)
                    name = group if level == "local" else None
                    elections.append(Election(step, level, name, rank, float(news.leader.score[group, 0])))
            restarts += [Reseed(step, int(rank)) for rank in np.flatnonzero(news.restarted)]
    return elections, restarts


def check(settings: Settings, faults: Faults | None = None, held_out: bool = False) -> Run:
    """Trains with the faults step by step, and compares everything with the simulation."""
    faults = faults or Faults()
    problem = make_problem(steps=STEPS)
    gradient = numpy_loss_and_grad(problem, settings.workers)
    options: Any = {"faults": faults, "reseed": True, "score_on": held_out_loss if held_out else None}
    reference = simulate(problem.starts, gradient, settings, SGD, STEPS, **options)
    trajectory, reports, state = run(with_faults(problem, faults), compiled(settings, held_out=held_out))
    for name in ("w", "b"):
        ours = np.stack([trajectory[step][name] for step in range(1, STEPS + 1)])
        np.testing.assert_allclose(ours, reference.trajectory[name], rtol=0, atol=1e-5)
    elections, restarts = told(reports, settings.workers)
    assert [e[:4] for e in elections] == [e[:4] for e in reference.elections]
    np.testing.assert_allclose([e.score for e in elections], [e.score for e in reference.elections], rtol=1e-4)
    assert restarts == reference.reseeds
    filled = np.array(state.losses.filled).reshape(-1)
    assert filled.tolist() == [len(losses) for losses in reference.windows]
    return reference


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_trajectory_and_the_leaders_are_those_of_the_simulation(settings: Settings) -> None:
    assert {election.rank for election in check(settings).elections} > {0}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_leaders_may_be_elected_by_their_loss_on_samples_that_are_the_same_for_all(settings: Settings) -> None:
    by_that, by_own = check(settings, held_out=True), check(settings)
    assert [e.rank for e in by_that.elections] != [e.rank for e in by_own.elections]
    lost = Faults(leaves={(4, by_that.elections[0].rank): ("w",)}, losses={(6, 1): NAN})
    assert check(settings, lost, held_out=True).reseeds


def test_scores_on_the_same_samples_are_the_same_on_1_and_4_devices() -> None:
    settings = Settings(groups=2, workers=4, local_period=3, global_period=6, window=4)
    problem = make_problem(count=8, steps=STEPS)
    one, elections, _ = run(problem, compiled(settings, 1, held_out=True), cuts=3)
    for lanes in ("vmap", "sequential"):
        many, others, _ = run(problem, compiled(settings, 4, lanes, held_out=True), cuts=3)
        assert told(elections, 4)[0] == [e._replace(score=pytest.approx(e.score, rel=1e-4)) for e in told(others, 4)[0]]
        for step, params in many.items():
            for name, leaf in params.items():
                np.testing.assert_allclose(leaf, one[step][name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("step", [1, 3, 6, 7, 18, 20])
@pytest.mark.parametrize("leaves", [("b",), ("w",), ("b", "w")], ids="+".join)
def test_a_worker_whose_parameters_break_starts_again_from_the_next_leader(
    settings: Settings, step: int, leaves: tuple[str, ...]
) -> None:
    for rank in (1, 3):
        reseeds = check(settings, Faults(leaves={(step, rank): leaves})).reseeds
        assert reseeds == [Reseed(-(-step // settings.local_period) * settings.local_period, rank)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_worker_that_lost_only_its_loss_is_pulled_and_does_not_start_again(settings: Settings, loss: float) -> None:
    leader = check(settings).elections[0].rank
    for step in (1, 3, 4, 6, 11):
        assert check(settings, Faults(losses={(step, leader): loss})).reseeds == []


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_wholly_lost_group_waits_for_the_global_leader(settings: Settings) -> None:
    lost = Faults(leaves={(4, rank): ("w",) for rank in (3, 4, 5)})
    at = -(-4 // settings.global_period) * settings.global_period
    assert check(settings, lost).reseeds == [Reseed(at, rank) for rank in (3, 4, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_lost_leader_is_followed_by_another_and_starts_again(settings: Settings) -> None:
    for election in check(settings).elections[:4]:
        for step in (election.step, election.step + 1):
            run = check(settings, Faults(leaves={(step, election.rank): ("b",)}))
            assert [reseed.rank for reseed in run.reseeds] == [election.rank]


def test_a_lost_worker_stays_lost_while_there_is_no_leader() -> None:
    faults = Faults(leaves={(2, 0): ("w",)}, losses={(2, rank): NAN for rank in range(1, 6)})
    assert check(PLAIN, faults).reseeds == [Reseed(6, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "lanes"),
    [
        ("lsgd", "sequential"),
        ("data_parallel", "vmap"),
        thorough("lsgd", "vmap"),
        thorough("data_parallel", "sequential"),
    ],
)
def test_the_trajectory_is_the_same_on_1_2_4_and_8_devices(lanes: str, algorithm: str) -> None:
    settings = Settings(groups=2, workers=4, local_period=3, global_period=6, stale_local_pull=0.02, window=4)
    problem = with_faults(make_problem(count=8, steps=STEPS), Faults(losses={(5, 2): NAN}))
    one, _, _ = run(problem, compiled(settings, 1, "sequential", algorithm), cuts=3)
    for devices in (1, 2, 4, 8) if lanes == "sequential" else (1, 2):  # with 8 there are no lanes
        parts = compiled(settings, devices, lanes, algorithm)
        assert parts[1].mesh.size == devices
        many, _, _ = run(problem, parts, cuts=3)
        for step, params in many.items():
            for name, leaf in params.items():
                np.testing.assert_allclose(leaf, one[step][name], rtol=0, atol=1e-5)


def test_where_calls_are_cut_changes_not_one_bit() -> None:
    problem = make_problem(steps=STEPS)
    whole, _, _ = run(problem, compiled(STALE), cuts=100)
    assert sorted(whole) == list(range(STALE.local_period, STEPS + 1, STALE.local_period))
    single, _, _ = run(problem, compiled(STALE), cuts=1)
    for step, params in whole.items():
        for name, leaf in params.items():
            np.testing.assert_array_equal(leaf, single[step][name])


def test_the_state_is_consumed() -> None:
    optimizer, topology, train_step = compiled(PLAIN)
    problem = make_problem(steps=STEPS)
    state = started(optimizer, topology, problem)
    data = jax.device_put(laid_out(problem.batches, topology.groups), topology.per_worker)
    train_step(state, data, jnp.int32(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", ["vmap", "sequential"])
def test_between_communications_the_step_sends_nothing(lanes: str) -> None:
    optimizer, topology, train_step = compiled(STALE, 6, lanes)
    assert topology.mesh.size == GROUPS * WORKERS
    problem = make_problem(steps=STEPS)
    data = jax.device_put(laid_out(problem.batches, topology.groups), topology.per_worker)
    program = train_step.lower(started(optimizer, topology, problem), data, jnp.int32(1)).compile().as_text()
    assert hlo.collectives(program), "there are communications"
    assert not hlo.collectives_outside_conditionals(program)


@pytest.mark.slow
def test_initial_parameters_are_the_same_or_different_and_do_not_depend_on_the_devices() -> None:
    def init_model(key: jax.Array) -> Any:
        return {"w": jax.random.normal(key, (3,))}, {}

    for same in (True, False):
        states = [
            init_state(
                method(PLAIN), Topology(2, 4, jax.devices()[:count]), init_model, jax.random.key(1), same_init=same
            )
            for count in (1, 2, 8)
        ]
        first = np.array(states[0].params["w"])
        assert len(np.unique(first.reshape(8, 3), axis=0)) == (1 if same else 8)
        assert len(np.unique(jax.random.key_data(states[0].keys).reshape(8, -1), axis=0)) == 8
        for other in states[1:]:
            np.testing.assert_array_equal(first, other.params["w"])
            np.testing.assert_array_equal(jax.random.key_data(states[0].keys), jax.random.key_data(other.keys))


def test_a_call_ends_where_a_communication_may_be_due_and_after_64_steps_at_most() -> None:
    optimizer = method(Settings(groups=2, workers=3, local_period=4, global_period=100))
    assert [end_of_call(optimizer, 2, step) for step in (0, 3, 4)] == [4, 4, 8]
    assert [end_of_call(optimizer, 1, step) for step in (0, 64, 100)] == [64, 100, 164]
    assert end_of_call(data_parallel(optax.sgd(0.1)), 2, 10) == 64


@pytest.mark.slow
def test_a_period_that_is_longer_than_a_call_is_kept() -> None:
    settings = Settings(groups=1, workers=3, global_period=65, window=4)
    trajectory, reports, _ = run(make_problem(count=3, steps=STEPS), compiled(settings), cuts=100)
    assert sorted(trajectory) == [64, 65, 66]
    assert [bool(report.elections["global"].due.all()) for _, report in reports] == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mesh", "nested vmap", "mesh of lanes", "pmap of lanes"])
def test_a_loop_of_ones_own_around_periodic_gives_the_same_trajectory(how: str) -> None:
    forms = {
        "mesh": lambda run: on_mesh(run, GROUPS, WORKERS),
        "nested vmap": lambda run: in_lanes(run, GROUPS),
        "mesh of lanes": lambda run: on_mesh_of_lanes(run, GROUPS),
        "pmap of lanes": lambda run: on_pmap_of_lanes(run, GROUPS),
    }
    problem = make_problem(steps=STEPS)
    own = run_scanned(forms[how], periodic(method(STALE)), problem)
    trajectory, _, _ = run(problem, compiled(STALE), cuts=3)
    for step, params in trajectory.items():
        for name, leaf in params.items():
            np.testing.assert_allclose(leaf, own[name][:, step - 1], rtol=0, atol=1e-5)
