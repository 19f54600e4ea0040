"""Other ways to say whom workers are pulled to than the paper's, to measure what its election is worth."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.collectives import Leader, mean
from lsgd_jax.optimizers.finite import all_finite, select, share_of, sum_of
from lsgd_jax.optimizers.sending import FromLeader


def by_chance(state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> jax.Array:
    """A number in [0, 1) in place of a score, another for each worker of an election and each of `state.elections`.

    The control: whoever has a score leads as often as any other. In elections inside groups, workers of the same place
    in theirs draw the same number.
    """
    key = functools.reduce(jax.random.fold_in, (state.elections, lax.axis_index(axis_name)), jax.random.key(0))
    return jnp.where(jnp.isfinite(score), jax.random.uniform(key), jnp.inf)


def softmin(temperature: float) -> Callable[[Any, Any, jax.Array, tuple[str, ...]], tuple[Leader, Any]]:
    """A `begin` that sends a mean in which a worker weighs exp(-score / temperature): `-> (best worker, mean)`.

    As the temperature falls it becomes the best worker's tree. A worker that cannot lead has no weight.
    """

    def begin(params: Any, state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> tuple[Leader, Any]:
        able = all_finite(params) & jnp.isfinite(score)
        leader = FromLeader().elect(params, state, score, axis_name)
        behind = jnp.where(able & leader.valid, score - leader.score, jnp.inf)
        weight = jnp.exp(-behind / temperature)
        shares = share_of(params, weight, mean(weight, axis_name), axis_name)
        return leader, select(leader.valid, sum_of(mean(shares, axis_name), params, axis_name), params)

    return begin
