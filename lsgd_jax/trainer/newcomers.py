"""Workers that come to a run that goes on: what they begin with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER, broadcast_from_leader, elect_leader
from lsgd_jax.engine.communication import WorkerState, begin_again
from lsgd_jax.engine.local_steps import keeps_gradients
from lsgd_jax.engine.state import SHARED, TrainState, shared_fields, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.compressed import is_compressed, with_common_references
from lsgd_jax.optimizers.distributed_optimizer import Axes, DistributedOptimizer
from lsgd_jax.optimizers.finite import all_finite, select
from lsgd_jax.optimizers.window import window_mean

# The axes of a state's fields, to map over workers.
OVER_WORKERS: Any = TrainState(**dict.fromkeys(TrainState._fields, 0) | dict.fromkeys(SHARED))  # type: ignore[arg-type]


def begin_new(method: DistributedOptimizer, worker: TrainState, key: jax.Array, new: jax.Array) -> TrainState:
    """A worker, inside the axes (GROUP, WORKER); if it is new it begins from the parameters that it has.

    It then gets a fresh optimizer state and no losses, as a worker that was lost and starts again; but where gradients
    are shared in each step all have to stay equal, and it keeps the optimizer's state that it has.

    Args:
      method: the method.
      worker: the worker, in a state of which it has the shared fields too.
      key: from which it draws, if it is new.
      new: bool[].
    """
    again = begin_again(method, WorkerState(worker.params, worker.model_state, worker.opt_state, worker.losses))
    changed: dict[str, Any] = {
        "losses": again.losses,
        "own_steps": worker.step,
        # With the step, since a key of its number may be somebody's already.
        "keys": jax.random.fold_in(key, worker.step),
    }
    if keeps_gradients(method):
        changed["opt_state"] = again.opt_state
    old = {name: getattr(worker, name) for name in changed}
    worker = worker._replace(**select(new, changed, old))
    if is_compressed(worker.opt_state):
        fresh = method.init(worker.params, Axes())
        worker = worker._replace(opt_state=with_common_references(worker.opt_state, fresh))
    return worker


def make_admit(method: DistributedOptimizer, topology: Topology) -> Callable[..., TrainState]:
    """Makes `(state, fresh keys, new) -> state`, in which those that are new have begun; it consumes the state.

    They start from the best in their group that is not new, or of all: see `begin_new`.
    """
    axes = topology.axes

    def start(worker: TrainState, key: jax.Array, new: jax.Array) -> TrainState:
        score = window_mean(worker.losses)
        largest = jnp.finfo(score.dtype).max  # who has no score counts as the worst of those who can lead
        able = ~new & all_finite(worker.params)
        score = jnp.where(able, jnp.where(jnp.isfinite(score), score, largest), jnp.inf)
        names = ["params", "model_state", *([] if keeps_gradients(method) else ["opt_state"])]
        own = {name: getattr(worker, name) for name in names}
        of_group, of_all = (elect_leader(score, among) for among in (axes.worker, axes.all))
        near = broadcast_from_leader(own, of_group, axes.worker)
        far = broadcast_from_leader(own, of_all, axes.all)
        worker = worker._replace(**select(new, select(of_group.valid, near, far), own))
        nothing: dict[str, Any] = dict.fromkeys(SHARED, ())
        return begin_new(method, worker, key, new)._replace(**nothing)

    def on_device(state: TrainState, keys: jax.Array, new: jax.Array) -> TrainState:
        began = topology.over_lanes(start, in_axes=(OVER_WORKERS, 0, 0))(state, keys, new)
        return began._replace(**shared_fields(state))

    split, specs = PartitionSpec(GROUP, WORKER), state_specs()
    admit = topology.over_devices(on_device, in_specs=(specs, split, split), out_specs=specs)
    return jax.jit(admit, donate_argnums=0)
