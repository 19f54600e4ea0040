"""Sums over workers and windows: in float32 or wider, and finite where what is summed is."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from regression import in_lanes, mesh_of

import lsgd_jax
from lsgd_jax import GROUP, WORKER, Axes, periodic
from lsgd_jax.collectives import mean
from lsgd_jax.optimizers.arithmetic import norm
from lsgd_jax.optimizers.window import Window, window_mean

HUGE, TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


@partial(partial, in_lanes, groups=1)
def mean_of(x: jax.Array) -> jax.Array:
    return mean(x, (GROUP, WORKER))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-HUGE, HUGE, width=32), min_size=7, max_size=7))
def test_the_mean_of_finite_numbers_is_finite(numbers: list[float]) -> None:
    means = mean_of()(np.array(numbers, np.float32))
    rounding = 1e-6 * max(map(abs, numbers)) + 8 * TINY  # below which numbers are flushed to 0
    np.testing.assert_allclose(means, math.fsum(numbers) / 7, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("workers", [3, 64, 100])
def test_workers_that_are_equal_are_their_own_mean(workers: int, dtype: Any) -> None:
    numbers = np.random.default_rng(0).normal(scale=100, size=50)
    same = jnp.broadcast_to(jnp.asarray(numbers, dtype), (workers, 50))
    if dtype != jnp.float32:
        np.testing.assert_array_equal(mean_of()(same), same)
    np.testing.assert_allclose(mean_of()(same), same, rtol=1e-6)


def test_a_hundred_half_precision_workers_at_700_meet_at_700() -> None:
    start = jnp.full((100, 2), 700, jnp.float16)
    method = periodic(lsgd_jax.local_sgd(optax.sgd(0.1), global_period=1))

    def step(x: jax.Array) -> jax.Array:
        updates, _ = method.update(jnp.ones_like(x), method.init(x), x)
        return optax.apply_updates(x, updates)

    np.testing.assert_array_equal(in_lanes(step, 1)(start), np.float16(699.9))


@pytest.mark.slow
def test_in_16_bits_one_device_and_eight_have_the_same_mean() -> None:
    numbers = jnp.asarray(np.random.default_rng(0).normal(size=(64, 40)), jnp.bfloat16)
    in_one = mean_of()(numbers)
    lanes = jax.vmap(lambda x: mean(x, (GROUP, WORKER, "lane")), axis_name="lane")
    split = PartitionSpec((GROUP, WORKER))
    over_eight = jax.shard_map(lanes, mesh=mesh_of(2, 4), in_specs=split, out_specs=split, check_vma=False)(numbers)
    np.testing.assert_array_equal(in_one, over_eight)
    np.testing.assert_array_equal(in_one[0], np.asarray(numbers, np.float64).mean(0).astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3, 10, 64])
def test_a_window_of_finite_losses_has_a_finite_mean(window: int) -> None:
    losses = np.full(window, HUGE, np.float32)
    for losses[0] in (HUGE, 1.0):
        mean_loss = window_mean(Window(jnp.asarray(losses), jnp.int32(window)))
        np.testing.assert_allclose(mean_loss, np.mean(losses, dtype=np.float64), rtol=1e-6)


@pytest.mark.slow
def test_a_norm_of_finite_numbers_does_not_overflow_on_the_way() -> None:
    for dtype, large in ((jnp.float16, 300.0), (jnp.bfloat16, 1e30), (jnp.float32, 1e30), (jnp.complex64, 1e30)):
        tree = {"a": jnp.full(3, large, dtype), "b": jnp.full(1, large, dtype)}
        np.testing.assert_allclose(norm(tree), 2 * large, rtol=1e-2)
    assert norm({"a": jnp.zeros(3)}) == norm({}) == 0


def communicated(method: lsgd_jax.DistributedOptimizer, before: Any, after: Any) -> tuple[Any, Any]:
    """Where workers that have gone from `before` to `after` are after a communication, and their center."""

    def of_worker(before: jax.Array, after: jax.Array) -> Any:
        state = method.init(before, Axes())
        outcome = method.communications[-1].apply(after, state, jnp.float32(0), (GROUP, WORKER))
        return outcome.params, method.center(outcome.params, outcome.state, Axes())

    return in_lanes(of_worker, 1)(jnp.asarray(before, jnp.float32), jnp.asarray(after, jnp.float32))


MEETING: dict[str, Callable[[], lsgd_jax.DistributedOptimizer]] = {
    "lsgd": lambda: lsgd_jax.lsgd(optax.sgd(0.1)),
    "easgd": lambda: lsgd_jax.easgd(optax.sgd(0.1)),
    "eamsgd": lambda: lsgd_jax.eamsgd(optax.sgd(0.1)),
    "downpour": lambda: lsgd_jax.downpour(optax.sgd(0.1)),
    "local_sgd": lambda: lsgd_jax.local_sgd(optax.sgd(0.1), global_period=1),
    "diloco": lambda: lsgd_jax.diloco(optax.sgd(0.1), optax.sgd(1.0), period=1),
    "grawa": lambda: lsgd_jax.grawa(optax.sgd(0.1)),
    "dppf": lambda: lsgd_jax.dppf(optax.sgd(0.1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("leaf", [jnp.zeros(0, jnp.bfloat16), jnp.ones(1, jnp.float16)], ids=["empty", "one"])
def test_a_narrow_leaf_does_not_hold_back_the_push_of_dppf(leaf: Any) -> None:
    method = lsgd_jax.dppf(optax.sgd(0.1), pull=0.0, push=1.0, period=1)

    def pushed(x: jax.Array) -> jax.Array:
        outcome = method.communications[0].apply({"x": x, "narrow": leaf}, None, jnp.float32(0), (GROUP, WORKER))
        return norm(outcome.params["x"] - mean(x, (GROUP, WORKER))) - norm(x - mean(x, (GROUP, WORKER)))

    start = 1 + 0.01 * np.random.default_rng(0).normal(size=(4, 1000)).astype(np.float32)
    np.testing.assert_allclose(in_lanes(pushed, 1)(start), np.ones(4), rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dppf_does_not_push_workers_of_16_bits_that_are_at_one_point(dtype: Any) -> None:
    method = lsgd_jax.dppf(optax.sgd(0.1), pull=0.1, push=1.0, period=1)
    start = jnp.broadcast_to(jnp.asarray(np.random.default_rng(0).normal(size=30), dtype), (6, 30))
    apply = lambda x: method.communications[0].apply(x, None, jnp.float32(0), (GROUP, WORKER)).params  # noqa: E731
    np.testing.assert_array_equal(in_lanes(apply, 1)(start), start)


def test_dilocos_outer_step_is_taken_in_float32_where_workers_have_16_bits() -> None:
    start = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)), jnp.bfloat16)
    method = periodic(lsgd_jax.diloco(optax.sgd(0.1), optax.sgd(1.0), period=1))

    def state_after(x: jax.Array) -> Any:
        begun = method.init(jnp.zeros_like(x))
        return method.update(jnp.zeros_like(x), begun, x)[1].inner.center

    center = in_lanes(state_after, 1)(start)
    assert center.dtype == jnp.float32
    np.testing.assert_allclose(center[0], np.asarray(start, np.float64).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MEETING)
def test_one_worker_with_a_huge_parameter_costs_nobody_the_center(name: str) -> None:
    after = np.array([[0.5 * HUGE, 1], [2, 1], [3, 1], [4, 1]])
    for moved in communicated(MEETING[name](), np.ones((4, 2)), after):
        assert np.isfinite(moved).all()
    if name == "downpour":
        np.testing.assert_allclose(moved[:, 0], 0.5 * HUGE, rtol=1e-6)


def test_where_what_all_have_pushed_is_too_much_downpour_goes_back_to_what_was_fetched() -> None:
    moved, center = communicated(MEETING["downpour"](), np.ones((4, 2)), np.full((4, 2), 0.5 * HUGE))
    np.testing.assert_array_equal(moved, np.ones((4, 2)))
    np.testing.assert_array_equal(center, np.ones((4, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_who_becomes_the_leader_is_within_a_rounding_of_where_it_was_and_often_there(dtype: Any) -> None:
    # All that adding an update to a parameter can do: 1 - 1e9, say, has no place for the 1.
    start = jnp.asarray([[1, 1], [1.5, 0.75], [-7, 1000], [3e4, -3e4]], dtype)
    method = periodic(lsgd_jax.lsgd(optax.sgd(0.0), global_pull=1.0, global_period=1))

    def step(x: jax.Array) -> jax.Array:
        updates, _ = method.update(x, method.init(x), x, value=jnp.abs(x[0] - 1))
        assert updates.dtype == dtype  # what stands around it in optax relies on that
        return optax.apply_updates(x, updates)

    ended = in_lanes(step, 1)(start)
    np.testing.assert_array_equal(ended[:2], jnp.ones((2, 2), dtype))  # within a factor of 2 there is no rounding
    assert (jnp.abs(ended - 1) <= float(jnp.finfo(dtype).eps) * jnp.abs(start)).all()
