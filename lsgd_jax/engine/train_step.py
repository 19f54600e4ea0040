"""A round: local steps on every worker, then the communication that is due."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER, Leader
from lsgd_jax.engine.communication import WorkerState, communicate, somebody_lost
from lsgd_jax.engine.local_steps import Batches, Loss, make_local_steps
from lsgd_jax.engine.schedules import Factor, constant
from lsgd_jax.engine.state import TrainState, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.distributed_optimizer import (
    Communication,
    DistributedOptimizer,
    communications_of,
    steps_between,
)
from lsgd_jax.optimizers.finite import all_finite, select
from lsgd_jax.optimizers.window import window_mean

# The numbers of communications that begin in a call; None where the step tells.
Begins = tuple[int, ...] | None
# Steps in one call, at most: what they are to draw is planned ahead, and the host hears of them after.
LONGEST_CALL = 64


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


def make_train_step(
    method: DistributedOptimizer,
    topology: Topology,
    loss: Loss,
    batches: Batches,
    *,
    rate_factor: Factor = constant,
    longest_call: int | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> jax.stages.Wrapped:
    """Makes the function that trains all workers for up to a round, in one call.

    A call ends at `end_of_call`, where a communication may be due, or earlier if it is
    told to. Where calls are cut changes nothing of the trajectory, and they all run
    the same compiled program.

    A worker whose parameters are not finite starts again at the next communication
    that has something to start from (a valid leader, a mean, a center): see
    `lsgd_jax.engine.communication`.

    Args:
      method: the method.
      topology: where the workers live.
      loss: the loss of one worker on one minibatch.
      batches: where minibatches come from.
      rate_factor: the factor on the learning rate over steps. The method's base optimizer
        must end with `lsgd_jax.engine.schedules.follow_factor`, which applies it.
      longest_call: local steps in one call, at most; None for LONGEST_CALL.
      compiler_options: for `jax.jit`.

    Returns:
      `train_step(state, data, steps, begins=None) -> (state, report)`, jitted. It consumes
      `state` (its buffers are donated) and takes at most `steps` local steps. Communications of
      `overlapped` begin before these: with `begins_at` of the step where the call begins as
      `begins`, which is static, each of its values makes a program in which they can be under
      way while local steps are taken; without it they are in conditionals, in which they cannot.

    Raises:
      ValueError: if a global period is no multiple of the local one.
    """
    period = round_steps(method, topology.groups)
    longest = min(period, longest_call or LONGEST_CALL)
    take_steps = make_take_steps(method, topology, loss, batches, longest, rate_factor)
    begin_ahead = make_begin_ahead(method, topology)
    communicate_when_due = make_communications(method, topology, ahead=False)

    def one_round(begins: Begins, state: TrainState, data: Any, steps: jax.Array) -> tuple[TrainState, RoundReport]:
        state = begin_ahead(state, begins)
        to_communication = period - state.step % period
        to_boundary = longest if longest_call is None else longest_call - state.step % longest_call
        steps = jnp.minimum(steps, jnp.minimum(to_communication, to_boundary))
        return communicate_when_due(take_steps(state, steps, state.step + steps, data))

    per_worker, same = PartitionSpec(GROUP, WORKER), PartitionSpec()

    def train_step(
        state: TrainState, data: Any, steps: jax.Array, begins: Begins = None
    ) -> tuple[TrainState, RoundReport]:
        mapped = topology.over_devices(
            functools.partial(one_round, begins),
            in_specs=(state_specs(), batches.specs, same),
            out_specs=(state_specs(), per_worker),
        )
        return mapped(state, data, steps)

    return jax.jit(train_step, donate_argnums=0, static_argnames="begins", compiler_options=compiler_options)


def make_take_steps(
    method: DistributedOptimizer, topology: Topology, loss: Loss, batches: Batches, longest: int, rate_factor: Factor
) -> Callable[[TrainState, jax.Array, jax.Array, Any], TrainState]:
    """Makes `(state, steps, end, data) -> state`, the local steps of a call on a device, which communicate nothing.

    `steps` is how many to take, `longest` at most: int32[], or int32[groups, workers] where
    workers differ; `end` is the step, int32[], that all have come to then. The learning rate
    follows that shared count: by their own, fast workers would be past the end of a
    schedule while slow ones have hardly begun. Inside a call it goes on with a worker's
    steps, up to the last before `end`.
    """
    local_steps = make_local_steps(method, topology, loss, batches, longest)

    def take_steps(state: TrainState, steps: jax.Array, end: jax.Array, data: Any) -> TrainState:
        def factor(i: jax.Array) -> jax.Array:
            return state.learning_rate * rate_factor(jnp.minimum(state.step + i, end - 1)) * state.plateau.scale

        workers = local_steps(_workers(state), state.keys, state.own_steps, steps, factor, data)
        return state._replace(**workers._asdict(), step=end, own_steps=state.own_steps + steps)

    return take_steps


def make_begin_ahead(method: DistributedOptimizer, topology: Topology) -> Callable[[TrainState, Begins], TrainState]:
    """Makes `(state, begins) -> state`, what comes before the local steps on a device: communications of `overlapped`.

    They are those that are due at the step where the last call has ended.
    """
    ahead = [c for c in communications_of(method, topology.groups) if c.ahead]

    def begin_ahead(state: TrainState, begins: Begins) -> TrainState:
        for i, communication in enumerate(ahead):
            if begins is None:
                state, _ = _communicate_if_due(communication, method, topology, state)
            elif i in begins:
                state, _ = _communicate_all(communication, communication.level, method, topology, state)
        return _after_what_is_small(state) if begins else state

    return begin_ahead


def _after_what_is_small(state: TrainState) -> TrainState:
    """The same, but no local step is taken before the small numbers in it are there, such as who leads.

    What is sent because of them can then be under way while local steps are taken. A compiler would else let the
    first of several messages that follow from one another be under way, the smallest, and send the others after.
    """
    leaves, structure = jax.tree.flatten(state.opt_state)
    workers = state.own_steps.size
    small = [i for i, leaf in enumerate(leaves) if leaf.size == workers]
    params, after = lax.optimization_barrier((state.params, [leaves[i] for i in small]))
    for i, leaf in zip(small, after, strict=True):
        leaves[i] = leaf
    return state._replace(params=params, opt_state=jax.tree.unflatten(structure, leaves))


def begins_at(method: DistributedOptimizer, groups: int, step: int) -> tuple[int, ...]:
    """Which communications of `overlapped`, by their number, begin in a call that begins at a step."""
    ahead = [c for c in communications_of(method, groups) if c.ahead]
    return tuple(i for i, c in enumerate(ahead) if step > 0 and c.due(step))


def kinds_of_call(method: DistributedOptimizer, groups: int) -> list[tuple[int, ...]]:
    """All that `begins_at` gives for a method: a program each."""
    periods = [c.period for c in communications_of(method, groups)]
    steps = range(0, math.lcm(*periods) + 1, round_steps(method, groups))
    return sorted({(), *(begins_at(method, groups, step) for step in steps)})


def make_communications(
    method: DistributedOptimizer, topology: Topology, *, ahead: bool = True
) -> Callable[[TrainState], tuple[TrainState, RoundReport]]:
    """Makes `state -> (state, report)`, what follows the local steps on a device: the communications that are due.

    Those of `overlapped` begin there too, unless `ahead` is False.
    """
    communications = [c for c in communications_of(method, topology.groups) if ahead or not c.ahead]

    def communicate_when_due(state: TrainState) -> tuple[TrainState, RoundReport]:
        scores = topology.over_lanes(window_mean)(state.losses)
        lost = ~topology.over_lanes(all_finite)(state.params)
        elections: dict[str, Election] = {}
        for communication in communications:
            state, election = _communicate_if_due(communication, method, topology, state)
            if communication.ahead:  # who was elected is told when it takes effect
                continue
            before = elections.get(communication.level)
            # At most one of a level is due at a time.
            elections[communication.level] = election if before is None else select(election.due, election, before)
        workers = topology.split(_workers(state), leading=2)  # where it is updated in place
        return state._replace(**workers._asdict()), RoundReport(scores, lost, elections)

    return communicate_when_due


def end_of_call(method: DistributedOptimizer, groups: int, step: int, longest_call: int | None = None) -> int:
    """The step at which a call of the train step that begins at `step` ends by itself."""
    period = round_steps(method, groups)
    to_boundary = LONGEST_CALL if longest_call is None else longest_call - step % longest_call
    return step + min(to_boundary, period - step % period)


def round_steps(method: DistributedOptimizer, groups: int) -> int:
    """Local steps between two communications of any kind; a call's length where there are none."""
    return steps_between(method, groups) or LONGEST_CALL


