"""A round: local steps on every worker, then the communication that is due."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.communications import (
    Begins,
    RoundReport,
    Score,
    make_communications,
    make_first_halves,
    workers_of,
)
from lsgd_jax.engine.halves import up_to_last_collective
from lsgd_jax.engine.local_steps import Batches, Loss, make_local_steps
from lsgd_jax.engine.schedules import Factor, constant
from lsgd_jax.engine.state import TrainState, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, steps_between

# Steps in one call, at most: what they are to draw is planned ahead, and the host hears of them after.
LONGEST_CALL = 64


def make_train_step(
    method: DistributedOptimizer,
    topology: Topology,
    loss: Loss,
    batches: Batches,
    *,
    rate_factor: Factor = constant,
    score: Score | None = None,
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
      score: what elections go by; by default the means of the workers' own last losses.
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
    first_halves = make_first_halves(method, topology)
    communicate_when_due = make_communications(method, topology, score)

    def one_round(begins: Begins, state: TrainState, data: Any, steps: jax.Array) -> tuple[TrainState, RoundReport]:
        if begins is None:
            state = first_halves.if_due(state)
        to_communication = period - state.step % period
        to_boundary = longest if longest_call is None else longest_call - state.step % longest_call
        steps = jnp.minimum(steps, jnp.minimum(to_communication, to_boundary))

        def local_steps(state: TrainState) -> TrainState:
            return take_steps(state, steps, state.step + steps, data)

        if not begins:
            return communicate_when_due(local_steps(state))

        def send(params: Any, opt_state: Any, losses: Any) -> tuple[Any, ...]:
            return first_halves.send(params, opt_state, losses, begins)

        state, news = _beside(send, local_steps, state)
        return communicate_when_due(first_halves.keep(state, news, begins))

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


def _beside(
    send: Callable[..., Any], local_steps: Callable[[TrainState], TrainState], state: TrainState
) -> tuple[TrainState, Any]:
    """The state after local steps, and what was sent before them, which may be under way meanwhile.

    No step is taken before the small numbers are there on which others depend, such as who leads: compilers would else
    let the first of several messages be under way, the smallest, and send the others after the steps. And none of what
    arrives is taken apart before they are taken.
    """
    under_way, taken_apart = up_to_last_collective(send, state.params, state.opt_state, state.losses)
    small = [i for i, array in enumerate(under_way) if array.size == state.own_steps.size]
    params, after = lax.optimization_barrier((state.params, [under_way[i] for i in small]))
    for i, array in zip(small, after, strict=True):
        under_way[i] = array
    state = local_steps(state._replace(params=params))
    params, under_way = lax.optimization_barrier((state.params, under_way))
    return state._replace(params=params), taken_apart(*under_way)


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

        workers = local_steps(workers_of(state), state.keys, state.own_steps, steps, factor, data)
        return state._replace(**workers._asdict(), step=end, own_steps=state.own_steps + steps)

    return take_steps


def end_of_call(method: DistributedOptimizer, groups: int, step: int, longest_call: int | None = None) -> int:
    """The step at which a call of the train step that begins at `step` ends by itself."""
    period = round_steps(method, groups)
    to_boundary = LONGEST_CALL if longest_call is None else longest_call - step % longest_call
    return step + min(to_boundary, period - step % period)


def round_steps(method: DistributedOptimizer, groups: int) -> int:
    """Local steps between two communications of any kind; a call's length where there are none."""
    return steps_between(method, groups) or LONGEST_CALL
