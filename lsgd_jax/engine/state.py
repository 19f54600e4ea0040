"""The state of all workers: what it holds, how it begins, and where it lives."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from optax.contrib import ReduceLROnPlateauState

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.schedules import start_plateau
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.distributed_optimizer import Axes, DistributedOptimizer, scalar_like
from lsgd_jax.optimizers.window import Window, empty_window

# How many losses make a score, for reports, where the method itself needs none.
REPORT_WINDOW = 10


class TrainState(NamedTuple):
    """State of all workers. Leaves have the shape (groups, workers, ...), but for those of `SHARED` fields.

    Attributes:
      params: the parameters.
      model_state: what else the model keeps (batch statistics); may be empty.
      opt_state: the distributed optimizer's state.
      losses: the last losses of each worker.
      keys: key[groups, workers], from which each worker draws all its randomness.
      step: int32[], local steps so far, the same for all; where workers differ, what they share.
      own_steps: int32[groups, workers], local steps that each worker has taken itself.
      learning_rate: float32[], a factor on the base optimizer's updates, the same for all. In the
        state, so that runs which differ in it share a compiled program.
      plateau: what `lsgd_jax.engine.schedules.update_plateau` has seen, the same for all; its
        `scale` is a factor on the learning rate.
    """

    params: Any
    model_state: Any
    opt_state: Any
    losses: Window
    keys: jax.Array
    step: jax.Array
    own_steps: jax.Array
    learning_rate: jax.Array
    plateau: ReduceLROnPlateauState


# What all workers have in common.
SHARED = ("step", "learning_rate", "plateau")


def shared_fields(state: TrainState) -> dict[str, Any]:
    """What all workers have in common, by name."""
    return {name: getattr(state, name) for name in SHARED}


def start_state(
    method: DistributedOptimizer,
    topology: Topology,
    init_model: Callable[[jax.Array], tuple[Any, Any]],
    key: jax.Array,
    learning_rate: ArrayLike = 1.0,
    *,
    same_init: bool = True,
) -> TrainState:
    """The state before the first step; pure. `init_state` says what the arguments are."""
    init_key, worker_key = jax.random.split(key)
    init_keys = jax.random.split(init_key, topology.size)
    window = method.window or REPORT_WINDOW

    def start(params: Any, key: jax.Array) -> tuple[Any, Window]:
        del key  # an array to map over, where there are no parameters
        return method.init(params, Axes()), empty_window(scalar_like(params, Axes()), window)

    # One after the other: random initializers take long to compile, batched ones still longer.
    if same_init:
        models = jax.tree.map(lambda x: jnp.broadcast_to(x, (*topology.shape, *x.shape)), init_model(init_keys[0]))
    else:
        models = lax.map(init_model, init_keys)
        models = jax.tree.map(lambda x: x.reshape(*topology.shape, *x.shape[1:]), models)
    params, model_state = models
    keys = jax.random.split(worker_key, topology.shape)
    opt_state, losses = jax.vmap(jax.vmap(start, axis_name=WORKER), axis_name=GROUP)(params, keys)
    return TrainState(
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        losses=losses,
        keys=keys,
        step=jnp.zeros([], jnp.int32),
        own_steps=jnp.zeros(topology.shape, jnp.int32),
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        plateau=start_plateau(),
    )


def init_state(
    method: DistributedOptimizer,
    topology: Topology,
    init_model: Callable[[jax.Array], tuple[Any, Any]],
    key: jax.Array,
    learning_rate: float = 1.0,
    *,
    same_init: bool = True,
) -> TrainState:
    """The state before the first step, on the topology's devices. It cannot be called inside `jax.jit`.

    Args:
      method: the method.
      topology: where the workers live.
      init_model: `key -> (params, model_state)` of one worker.
      key: the key of the run; what worker j·l + i draws does not depend on the mesh, if a batch of
        keys draws what each would alone, as JAX's default "threefry2x32" does and "rbg" does not.
      learning_rate: a factor on updates, where the base optimizer ends with
        `lsgd_jax.engine.schedules.follow_factor`.
      same_init: whether all workers start from the same parameters.
    """
    start = functools.partial(start_state, method, topology, init_model, same_init=same_init)
    shardings = state_shardings(topology, jax.eval_shape(start, key, learning_rate))
    return jax.jit(start, out_shardings=shardings, compiler_options=_quick(topology))(key, learning_rate)


def _quick(topology: Topology) -> dict[str, Any] | None:
    """Compiler options for what runs once: on CPU, initializers of 20 layers compile in 3 s instead of 50."""
    return {"xla_backend_optimization_level": 0} if topology.platform == "cpu" else None


def state_specs() -> Any:
    """How `shard_map` splits a `TrainState`."""
    specs: Any = dict.fromkeys(TrainState._fields, PartitionSpec(GROUP, WORKER))
    return TrainState(**specs | dict.fromkeys(SHARED, PartitionSpec()))


def state_shardings(topology: Topology, state: TrainState) -> TrainState:
    """The sharding of each leaf of a state."""

    own = TrainState(**state._asdict() | dict.fromkeys(SHARED))
    shared = {field: jax.tree.map(lambda _: topology.replicated, getattr(state, field)) for field in SHARED}
    return topology.of_workers(own)._replace(**shared)
