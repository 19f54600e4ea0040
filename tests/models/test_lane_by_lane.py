"""Convolutions of several models that are computed one after the other: JAX's own numbers, and no grouped kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from thorough import thorough

from lsgd_jax.models import convolution
from lsgd_jax.models.convolution import LAYOUT, conv_general_dilated
from lsgd_jax.models.convolution.lane_by_lane import UNROLLED, lane_by_lane

MANY = UNROLLED + 2


def strided(images: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(images, kernel, (2, 1), ((1, 1), (0, 1)), dimension_numbers=LAYOUT)


def drawn(lanes: tuple[int, ...], seed: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (*lanes, 3, 7, 6, 4)), jax.random.normal(keys[1], (*lanes, 3, 3, 4, 5))


def derived(convolve: Callable[..., jax.Array], order: int) -> Callable[..., Any]:
    """The value, both gradients of a loss, or both gradients of what these have as a norm."""

    def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(convolve(images, kernel)).sum()

    if order == 0:
        return convolve
    first = jax.grad(loss, (0, 1))
    if order == 1:
        return first
    return jax.grad(lambda *args: sum(jnp.square(grad).sum() for grad in first(*args)), (0, 1))


@pytest.mark.parametrize("order", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("lanes", "own_kernels"),
    [((), True), ((3,), False), ((2, 2), True), ((MANY,), True)]
    + [thorough(*others) for others in [((), False), ((3,), True), ((2, 2), False), ((MANY,), False)]],
    ids=str,
)
def test_values_and_gradients_of_any_order_are_those_of_jax(
    order: int, lanes: tuple[int, ...], own_kernels: bool
) -> None:
    images, kernels = drawn(lanes, order)
    in_axes = (0, 0 if own_kernels else None)
    kernels = kernels if own_kernels else kernels[(0,) * len(lanes)]
    ours, theirs = derived(lane_by_lane(strided), order), derived(strided, order)
    for _ in lanes:
        ours, theirs = jax.vmap(ours, in_axes), jax.vmap(theirs, in_axes)
    for got, expected in zip(
        jax.tree.leaves(jax.jit(ours)(images, kernels)), jax.tree.leaves(theirs(images, kernels)), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def program(lanes: int, in_axes: Any = 0) -> str:
    images, kernels = drawn((lanes,), 0)
    grads = jax.vmap(derived(lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=LAYOUT), 1),
                     in_axes)  # fmt: skip
    return jax.jit(grads).lower(images, kernels if in_axes == 0 else kernels[0]).compile().as_text() or ""


def test_on_a_gpu_kernels_of_several_models_are_not_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "platform", lambda: "gpu")
    few, many, shared = program(4), program(MANY), program(4, (0, None))
    assert [text.count(" convolution(") for text in (few, many, shared)] == [3 * 4, 3, 2 + 4]
    assert [text.count("_group_count=") for text in (few, many, shared)] == [0, 0, 0]
    assert many.count(" while(") == 3, "those of many are in loops"
    monkeypatch.setattr(convolution, "platform", lambda: "tpu")
    everywhere_else = program(4)
    assert everywhere_else.count(" convolution(") == everywhere_else.count("_group_count=4") == 3
