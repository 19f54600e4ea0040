"""Leader Stochastic Gradient Descent (Algorithm 1 of the paper).

Teng, Gao, Chalus, Choromanska, Goldfarb, Weller: "Leader Stochastic Gradient
Descent for Distributed Training of Deep Learning Models", NeurIPS 2019,
arXiv:1905.10395.
"""

from typing import Any, NamedTuple

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
)
from lsgd_jax.optimizers.finite import all_finite, finite_mean, select, where_heard
from lsgd_jax.optimizers.leader_pull import leader_pull
from lsgd_jax.optimizers.sending import FromLeader


class LsgdState(NamedTuple):
    """State of one worker.

    Attributes:
      base: the base optimizer's state. A pull does not touch it.
      local_leader: its parameters as they were broadcast last, NaN before, for stale pulls; else None: no copy is kept.
      global_leader: likewise.
    """

    base: optax.OptState
    local_leader: optax.Params | None
    global_leader: optax.Params | None


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

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if a pull is outside [0, 1], a period or the window less than 1,
        `wire_dtype` is neither int8 nor a floating-point dtype, or `broadcast` is
        unknown. That the periods fit together is checked where the number of
        groups is known.
    """
    local_pull = check_fraction("local_pull", local_pull)
    global_pull = check_fraction("global_pull", global_pull)
    stale_local_pull = check_fraction("stale_local_pull", stale_local_pull)
    stale_global_pull = check_fraction("stale_global_pull", stale_global_pull)
    local_period = check_count("local_period", local_period)
    global_period = check_count("global_period", global_period)
    window = check_count("window", window)
    elect = FromLeader(wire_dtype=wire_dtype, broadcast=broadcast)  # the leader, and its parameters

    base = movable(base)
    stale_pull = leader_pull(stale_local_pull, stale_global_pull)

    def init(params: optax.Params, axes: Axes) -> LsgdState:
        del axes
        unheard = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
        return LsgdState(
            base=base.init(params),
            local_leader=unheard if stale_local_pull else None,
            global_leader=jax.tree.map(jnp.copy, unheard) if stale_global_pull else None,
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
            moved = leader.valid & ~leader.is_leader
            params = select(moved | restarted, select(restarted, leader_params, pulled), params)
            last = _remember(getattr(state, slot), leader_params, leader.valid)
            return Outcome(params, state._replace(**{slot: last}), leader, restarted)

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


def _leader_or_self(last: optax.Params | None, params: optax.Params) -> optax.Params | None:
    """The last leader; where it was not heard, the worker itself, toward which nothing pulls."""
    return None if last is None else where_heard(last, params)


def _remember(last: optax.Params | None, params: optax.Params, valid: jax.Array) -> optax.Params | None:
    return None if last is None else select(valid, params, last)
