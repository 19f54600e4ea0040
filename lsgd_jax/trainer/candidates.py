"""The models of a run that are evaluated: the center, the leader, and each worker."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lsgd_jax.collectives import broadcast_from_leader, elect_leader, is_inexact, mean
from lsgd_jax.engine.state import TrainState, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.window import window_mean


class Candidates(NamedTuple):
    """The models that an evaluation looks at, the same for all workers, and split as one of theirs is.

    Attributes:
      center: (params, model_state) of the center.
      leader: (params, model_state) of the worker with the lowest score.
      leader_rank: int32[], its rank j·l + i; -1 if no worker can lead, and then
        `leader` is worker 0.
    """

    center: tuple[Any, Any]
    leader: tuple[Any, Any]
    leader_rank: jax.Array


def make_candidates(method: DistributedOptimizer, topology: Topology) -> jax.stages.Wrapped:
    """Makes `state -> Candidates`, the jitted function that gathers the center and the leader from all workers."""

    def of_worker(params: Any, model_state: Any, opt_state: Any, losses: Any) -> Candidates:
        everybody = topology.axes.all
        finite = all_finite(params)
        leader = elect_leader(jnp.where(finite, window_mean(losses), jnp.inf), everybody)
        # Where nobody can lead, worker 0 is shown, for all devices to hold the same.
        first = jax.lax.axis_index(everybody) == 0
        shown = leader._replace(is_leader=leader.is_leader | (~leader.valid & first), valid=jnp.array(True))
        center = method.center(params, opt_state, topology.axes)
        leader_params, leader_state = broadcast_from_leader((params, model_state), shown, everybody)
        center_state = mean(model_state, everybody, where=finite)
        # What has no mean is the leader's.
        center_state = jax.tree.map(lambda m, x: m if is_inexact(m) else x, center_state, leader_state)
        return Candidates(
            center=(center, center_state),
            leader=(leader_params, leader_state),
            leader_rank=leader.rank,
        )

    def of_device(state: TrainState) -> Candidates:
        lanes = topology.over_lanes(of_worker)(state.params, state.model_state, state.opt_state, state.losses)
        return topology.split(jax.tree.map(lambda x: x[0, 0], lanes))  # all lanes hold the same

    return jax.jit(topology.over_devices(of_device, in_specs=(state_specs(),), out_specs=PartitionSpec()))


def every_worker(state: TrainState, topology: Topology) -> Iterator[tuple[Any, Any]]:
    """(params, model_state) of each worker, on every device that a worker may be on, in the order of ranks."""
    models = state.params, state.model_state

    def take(models: Any, group: int, worker: int) -> Any:
        return jax.tree.map(lambda x: x[group, worker], models)

    taken = jax.jit(take, out_shardings=topology.of_model(jax.eval_shape(take, models, 0, 0)))
    for group in range(topology.groups):
        for worker in range(topology.workers):
            yield taken(models, group, worker)
