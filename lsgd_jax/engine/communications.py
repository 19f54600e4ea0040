"""What the workers of a device do together in a call of the train step: the communications that are due."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.collectives import Leader
from lsgd_jax.engine.communication import WorkerState, communicate, somebody_lost
from lsgd_jax.engine.state import TrainState
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.distributed_optimizer import (
    Communication,
    DistributedOptimizer,
    communications_of,
    steps_between,
)
from lsgd_jax.optimizers.finite import all_finite, select
from lsgd_jax.optimizers.window import Window, emptied, record, window_mean

# The numbers of communications that begin in a call; None where the step tells.
Begins = tuple[int, ...] | None
Score = Callable[[Any, Any], jax.Array]
"""`(params, model_state) -> float[]`, a worker's loss on samples on which all are scored."""


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


def make_communications(
    method: DistributedOptimizer, topology: Topology, score: Score | None = None
) -> Callable[[TrainState], tuple[TrainState, RoundReport]]:
    """Makes `state -> (state, report)`, what follows the local steps on a device: the communications that are due.

    Of those of `overlapped`, what takes effect: they begin with the next call, where `make_first_halves` is.

    Args:
      method: the method.
      topology: where the workers live.
      score: what elections go by in place of each worker's own last losses, which it then forgets.
    """
    communications = [c for c in communications_of(method, topology.groups) if not c.ahead]
    period = steps_between(method, topology.groups)

    def communicate_when_due(state: TrainState) -> tuple[TrainState, RoundReport]:
        scores = topology.over_lanes(window_mean)(state.losses)
        lost = ~topology.over_lanes(all_finite)(state.params)
        if score is not None and period:
            state = _scored(score, period, topology, state)
        elections: dict[str, Election] = {}
        for communication in communications:
            state, election = _communicate_if_due(communication, method, topology, state)
            before = elections.get(communication.level)
            # At most one of a level is due at a time.
            elections[communication.level] = election if before is None else select(election.due, election, before)
        workers = topology.split(workers_of(state), leading=2)  # where it is updated in place
        return state._replace(**workers._asdict()), RoundReport(scores, lost, elections)

    return communicate_when_due


def _scored(score: Score, period: int, topology: Topology, state: TrainState) -> TrainState:
    """The state in which workers remember that score alone, where a communication is due or begins next."""

    def of_worker(worker: WorkerState) -> Window:
        return record(emptied(worker.losses), score(worker.params, worker.model_state))

    def of_all(state: TrainState) -> Window:
        return topology.each_lane(of_worker, in_axes=(0,))(workers_of(state))

    due = (state.step > 0) & (state.step % period == 0)
    return state._replace(losses=lax.cond(due, of_all, lambda state: state.losses, state))


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
        after, news = topology.over_lanes(worker)(workers_of(state))
    news = jax.tree.map(lambda x: jnp.broadcast_to(x, state.keys.shape), news)
    return state._replace(**after._asdict()), news


class FirstHalves(NamedTuple):
    """Communications of `overlapped`, which begin before the local steps of a call and change nothing until its end.

    Attributes:
      send: `(params, opt_state, losses, begins) -> news`, of all workers of a device, [groups, workers, ...]: what is
        heard in the communications of these numbers.
      keep: `(state, news, begins) -> state`, which remembers it until it takes effect.
      if_due: `state -> state`, both, for those that the step counter says begin: each in a conditional.
    """

    send: Callable[[Any, Any, Any, tuple[int, ...]], tuple[Any, ...]]
    keep: Callable[[TrainState, tuple[Any, ...], tuple[int, ...]], TrainState]
    if_due: Callable[[TrainState], TrainState]


def make_first_halves(method: DistributedOptimizer, topology: Topology) -> FirstHalves:
    """Makes what comes before the local steps on a device, of those communications that are `ahead`."""
    ahead = those_ahead(method, topology.groups)

    def send(params: Any, opt_state: Any, losses: Any, begins: tuple[int, ...]) -> tuple[Any, ...]:
        def of_worker(params: Any, opt_state: Any, losses: Any) -> tuple[Any, ...]:
            return tuple(_heard(ahead[i], topology, params, opt_state, window_mean(losses)) for i in begins)

        return topology.over_lanes(of_worker)(params, opt_state, losses)

    def keep(state: TrainState, news: tuple[Any, ...], begins: tuple[int, ...]) -> TrainState:
        def of_worker(params: Any, opt_state: Any, news: tuple[Any, ...]) -> Any:
            for i, heard in zip(begins, news, strict=True):
                opt_state = ahead[i].finish(params, opt_state, heard, topology.axes.names(ahead[i].axes)).state
            return opt_state

        return state._replace(opt_state=topology.over_lanes(of_worker)(state.params, state.opt_state, news))

    def if_due(state: TrainState) -> TrainState:
        for communication in ahead:
            state, _ = _communicate_if_due(communication, method, topology, state)
        return state

    return FirstHalves(send, keep, if_due)


def _heard(communication: Communication, topology: Topology, params: Any, opt_state: Any, score: jax.Array) -> Any:
    with jax.named_scope(communication.level):  # by which compiled programs are read
        return communication.begin(params, opt_state, score, topology.axes.names(communication.axes))


def those_ahead(method: DistributedOptimizer, groups: int) -> list[Communication]:
    """Communications of `overlapped`, which begin before local steps, in the order of their numbers."""
    return [c for c in communications_of(method, groups) if c.ahead]


def begins_at(method: DistributedOptimizer, groups: int, step: int) -> tuple[int, ...]:
    """Which communications of `overlapped`, by their number, begin in a call that begins at a step."""
    return tuple(i for i, c in enumerate(those_ahead(method, groups)) if step > 0 and c.due(step))


def kinds_of_call(method: DistributedOptimizer, groups: int) -> list[tuple[int, ...]]:
    """All that `begins_at` gives for a method: a program each."""
    cycle = math.lcm(*(c.period for c in communications_of(method, groups)))
    steps = range(0, cycle + 1, steps_between(method, groups) or cycle)
    return sorted({(), *(begins_at(method, groups, step) for step in steps)})


def workers_of(state: TrainState) -> WorkerState:
    """What a communication may change."""
    return WorkerState(state.params, state.model_state, state.opt_state, state.losses)
