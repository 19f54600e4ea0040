"""DiLoCo: an outer optimizer takes the mean displacement of the workers for a gradient.

Douillard et al.: "DiLoCo: Distributed Low-Communication Training of Language
Models", 2023, arXiv:2311.08105, Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.collectives import GROUP, WORKER, mean
from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.arithmetic import widened
from lsgd_jax.optimizers.base import movable
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
    restart_of,
    update_of,
)
from lsgd_jax.optimizers.finite import all_finite, select
from lsgd_jax.optimizers.sending import MeanOf


class DilocoState(NamedTuple):
    """State of one worker.

    Attributes:
      base: the inner optimizer's state. A communication does not touch it.
      outer: the outer optimizer's state, the same on every worker.
      center: θ, the same on every worker: where the last communication led. In float32,
        as the outer optimizer's state is, where the parameters are narrower.
    """

    base: optax.OptState
    outer: optax.OptState
    center: optax.Params


@for_any_pytree
def diloco(
    base: optax.GradientTransformation, outer: optax.GradientTransformation, *, period: int
) -> DistributedOptimizer:
    r"""Local steps, then one step of an outer optimizer, from where all start again.

    ::

      x_i <- x_i - base update(gradient of x_i's own minibatch)
      if period divides t:   Δ = mean(θ - x_i)
                             θ <- θ - outer update(Δ)
                             x_i <- θ

    θ starts as the mean of the x_i, and is what is evaluated. With plain SGD at
    rate 1 as the outer optimizer this is `local_sgd`. A worker whose parameters are
    not finite takes no part in Δ, and starts again from θ.

    Args:
      base: the inner optimizer, of optax, but `schedule_free` and the like (see `movable`).
        AdamW in the paper.
      outer: the outer optimizer, any of optax. In the paper
        `optax.sgd(0.7, momentum=0.9, nesterov=True)`.
      period: H, steps of a worker between two communications. 500 in the paper.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `period` is less than 1.
    """
    period = check_count("period", period)
    base = movable(base)

    def init(params: optax.Params, axes: Axes) -> DilocoState:
        center = mean(widened(params), axes.all)
        return DilocoState(base.init(params), outer.init(center), center)

    def displacement(params: optax.Params, state: DilocoState, axis_name: tuple[str, ...]) -> optax.Params:
        del axis_name
        return jax.tree.map(jnp.subtract, state.center, widened(params))

    def finish(
        params: optax.Params, state: DilocoState, displacement: optax.Params, axis_name: tuple[str, ...]
    ) -> Outcome:
        del axis_name
        updates, outer_state = outer.update(displacement, state.outer, state.center)
        found = all_finite(displacement)  # where no worker is left, the center stays
        center = select(found, optax.apply_updates(state.center, updates), state.center)
        state = state._replace(outer=select(found, outer_state, state.outer), center=center)
        begin = optax.tree.cast_like(center, params)
        return Outcome(begin, state, None, all_finite(begin) & ~all_finite(params))

    begin = MeanOf(displacement, change=True)
    return DistributedOptimizer(
        init=init,
        update=update_of(base),
        communications=(Communication(period, (GROUP, WORKER), begin, finish, late="mixed"),),
        center=lambda params, state, axes: optax.tree.cast_like(state.center, params),
        restart=restart_of(base),
    )
