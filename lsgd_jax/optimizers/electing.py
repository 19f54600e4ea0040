"""Other ways to say whom workers are pulled to than the paper's, to measure what its election is worth."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.collectives import Leader, mean
from lsgd_jax.optimizers.arithmetic import widened
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.sending import FromLeader


def by_chance(state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> jax.Array:
    """A number in [0, 1) in place of a score, another for each worker and each of `state.elections`.

    The control: whoever has a score leads as often as any other.
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
        share = weight / lax.axis_size(axis_name) / mean(weight, axis_name)  # they sum to 1

        def of_leaf(x: jax.Array) -> jax.Array:
            return jnp.where(weight > 0, share.astype(x.dtype) * x, 0) * lax.axis_size(axis_name)

        told = mean(jax.tree.map(of_leaf, widened(params)), axis_name)
        return leader, jax.tree.map(lambda x, m: jnp.where(leader.valid, m.astype(x.dtype), x), params, told)

    return begin
