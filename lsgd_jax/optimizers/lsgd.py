"""Leader Stochastic Gradient Descent (Algorithm 1 of the paper).

Teng, Gao, Chalus, Choromanska, Goldfarb, Weller: "Leader Stochastic Gradient
Descent for Distributed Training of Deep Learning Models", NeurIPS 2019,
arXiv:1905.10395.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from lsgd_jax.collectives import GROUP, WORKER, BroadcastMethod, Leader
from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.arithmetic import toward
from lsgd_jax.optimizers.base import movable
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
    check_fraction,
    check_number,
    scalar_like,
)
from lsgd_jax.optimizers.electing import by_chance, softmin
from lsgd_jax.optimizers.finite import all_finite, finite_mean, select, where_heard
from lsgd_jax.optimizers.leader_pull import leader_pull
from lsgd_jax.optimizers.sending import FromLeader


class LsgdState(NamedTuple):
    """State of one worker.

    Attributes:
      base: the base optimizer's state. A pull does not touch it.
      local_leader: its parameters as they were broadcast last, NaN before, for stale pulls; else None: no copy is kept.
      global_leader: likewise.
      elections: int32[], how many there have been, where chance decides them; else None.
    """

    base: optax.OptState
    local_leader: optax.Params | None
    global_leader: optax.Params | None
    elections: jax.Array | None = None


@for_any_pytree
def lsgd(
    base: optax.GradientTransformation,
    *,
    local_pull: float = 0.1,
    global_pull: float = 0.1,
    local_period: int = 16,
    global_period: int = 64,
    stale_local_pull: float = 0.0,
    stale_global_pull: float = 0.0,
    window: int = 10,
    wire_dtype: DTypeLike | None = None,
    broadcast: BroadcastMethod = "psum",
    election: Literal["score", "random"] = "score",
    temperature: float = 0.0,
) -> DistributedOptimizer:
    r"""Workers take steps of their own and are pulled toward the best of them.

    With t counted from 1 after the step of a worker x in group j::

      x <- x - base update(gradient of x's own minibatch)
      x <- x - stale_local_pull (x - x~j) - stale_global_pull (x - x~)    leaders as broadcast last
      if local_period divides t:   x~j = best of group j;   x <- (1 - local_pull) x + local_pull x~j
      if global_period divides t:  x~  = best of all;       x <- (1 - global_pull) x + global_pull x~

    The best has the lowest mean loss over its last `window` minibatches; ties go
    to the lowest rank. A worker whose score or any parameter is not finite
    cannot lead. In one group there is only the global leader, and
    `local_pull`, `local_period` and `stale_local_pull` have no effect.

    Args:
      base: an optax optimizer, for the local steps, but `schedule_free` and the like (see
        `movable`).
      local_pull: λ in [0, 1].
      global_pull: λ_G in [0, 1].
      local_period: τ, steps of a worker between two local communications.
      global_period: τ_G, a multiple of τ where there are several groups.
      stale_local_pull: pull of every step toward the local leader of the last
        communication (0.1/τ in the authors' runs). Keeps a copy of it.
      stale_global_pull: the same toward the global leader (0.1/τ_G).
      window: minibatches in a score.
      wire_dtype: dtype in which a leader's parameters travel (bfloat16, float16 or
        int8, see `broadcast_from_leader`), or None for their own.
      broadcast: how a leader's parameters get to the others: "psum", or "ring",
        which sends up to half the bytes over each link and waits more often. The
        parameters are the same.
      election: "score", or "random": each worker leads as often as any other, the control by which to tell what
        electing the best is worth. In place of scores stand the numbers that were drawn.
      temperature: 0 for the leader. If more, all workers, the best included, are pulled toward a mean in
        which one with score s weighs exp(-s / temperature), whose bytes are those of a mean.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if a pull is outside [0, 1], a period or the window less than 1,
        `wire_dtype` is neither int8 nor a floating-point dtype, `broadcast` or
        `election` is unknown, or `temperature` is negative or given with one of
        these three. That the periods fit together is checked where the number of
        groups is known.
    """
    local_pull = check_fraction("local_pull", local_pull)
    global_pull = check_fraction("global_pull", global_pull)
    stale_local_pull = check_fraction("stale_local_pull", stale_local_pull)
    stale_global_pull = check_fraction("stale_global_pull", stale_global_pull)
    local_period = check_count("local_period", local_period)
    global_period = check_count("global_period", global_period)
    window = check_count("window", window)
    chance = _check_election(election, temperature, plain=wire_dtype is None and broadcast == "psum")
    # The leader, and its parameters.
    elect: Any = FromLeader(wire_dtype=wire_dtype, broadcast=broadcast, by=by_chance if chance else None)
    elect = softmin(temperature) if temperature else elect

    base = movable(base)
    stale_pull = leader_pull(stale_local_pull, stale_global_pull)

    def init(params: optax.Params, axes: Axes) -> LsgdState:
        unheard = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
        return LsgdState(
            base=base.init(params),
            local_leader=unheard if stale_local_pull else None,
            global_leader=jax.tree.map(jnp.copy, unheard) if stale_global_pull else None,
            elections=scalar_like(params, axes).astype(jnp.int32) if chance else None,
        )

    def update(
        grads: optax.Updates, state: LsgdState, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, LsgdState]:
        updates, base_state = base.update(grads, state.base, params, value=value, **extra)
        if stale_local_pull or stale_global_pull:
            stepped = optax.apply_updates(params, updates)
            updates, _ = stale_pull.update(
                updates,
                stale_pull.init(params),
                stepped,
                local_leader=_leader_or_self(state.local_leader, stepped),
                global_leader=_leader_or_self(state.global_leader, stepped),
            )
        return updates, state._replace(base=base_state)

    def toward_leader(level: str, pull: float) -> Any:
        """The pull toward the leader of a level."""
        slot = f"{level}_leader"

        def finish(
            params: optax.Params, state: LsgdState, heard: tuple[Leader, optax.Params], axis_name: tuple[str, ...]
        ) -> Outcome:
            del axis_name
            leader, leader_params = heard
            pulled = toward(where_heard(leader_params, params), params, pull)  # a compressed leader is heard in part
            restarted = leader.valid & ~all_finite(params)
            moved = leader.valid & (~leader.is_leader | (temperature > 0))
            params = select(moved | restarted, select(restarted, leader_params, pulled), params)
            last = _remember(getattr(state, slot), leader_params, leader.valid)
            elections = None if state.elections is None else state.elections + 1
            return Outcome(params, state._replace(**{slot: last, "elections": elections}), leader, restarted)

        return finish

    def center(params: optax.Params, state: LsgdState, axes: Axes) -> optax.Params:
        """The mean of all workers whose parameters are finite."""
        del state
        return finite_mean(params, axes.all)

    return DistributedOptimizer(
        init=init,
        update=update,
        communications=(
            Communication(local_period, (WORKER,), elect, toward_leader("local", local_pull)),
            Communication(global_period, (GROUP, WORKER), elect, toward_leader("global", global_pull)),
        ),
        center=center,
        restart=lambda params, state: state._replace(base=base.init(params)),
        window=window,
    )


def _check_election(election: str, temperature: float, *, plain: bool) -> bool:
    """Whether chance decides. Raises ValueError for what cannot be."""
    if election not in ("score", "random"):
        raise ValueError(f'election must be "score" or "random", got {election!r}')
    if not 0 <= check_number("temperature", temperature) < math.inf:
        raise ValueError(f"temperature must be a number of at least 0, got {temperature}")
    if temperature and (election == "random" or not plain):
        raise ValueError('temperature makes a mean of all: leave out election="random", wire_dtype and broadcast')
    return election == "random"


def _leader_or_self(last: optax.Params | None, params: optax.Params) -> optax.Params | None:
    """The last leader; where it was not heard, the worker itself, toward which nothing pulls."""
    return None if last is None else where_heard(last, params)


def _remember(last: optax.Params | None, params: optax.Params, valid: jax.Array) -> optax.Params | None:
    return None if last is None else select(valid, params, last)
