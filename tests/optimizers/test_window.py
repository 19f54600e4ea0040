"""The window of the last numbers, against a deque."""

import math
from collections import deque
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.window import Window, empty_window, record, window_mean

LENGTH = 12
losses = st.one_of(st.floats(-1e3, 1e3, width=32), st.sampled_from([math.nan, math.inf, -math.inf]))


@cache
def compiled(window: int) -> Any:
    """float[LENGTH] losses to the score after each."""

    def step(state: Window, loss: jax.Array) -> tuple[Window, jax.Array]:
        state = record(state, loss)
        return state, window_mean(state)

    return jax.jit(lambda values: jax.lax.scan(step, empty_window(jnp.zeros([]), window), values)[1])


@settings(max_examples=60, deadline=None)
@given(window=st.sampled_from([1, 2, 5, LENGTH, LENGTH + 3]), values=st.lists(losses, min_size=LENGTH, max_size=LENGTH))
def test_a_score_is_the_mean_of_the_last_losses(window: int, values: list[float]) -> None:
    ring: deque[float] = deque(maxlen=window)
    scores = compiled(window)(np.array(values, np.float32))
    for value, ours in zip(values, scores, strict=True):
        ring.append(value)
        if all(map(math.isfinite, ring)):
            np.testing.assert_allclose(ours, np.mean(ring), rtol=1e-5, atol=1e-3)
        else:
            assert not np.isfinite(ours), "a loss that is not finite stays until it leaves the window"


def test_there_is_no_score_before_the_first_loss() -> None:
    assert np.isnan(window_mean(empty_window(jnp.zeros([]), 3)))


def test_huge_losses_leave_no_trace_once_they_left_the_window() -> None:
    scores = compiled(2)(np.array([1e30, 1e-3, 2e-3] + [0.0] * (LENGTH - 3), np.float32))
    np.testing.assert_allclose(scores[2], 1.5e-3, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_one_number_that_is_not_finite_is_enough_to_be_lost(bad: float, dtype: Any) -> None:
    healthy = {"count": jnp.arange(3), "w": jnp.ones((2, 3), dtype), "b": jnp.ones(4)}
    assert all_finite(healthy)
    assert not all_finite(healthy | {"w": healthy["w"].at[1, 2].set(bad)})


def test_recording_works_inside_jit_and_keeps_the_dtype() -> None:
    state = jax.jit(record)(empty_window(jnp.zeros([]), 3), jnp.asarray(2, jnp.bfloat16))
    assert state.values.dtype == jnp.float32
    np.testing.assert_allclose(window_mean(state), 2.0)
