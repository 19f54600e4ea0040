"""LGD whose learning rate and pull are schedules, as some theorems have them; `lsgd` pulls by a number."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsgd_jax import GROUP, WORKER, Axes, DistributedOptimizer, broadcast_from_leader, elect_leader, leader_pull
from lsgd_jax.collectives import mean
from lsgd_jax.optimizers.distributed_optimizer import Communication, Outcome, restart_of, update_of
from lsgd_jax.optimizers.leader_pull import LeaderPullState


class ScheduledState(NamedTuple):
    """State of one worker: the base optimizer's, and the count of pulls."""

    base: optax.OptState
    pull: LeaderPullState


def scheduled_lgd(base: optax.GradientTransformation, pull: optax.Schedule) -> DistributedOptimizer:
    """A step of `base`, then `pull(t)` of the way to the leader, the worker whose last loss was the lowest."""
    puller = leader_pull(pull)

    def init(params: jax.Array, axes: Axes) -> ScheduledState:
        del axes
        return ScheduledState(base.init(params), puller.init(params))

    def begin(params: jax.Array, state: ScheduledState, score: jax.Array, axis_name: tuple[str, ...]) -> Any:
        del state
        leader = elect_leader(score, axis_name)
        return leader, broadcast_from_leader(params, leader, axis_name)

    def finish(params: jax.Array, state: ScheduledState, heard: Any, axis_name: tuple[str, ...]) -> Outcome:
        del axis_name
        leader, leader_params = heard
        updates, pull_state = puller.update(jnp.zeros_like(params), state.pull, params, local_leader=leader_params)
        state = state._replace(pull=pull_state)
        return Outcome(optax.apply_updates(params, updates), state, leader, jnp.array(False))

    return DistributedOptimizer(
        init=init,
        update=update_of(base),
        communications=(Communication(1, (GROUP, WORKER), begin, finish),),
        center=lambda params, state, axes: mean(params, axes.all),
        restart=restart_of(base),
        window=1,
    )
