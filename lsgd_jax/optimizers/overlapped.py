"""A method whose communications take effect later, while local steps go on.

For means and DiLoCo as in Douillard et al.: "Streaming DiLoCo with overlapping communication: Towards a Distributed
Free Lunch", 2025, arXiv:2501.18512, section 2.2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.optimizers.arithmetic import toward
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
    check_fraction,
    is_overlapped,
    scalar_like,
)
from lsgd_jax.optimizers.finite import select


class Heard(NamedTuple):
    """What a communication has brought, until it takes effect.

    Attributes:
      news: what its first half gave.
      waiting: bool[], whether it has not taken effect yet.
    """

    news: Any
    waiting: jax.Array


class OverlappedState(NamedTuple):
    """State of one worker.

    Attributes:
      inner: that of the method.
      heard: of each of its communications. It is part of a checkpoint: a run goes on amid a communication.
    """

    inner: Any
    heard: tuple[Heard, ...]


def overlapped(method: DistributedOptimizer, *, delay: int | None = None, keep: float = 0.5) -> DistributedOptimizer:
    r"""Lets each communication of a method take effect some local steps after it has begun.

    With a communication of period τ::

      if τ divides t:                  it begins, with the parameters x_t: leaders are elected, means taken
      if τ divides t - delay, t > delay:   it takes effect on the parameters as they are then

    What takes effect is what the method does with what it hears, at other parameters x:

    * a pull (`lsgd`, `grawa`, `dppf`, and `easgd` with its center) is one toward the leader, or the mean, of step
      t - delay;
    * where workers become a mean or a center y (`local_sgd`, `diloco`), x <- (1 - keep) y + keep x, so that what a
      worker has learned since is not lost. In the paper of Streaming DiLoCo `keep` is 0.5.

    What is heard is kept until then, a copy of the parameters for each level, or of a part with `fragments`. Of two
    wrappers this one comes last: `overlapped(fragments(method, n))`.

    Args:
      method: what communicates.
      delay: local steps, at least 1 and at most the shortest period; None for that period, so that the next
        communication begins when one has taken effect. That it is not longer is checked where the number of groups
        is known.
      keep: in [0, 1].

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `delay` or `keep` is not such a number, the method has no period, or is one that news come too
        late for: what `downpour` adds up while it waits would be pushed twice.
    """
    if not method.communications:
        raise ValueError("the method has no communication to wait for: use one with a period, such as lsgd")
    if any(c.late == "never" for c in method.communications):
        raise ValueError("what the method adds up while it waits would be sent twice: use another, such as local_sgd")
    if is_overlapped(method):
        raise ValueError("the method is overlapped already")
    delay = min(c.period for c in method.communications) if delay is None else check_count("delay", delay)
    keep = check_fraction("keep", keep)

    @functools.wraps(method.init)  # whose name tells the factory
    def init(params: optax.Params, axes: Axes) -> OverlappedState:
        inner, zero = method.init(params, axes), scalar_like(params, axes)

        def nothing(shape: Any) -> jax.Array:
            return jnp.broadcast_to(zero, shape.shape).astype(shape.dtype)

        def unheard(communication: Communication) -> Heard:
            names = axes.names(communication.axes)
            score = zero.astype(jnp.result_type(float))  # as that of a window of losses
            news = jax.eval_shape(lambda p, s, score: communication.begin(p, s, score, names), params, inner, score)
            return Heard(jax.tree.map(nothing, news), nothing(jax.ShapeDtypeStruct((), jnp.bool_)))

        return OverlappedState(inner, tuple(map(unheard, method.communications)))

    def update(
        grads: optax.Updates, state: OverlappedState, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, OverlappedState]:
        updates, inner = method.update(grads, state.inner, params, value=value, **extra)
        return updates, state._replace(inner=inner)

    halves = [_halves(c, i, delay, keep) for i, c in enumerate(method.communications)]
    return method._replace(
        init=init,
        update=update,
        center=lambda params, state, axes: method.center(params, state.inner, axes),
        restart=lambda params, state: state._replace(inner=method.restart(params, state.inner)),
        communications=tuple(half for both in halves for half in both),
        arguments=(*method.arguments, ("delay", delay), ("keep", keep)),
    )


def _halves(whole: Communication, i: int, delay: int, keep: float) -> tuple[Communication, Communication]:
    """What takes effect, which comes first where both are due, and what begins."""

    def send(params: optax.Params, state: OverlappedState, score: jax.Array, axis_name: tuple[str, ...]) -> Any:
        return whole.begin(params, state.inner, score, axis_name)

    def remember(params: optax.Params, state: OverlappedState, news: Any, axis_name: tuple[str, ...]) -> Outcome:
        del axis_name
        waiting = jnp.ones_like(state.heard[i].waiting)
        return Outcome(params, _with_heard(state, i, Heard(news, waiting)), None, jnp.zeros_like(waiting))

    def nothing(params: optax.Params, state: OverlappedState, score: jax.Array, axis_name: tuple[str, ...]) -> None:
        del params, state, score, axis_name

    def take_effect(params: optax.Params, state: OverlappedState, heard: None, axis_name: tuple[str, ...]) -> Outcome:
        del heard
        news, waiting = state.heard[i]
        outcome = whole.finish(params, state.inner, news, axis_name)
        mixed = toward(params, outcome.params, keep) if whole.late == "mixed" else outcome.params
        restarted = outcome.restarted & waiting
        moved = select(waiting, select(outcome.restarted, outcome.params, mixed), params)
        inner = select(waiting, outcome.state, state.inner)
        leader = outcome.leader and outcome.leader._replace(valid=outcome.leader.valid & waiting)
        state = _with_heard(state._replace(inner=inner), i, Heard(news, jnp.zeros_like(waiting)))
        return Outcome(moved, state, leader, restarted)

    lands = whole._replace(
        begin=nothing,
        finish=take_effect,
        offset=(whole.offset + delay) % whole.period,
        whole=whole.whole and _of_inner(whole.whole),
    )
    return lands, whole._replace(begin=send, finish=remember, whole=None, delay=delay)


def _with_heard(state: OverlappedState, i: int, heard: Heard) -> OverlappedState:
    return state._replace(heard=(*state.heard[:i], heard, *state.heard[i + 1 :]))


def _of_inner(communication: Communication) -> Communication:
    """A communication that takes effect at once, of the method inside."""

    def begin(params: optax.Params, state: OverlappedState, score: jax.Array, axis_name: tuple[str, ...]) -> Any:
        return communication.begin(params, state.inner, score, axis_name)

    def finish(params: optax.Params, state: OverlappedState, heard: Any, axis_name: tuple[str, ...]) -> Outcome:
        outcome = communication.finish(params, state.inner, heard, axis_name)
        return outcome._replace(state=state._replace(inner=outcome.state))

    return communication._replace(begin=begin, finish=finish)
