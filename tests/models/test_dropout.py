"""Dropout draws what Flax's draws, at less cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsgd_jax.models.dropout import Dropout, bernoulli

KEY = jax.random.key(3)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("broadcast", [(), (0,)])
def test_what_is_dropped_and_what_is_left_equals_flax_bit_for_bit(rate: float, broadcast: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(1), (5, 7, 33))
    ours = jax.jit(lambda key: Dropout(rate, broadcast_dims=broadcast)(x, nnx.Rngs(dropout=key)))(KEY)
    flax = jax.jit(lambda key: nnx.Dropout(rate, broadcast_dims=broadcast)(x, rngs=nnx.Rngs(dropout=key)))(KEY)
    np.testing.assert_array_equal(ours, flax)


@pytest.mark.parametrize("probability", [0.0, 1e-7, 0.1, 1 / 3, 0.9, 1.0])
def test_bits_are_those_of_jax_also_on_lanes(probability: float) -> None:
    keys = jax.random.split(KEY, 3)
    ours = jax.vmap(lambda key: bernoulli(key, probability, (1000, 13)))(keys)
    np.testing.assert_array_equal(ours, jax.vmap(lambda key: jax.random.bernoulli(key, probability, (1000, 13)))(keys))


def test_keys_of_another_generator_draw_as_they_do_in_jax() -> None:
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(bernoulli(key, 0.5, (100,)), jax.random.bernoulli(key, 0.5, (100,)))


def test_evaluation_drops_nothing() -> None:
    x = jnp.arange(6.0)
    assert Dropout(0.5)(x, None) is x