def _communicate_if_due(
    communication: Communication, method: DistributedOptimizer, topology: Topology, state: TrainState
) -> tuple[TrainState, Election]:
    """One `cond` on the shared step counter, so that a call in which nothing is due sends nothing."""

    @functools.partial(jax.jit, inline=True)  # traced once for both branches
    def take_place(state: TrainState) -> tuple[TrainState, Any]:
        of_part = functools.partial(_communicate_all, communication, communication.level, method, topology)
        if communication.whole is None:
            return of_part(state)
        with jax.named_scope(communication.level):
            lost = topology.over_lanes(functools.partial(somebody_lost, topology.axes.all))(state.params)
        of_all = functools.partial(_communicate_all, communication.whole, "whole", method, topology)
        return lax.cond(lost[0, 0], of_all, of_part, state)

    def nothing(state: TrainState) -> tuple[TrainState, Any]:
        _, news = jax.eval_shape(take_place, state)
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), news)

    due = communication.due(state.step) & (state.step > 0)
    state, (leader, restarted) = lax.cond(due, take_place, nothing, state)
    return state, Election(jnp.broadcast_to(due, state.keys.shape), leader, restarted)


def _communicate_all(
    communication: Communication, scope: str, method: DistributedOptimizer, topology: Topology, state: TrainState
) -> tuple[TrainState, tuple[Leader | None, jax.Array]]:
    """A communication of all workers of a device; and of each who was elected, and whether it started again."""
    names = topology.axes.names(communication.axes)

    def worker(state: WorkerState) -> Any:
        after, leader, restarted = communicate(communication, method, names, state)
        return after, (leader, restarted)

    with jax.named_scope(scope):  # by which compiled programs are read
        after, news = topology.over_lanes(worker)(_workers(state))
    news = jax.tree.map(lambda x: jnp.broadcast_to(x, state.keys.shape), news)
    return state._replace(**after._asdict()), news


def _workers(state: TrainState) -> WorkerState:
    return WorkerState(state.params, state.model_state, state.opt_state, state.losses)
