"""Every method through the trainer's step: the simulation's trajectory, lost workers restarted, on any devices."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from method_cases import REFERENCES, TYPICAL
from numpy_lsgd import Faults, Reseed
from numpy_methods import Run, simulate
from regression import QUICK, laid_out, make_problem, numpy_loss_and_grad, with_faults
from thorough import thorough
from train_steps import REGRESSION, STEPS, center_of, faulty_loss, run, started

from lsgd_jax import DistributedOptimizer, Topology, init_state, make_train_step

PROBLEM = make_problem(count=8, steps=STEPS)
REPORTED = 10  # losses
# One at a communication, one between two, a group, what has just restarted, and at last everybody.
LOST = Faults(
    leaves={(6, 1): ("b",), (20, 3): ("w",), (22, 1): ("b", "w"), (24, 1): ("w",)}
    | {(33, rank): ("b",) for rank in (4, 5, 6, 7)}
    | {(63, rank): ("w",) for rank in range(8)}
)
FAULTS = {"nobody is lost": Faults(), "workers are lost": LOST}


@cache
def expected(method: str, faults: str) -> Run:
    team = TYPICAL[method].team(PROBLEM, reseed=True)
    return simulate(team, numpy_loss_and_grad(PROBLEM, 4), STEPS, faults=FAULTS[faults])


@cache
def compiled(method: str, devices: int, lanes: str) -> tuple[DistributedOptimizer, Topology, Any]:
    topology = Topology(2, 4, jax.devices()[:devices], lanes)
    assert topology.mesh.size == devices
    optimizer = TYPICAL[method].optimizer
    return optimizer, topology, make_train_step(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)


def check(method: str, devices: int, lanes: str, faults: str) -> None:
    """Trains, and compares everything with the simulation."""
    reference, parts = expected(method, faults), compiled(method, devices, lanes)
    trajectory, reports, state = run(with_faults(PROBLEM, FAULTS[faults]), parts, cuts=2)
    for step, params in trajectory.items():
        for name, leaf in params.items():
            np.testing.assert_allclose(leaf, reference.trajectory[name][step - 1], rtol=0, atol=1e-5)
    for name, leaf in jax.device_get(center_of(*parts[:2])(state)).items():
        whole = np.broadcast_to(reference.centers[name][-1], leaf.shape)
        np.testing.assert_allclose(leaf, whole, rtol=0, atol=1e-5)

    restarts = [
        Reseed(step, int(rank))
        for step, report in reports
        for news in report.elections.values()
        for rank in np.flatnonzero(news.restarted)
    ]
    assert sorted(restarts) == sorted(reference.restarts)
    last = {restart.rank: restart.step for restart in sorted(restarts)}
    filled = [min(REPORTED, STEPS - last.get(rank, 0)) for rank in range(8)]
    assert np.array(state.losses.filled).reshape(-1).tolist() == filled


# What most send is one mean over all, as in `downpour`; `local_sgd` has two levels.
MESHES: list[Any] = [(method, 1) for method in REFERENCES]
OF_THEIR_OWN = ("local_sgd", "easgd", "grawa", "dppf")
MESHES += [(method, 8) if method in OF_THEIR_OWN else thorough(method, 8) for method in REFERENCES]
MESHES += [("local_sgd", 2), ("downpour", 4), thorough("local_sgd", 4), thorough("downpour", 2)]


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize(("method", "devices"), MESHES)
def test_the_trajectory_is_that_of_the_simulation_on_1_2_4_and_8_devices(
    method: str, devices: int, faults: str
) -> None:
    check(method, devices, "sequential", faults)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "devices"), [("local_sgd", 1), ("grawa", 4), thorough("eamsgd", 2)])
def test_lanes_that_step_all_at_once_change_nothing(method: str, devices: int) -> None:
    for faults in FAULTS:
        check(method, devices, "vmap", faults)


@pytest.mark.parametrize("method", REFERENCES)
def test_the_center_is_that_of_the_simulation_when_workers_have_just_started_again(method: str) -> None:
    reference, parts = expected(method, "workers are lost"), compiled(method, 1, "sequential")
    _, _, state = run(with_faults(PROBLEM, LOST), parts, cuts=3, steps=33)
    for name, leaf in jax.device_get(center_of(*parts[:2])(state)).items():
        np.testing.assert_allclose(leaf[0, 0], reference.centers[name][32], rtol=0, atol=1e-5)


def test_all_but_independent_workers_are_restarted() -> None:
    for method in REFERENCES:
        restarts = expected(method, "workers are lost").restarts
        assert bool(restarts) == (method != "independent")
        everybody = [restart for restart in restarts if restart.step == 63]
        assert len(everybody) == (8 if method in ("easgd", "eamsgd", "downpour", "diloco") else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "devices"), [("easgd", 1), ("eamsgd", 2), ("downpour", 4), ("diloco", 8), ("grawa", 4)]
)
def test_the_center_starts_as_the_mean_of_workers_that_start_apart(method: str, devices: int) -> None:
    def init_model(key: jax.Array) -> Any:
        return {"w": jax.random.bits(key, (2,), "uint16").astype("float32")}, {}

    topology, optimizer = Topology(2, 4, jax.devices()[:devices]), TYPICAL[method].optimizer
    state = init_state(optimizer, topology, init_model, jax.random.key(0), same_init=False)
    params = np.array(state.params["w"])
    assert len(np.unique(params)) == params.size
    center = np.array(center_of(optimizer, topology)(state)["w"])
    np.testing.assert_allclose(center, np.broadcast_to(params.mean(axis=(0, 1)), center.shape), rtol=1e-6)


def test_a_worker_that_starts_again_gets_the_model_state_of_the_best() -> None:
    optimizer, topology, _ = parts = compiled("easgd", 1, "sequential")
    ranks = np.arange(8, dtype=np.float32).reshape(2, 4)
    ranks[0, 1] = np.nan

    def one_round(faults: Faults) -> Any:
        data = jax.device_put(laid_out(with_faults(PROBLEM, faults).batches, 2), topology.per_worker)
        state = started(optimizer, topology, PROBLEM)._replace(model_state={"rank": ranks})
        return jax.device_get(parts[2](state, data, 3))

    state, report = one_round(Faults(leaves={(2, 1): ("w",)}, losses={(1, rank): -99.0 for rank in (1, 6)}))
    assert report.elections["global"].leader is None
    assert state.model_state["rank"].tolist() == [[0, 6, 2, 3], [4, 5, 6, 7]]
    state, _ = one_round(Faults())
    np.testing.assert_array_equal(state.model_state["rank"], ranks)
