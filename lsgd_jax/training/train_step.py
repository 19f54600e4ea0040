"""A round: local steps on every worker, then the communication that is due."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from optax.contrib import ReduceLROnPlateauState

from lsgd_jax.collectives import GROUP, WORKER, Leader
from lsgd_jax.optimizers.distributed_optimizer import Axes, Communication, DistributedOptimizer, schedule
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.window import Window, empty_window, window_mean
from lsgd_jax.training.communication import WorkerState, communicate
from lsgd_jax.training.local_steps import Batches, Loss, make_local_steps
from lsgd_jax.training.schedules import Factor, constant, start_plateau
from lsgd_jax.training.topology import Topology

# How many losses make a score, for reports, where the method itself needs none.
REPORT_WINDOW = 10

# Steps in one call, at most: what they are to draw is planned ahead, and the host hears of them after.
LONGEST_CALL = 64


class TrainState(NamedTuple):
    """State of all workers. Leaves have the shape (groups, workers, ...), but for those of `SHARED` fields.

    Attributes:
      params: the parameters.
      model_state: what else the model keeps (batch statistics); may be empty.
      opt_state: the distributed optimizer's state.
      losses: the last losses of each worker.
      keys: key[groups, workers], from which each worker draws all its randomness.
      step: int32[], local steps so far, the same for all.
      learning_rate: float32[], a factor on the base optimizer's updates, the same for all. In the
        state, so that runs which differ in it share a compiled program.
      plateau: what `lsgd_jax.training.schedules.see` has seen, the same for all; its
        `scale` is a factor on the learning rate.
    """

    params: Any
    model_state: Any
    opt_state: Any
    losses: Window
    keys: jax.Array
    step: jax.Array
    learning_rate: jax.Array
    plateau: ReduceLROnPlateauState


# What all workers have in common.
SHARED = ("step", "learning_rate", "plateau")


class Election(NamedTuple):
    """What one kind of communication did in a round; leaves [groups, workers].

    Attributes:
      due: bool, whether it took place.
      leader: who was elected, or None for a method without leaders.
      restarted: bool, whether the worker was lost and started again from another.
    """

    due: jax.Array
    leader: Leader | None
    restarted: jax.Array


class RoundReport(NamedTuple):
    """What happened in a round; leaves [groups, workers].

    Attributes:
      score: float, the mean of each worker's last losses, at the end of the local steps.
      lost: bool, whether any parameter was not finite at the end of the local steps.
      elections: by level, "local" and "global".
    """

    score: jax.Array
    lost: jax.Array
    elections: dict[str, Election]


def start_state(
    optimizer: DistributedOptimizer,
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
    window = optimizer.window or REPORT_WINDOW

    def start(params: Any) -> Any:
        return optimizer.init(params, Axes())

    # One after the other: random initializers take long to compile, batched ones still longer.
    if same_init:
        models = jax.tree.map(lambda x: jnp.broadcast_to(x, (*topology.shape, *x.shape)), init_model(init_keys[0]))
    else:
        models = lax.map(init_model, init_keys)
        models = jax.tree.map(lambda x: x.reshape(*topology.shape, *x.shape[1:]), models)
    params, model_state = models
    return TrainState(
        params=params,
        model_state=model_state,
        opt_state=jax.vmap(jax.vmap(start, axis_name=WORKER), axis_name=GROUP)(params),
        losses=jax.vmap(jax.vmap(lambda params: empty_window(params, window)))(params),
        keys=jax.random.split(worker_key, topology.shape),
        step=jnp.zeros([], jnp.int32),
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        plateau=start_plateau(),
    )


def init_state(
    optimizer: DistributedOptimizer,
    topology: Topology,
    init_model: Callable[[jax.Array], tuple[Any, Any]],
    key: jax.Array,
    learning_rate: float = 1.0,
    *,
    same_init: bool = True,
) -> TrainState:
    """The state before the first step, on the topology's devices. It cannot be called inside `jax.jit`.

    Args:
      optimizer: the method.
      topology: where the workers live.
      init_model: `key -> (params, model_state)` of one worker.
      key: the key of the run; what worker j·l + i draws does not depend on the mesh.
      learning_rate: a factor on updates, where the base optimizer ends with
        `lsgd_jax.training.schedules.follow_factor`.
      same_init: whether all workers start from the same parameters.
    """
    start = functools.partial(start_state, optimizer, topology, init_model, same_init=same_init)
    shardings = state_shardings(topology, jax.eval_shape(start, key, learning_rate))
    return jax.jit(start, out_shardings=shardings, compiler_options=_quick(topology))(key, learning_rate)


def _quick(topology: Topology) -> dict[str, Any] | None:
    """Compiler options for what runs once: on CPU, initializers of 20 layers compile in 3 s instead of 50."""
    return {"xla_backend_optimization_level": 0} if topology.mesh.devices.flat[0].platform == "cpu" else None


def state_specs() -> Any:
    """How `shard_map` splits a `TrainState`."""
    specs: Any = dict.fromkeys(TrainState._fields, PartitionSpec(GROUP, WORKER))
    return TrainState(**specs | dict.fromkeys(SHARED, PartitionSpec()))


def state_shardings(topology: Topology, state: TrainState) -> TrainState:
    """The sharding of each leaf of a state."""

    def of(field: str) -> Any:
        place = topology.replicated if field in SHARED else topology.per_worker
        return jax.tree.map(lambda _: place, getattr(state, field))

    return TrainState(**{field: of(field) for field in TrainState._fields})


def make_train_step(
    optimizer: DistributedOptimizer,
    topology: Topology,
    loss: Loss,
    batches: Batches,
    *,
    rate_factor: Factor = constant,
    longest_call: int | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> jax.stages.Wrapped:
    """Makes the function that trains all workers for up to a round, in one call.

    A call ends at `call_end`, where a communication may be due, or earlier if it is
    told to. Where calls are cut changes nothing of the trajectory, and they all run
    the same compiled program.

    A worker whose parameters are not finite starts again at the next communication
    that has something to start from (a valid leader, a mean, a center): see
    `lsgd_jax.training.communication`.

    Args:
      optimizer: the method.
      topology: where the workers live.
      loss: the loss of one worker on one minibatch.
      batches: where minibatches come from.
      rate_factor: the factor on the learning rate over steps. The method's base optimizer
        must end with `lsgd_jax.training.schedules.follow_factor`, which applies it.
      longest_call: local steps in one call, at most; None for LONGEST_CALL.
      compiler_options: for `jax.jit`.

    Returns:
      `train_step(state, data, steps) -> (state, report)`, jitted. It consumes
      `state` (its buffers are donated) and takes at most `steps` local steps.

    Raises:
      ValueError: if a global period is no multiple of the local one.
    """
    communications = schedule(optimizer, topology.groups)
    period = _shortest_period(optimizer, topology.groups)
    longest = min(period, longest_call or LONGEST_CALL)
    local_steps = make_local_steps(optimizer, topology, loss, batches, longest)

    def one_round(state: TrainState, data: Any, steps: jax.Array) -> tuple[TrainState, RoundReport]:
        to_communication = period - state.step % period
        to_boundary = longest if longest_call is None else longest_call - state.step % longest_call
        steps = jnp.minimum(steps, jnp.minimum(to_communication, to_boundary))

        def factor(step: jax.Array) -> jax.Array:
            return state.learning_rate * rate_factor(step) * state.plateau.scale

        workers = local_steps(_workers(state), state.keys, state.step, steps, factor, data)
        state = state._replace(**workers._asdict(), step=state.step + steps)
        scores = topology.over_lanes(window_mean)(state.losses)
        lost = ~topology.over_lanes(all_finite)(state.params)
        elections = {}
        for communication in communications:
            state, elections[communication.level] = _communicate_if_due(communication, optimizer, topology, state)
        return state, RoundReport(scores, lost, elections)

    per_worker, same = PartitionSpec(GROUP, WORKER), PartitionSpec()
    mapped = topology.over_devices(
        one_round,
        in_specs=(state_specs(), per_worker if batches.per_worker else same, same),
        out_specs=(state_specs(), per_worker),
    )
    return jax.jit(mapped, donate_argnums=0, compiler_options=compiler_options)


def call_end(optimizer: DistributedOptimizer, groups: int, step: int, longest_call: int | None = None) -> int:
    """The step at which a call of the train step that begins at `step` ends by itself."""
    period = _shortest_period(optimizer, groups)
    to_boundary = LONGEST_CALL if longest_call is None else longest_call - step % longest_call
    return step + min(to_boundary, period - step % period)


def _shortest_period(optimizer: DistributedOptimizer, groups: int) -> int:
    return min((c.period for c in schedule(optimizer, groups)), default=LONGEST_CALL)


def _communicate_if_due(
    communication: Communication, optimizer: DistributedOptimizer, topology: Topology, state: TrainState
) -> tuple[TrainState, Election]:
    """One `cond` on the shared step counter, so that a call in which nothing is due sends nothing."""
    names = topology.axes.names(communication.axes)

    def communicate_all(state: TrainState) -> tuple[TrainState, Any]:
        def worker(state: WorkerState) -> Any:
            after, leader, restarted = communicate(communication, optimizer, names, state)
            return after, (leader, restarted)

        after, news = topology.over_lanes(worker)(_workers(state))
        news = jax.tree.map(lambda x: jnp.broadcast_to(x, state.keys.shape), news)
        return state._replace(**after._asdict()), news

    def nothing(state: TrainState) -> tuple[TrainState, Any]:
        _, news = jax.eval_shape(communicate_all, state)
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), news)

    due = state.step % communication.period == 0
    state, (leader, restarted) = lax.cond(due, communicate_all, nothing, state)
    return state, Election(jnp.broadcast_to(due, state.keys.shape), leader, restarted)


def _workers(state: TrainState) -> WorkerState:
    return WorkerState(state.params, state.model_state, state.opt_state, state.losses)
