"""What methods have in common: where one is another, and what their communications keep."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import SGD, in_optax
from numpy_lsgd import Tree
from regression import GROUPS, QUICK, in_lanes, laid_out, make_problem, on_mesh, run_scanned, scanned
from train_steps import REGRESSION, STEPS, faulty_loss, run, started

from lsgd_jax import (
    Axes,
    DistributedOptimizer,
    Topology,
    data_parallel,
    diloco,
    downpour,
    dppf,
    easgd,
    grawa,
    independent,
    ledger,
    local_sgd,
    lsgd,
    make_train_step,
    periodic,
)
from lsgd_jax.accounting import compiled as hlo

MOMENTUM, PLAIN = in_optax(SGD), optax.sgd(0.02)
WORKERS = 6


@cache
def trajectory(optimizer: DistributedOptimizer, same_start: bool) -> Tree:
    """[workers, steps, ...], through `periodic`."""
    return run_scanned(lambda run: in_lanes(run, GROUPS), periodic(optimizer), make_problem(same_start=same_start))


def assert_equal(one: DistributedOptimizer, other: DistributedOptimizer, *, same_start: bool, atol: float) -> None:
    for name, leaf in trajectory(one, same_start).items():
        np.testing.assert_allclose(leaf, trajectory(other, same_start)[name], rtol=0, atol=atol)


AVERAGING = local_sgd(MOMENTUM, global_period=7)


@pytest.mark.slow
def test_diloco_with_outer_steps_of_one_is_local_sgd() -> None:
    assert_equal(diloco(MOMENTUM, optax.sgd(1.0), period=7), AVERAGING, same_start=False, atol=1e-5)


def test_dppf_that_pulls_all_the_way_and_never_pushes_is_local_sgd() -> None:
    assert_equal(dppf(MOMENTUM, pull=1.0, push=0.0, period=7), AVERAGING, same_start=False, atol=1e-5)


def test_downpour_at_every_step_is_data_parallelism_with_as_many_times_the_rate() -> None:
    assert_equal(downpour(PLAIN, period=1), data_parallel(optax.sgd(WORKERS * 0.02)), same_start=True, atol=1e-5)


def test_averaging_at_every_step_is_data_parallelism() -> None:
    assert_equal(local_sgd(PLAIN, global_period=1), data_parallel(PLAIN), same_start=True, atol=1e-5)


@pytest.mark.slow
def test_an_elastic_force_of_zero_leaves_workers_independent() -> None:
    assert_equal(easgd(MOMENTUM, beta=0.0, period=3), independent(MOMENTUM), same_start=False, atol=1e-6)


@pytest.mark.slow
def test_a_pull_of_one_makes_all_workers_the_leader_to_the_bit() -> None:
    optimizer, topology = lsgd(MOMENTUM, local_period=3, global_period=6, global_pull=1.0), Topology(2, 4)
    train_step = make_train_step(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)
    params, reports, _ = run(make_problem(count=8, steps=STEPS), (optimizer, topology, train_step), cuts=2)
    compared = 0
    for step, report in reports:
        if step % 6 == 0:
            assert report.elections["global"].leader.is_leader.sum() == 1
            for leaf in params[step].values():
                np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
            compared += 1
    assert compared == STEPS // 6
    assert not np.array_equal(params[3]["w"][0], params[3]["w"][7]), "in between they go their own ways"


def test_independent_workers_send_nothing() -> None:
    optimizer, topology, problem = independent(MOMENTUM), Topology(2, 4), make_problem(count=8, steps=STEPS)
    assert topology.mesh.size == 8
    state = started(optimizer, topology, problem)
    data = jax.device_put(laid_out(problem.batches, 2), topology.per_worker)
    train_step = make_train_step(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)
    own_loop = on_mesh(lambda *args: scanned(periodic(optimizer), *args), 2, 4)
    for lowered in (train_step.lower(state, data, jnp.int32(1)), own_loop.lower(problem.initial, problem.batches)):
        assert hlo.collectives(lowered.compile().as_text()) == []
    sends = ledger(optimizer, problem.starts[0], groups=2, workers=4)
    assert sends.entries == ()
    assert sends.bytes_sent(1000) == 0


@cache
def communicated(optimizer: DistributedOptimizer) -> Any:
    """`(x, gradients) -> (x, center)` of workers [6, 5], after one step and its communication."""

    def one_step(x: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        transform = periodic(optimizer)
        updates, state = transform.update(grad, transform.init(x), x, value=jnp.zeros([]))
        x = optax.apply_updates(x, updates)
        return x, optimizer.center(x, state.inner, Axes())

    return in_lanes(one_step, GROUPS)


def points(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(WORKERS, 5)).astype(np.float32)


STILL = optax.sgd(0.0)
ZERO = np.zeros((WORKERS, 5), np.float32)
SEEDS = st.integers(0, 2**32 - 1)
MEAN_PULL = grawa(STILL, pull=1.0, period=1)
PUSHED = dppf(STILL, pull=0.4, push=0.8, period=1)
ELASTIC = easgd(STILL, beta=0.7, period=1)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, size=st.floats(1e-3, 1e3))
def test_gradients_of_equal_norm_weigh_equally(seed: int, size: float) -> None:
    x, grads = points(seed), points(seed + 1)
    grads *= size / np.linalg.norm(grads, axis=1, keepdims=True)
    for moved in communicated(MEAN_PULL)(x, grads):
        np.testing.assert_allclose(moved, np.tile(x.mean(axis=0), (WORKERS, 1)), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, rank=st.integers(0, WORKERS - 1), ratio=st.floats(1, 100))
def test_weights_are_inverse_to_the_norms(seed: int, rank: int, ratio: float) -> None:
    x, grads = points(seed), points(seed + 1)
    grads /= np.linalg.norm(grads, axis=1, keepdims=True)
    grads[rank] /= ratio
    expected = (x.sum(axis=0) + (ratio - 1) * x[rank]) / (WORKERS + ratio - 1)
    np.testing.assert_allclose(communicated(MEAN_PULL)(x, grads)[0], np.tile(expected, (WORKERS, 1)), atol=1e-4)


@pytest.mark.parametrize("without", [[0], [1, 4], list(range(WORKERS))], ids=str)
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_workers_without_a_gradient_stay_between_the_others(without: list[int], scale: float) -> None:
    x, grads = scale * (points(0) + 5), points(1)
    grads[without] = 0
    for moved in communicated(MEAN_PULL)(x, grads):
        assert np.isfinite(moved).all()
        assert (moved <= x.max(axis=0) + 1e-4).all()
        assert (moved >= x.min(axis=0) - 1e-4).all()


def test_weights_are_not_rounded_to_the_dtype_of_the_parameters() -> None:
    x = jnp.ones((WORKERS, 5), jnp.bfloat16)
    for moved in communicated(MEAN_PULL)(x, points(1).astype(jnp.bfloat16)):
        np.testing.assert_array_equal(moved, x)


def antipodes(seed: int, distance: float) -> np.ndarray:
    """Three pairs, all at this distance from the same mean."""
    away = points(seed)[:3]
    away *= distance / np.linalg.norm(away, axis=1, keepdims=True)
    return np.concatenate([away, -away]) + points(seed + 1)[:1]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, distance=st.floats(0.1, 10))
def test_pushed_workers_come_to_the_distance_of_push_over_pull(seed: int, distance: float) -> None:
    for start, end in ((distance, 0.6 * distance + 0.8), (0.8 / 0.4, 0.8 / 0.4)):
        x = antipodes(seed, start)
        moved, center = communicated(PUSHED)(x, ZERO)
        np.testing.assert_allclose(center, np.tile(x.mean(axis=0), (WORKERS, 1)), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(moved - center, axis=1), end, atol=1e-4)


@pytest.mark.parametrize("size", [1.0, 0.1])
def test_workers_that_are_all_at_one_point_are_not_pushed(size: float) -> None:
    x = np.tile(np.arange(5, dtype=np.float32) * np.float32(size), (WORKERS, 1))
    np.testing.assert_allclose(communicated(PUSHED)(x, ZERO)[0], x, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_an_elastic_force_acts_on_the_center_as_on_the_workers_together(seed: int) -> None:
    x = points(seed)
    moved, center = map(np.asarray, communicated(ELASTIC)(x, ZERO))
    np.testing.assert_array_equal(center, np.broadcast_to(center[:1], center.shape))
    np.testing.assert_allclose(moved.sum(axis=0) + center[0], x.sum(axis=0) + x.mean(axis=0), atol=1e-5)
