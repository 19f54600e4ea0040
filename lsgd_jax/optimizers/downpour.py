"""DOWNPOUR SGD, with all workers in step.

Dean et al.: "Large Scale Distributed Deep Networks", NeurIPS 2012, section 4.1,
and Algorithm 2 of its supplement, with n_push = n_fetch.
"""

from typing import NamedTuple

import jax
import optax
from jax import lax

from lsgd_jax.collectives import GROUP, WORKER, mean, power_share
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


class DownpourState(NamedTuple):
    """State of one worker.

    Attributes:
      base: the base optimizer's state.
      fetched: the parameters as it fetched them last, which are the center; before
        the first communication those at which it started, whose mean is the center.
    """

    base: optax.OptState
    fetched: optax.Params


@for_any_pytree
def downpour(base: optax.GradientTransformation, *, period: int = 1) -> DistributedOptimizer:
    r"""Workers push what they added up to a center, and fetch it.

    ::

      x_i <- x_i - base update(gradient of x_i's own minibatch)
      if period divides t:   c <- c + sum of (x_i - what worker i fetched last)
                             x_i <- c

    c starts as the mean of the x_i, and is what is evaluated. All workers' updates
    add up, so stable learning rates are smaller than those of one worker. A worker
    whose parameters are not finite pushes nothing. Where the sum is not finite nothing
    has been pushed: all go back to what they fetched last.

    Args:
      base: an optax optimizer, for the local steps, but `schedule_free` and the like (see
        `movable`). Adagrad in the paper.
      period: steps of a worker between two communications.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `period` is less than 1.
    """
    period = check_count("period", period)
    base = movable(base)

    def init(params: optax.Params, axes: Axes) -> DownpourState:
        del axes
        return DownpourState(base.init(params), params)

    # One message: the mean of c + p (what i added up) is c + the sum of what all added up.
    def pushed(params: optax.Params, state: DownpourState, axis_name: tuple[str, ...]) -> optax.Params:
        finite, workers = all_finite(params), lax.axis_size(axis_name)
        share = power_share(workers)  # without it p (what i added up) might overflow, where the sum does not

        def push(x: jax.Array, c: jax.Array) -> jax.Array:
            return share * c + share * workers * (x - c)

        return jax.tree.map(push, widened(select(finite, params, state.fetched)), widened(state.fetched))

    def finish(params: optax.Params, state: DownpourState, heard: optax.Params, axis_name: tuple[str, ...]) -> Outcome:
        share = power_share(lax.axis_size(axis_name))
        center = optax.tree.cast_like(jax.tree.map(lambda m: m / share, heard), params)
        fetched = select(all_finite(center), center, state.fetched)
        restarted = all_finite(fetched) & ~all_finite(params)
        return Outcome(fetched, state._replace(fetched=fetched), None, restarted)

    return DistributedOptimizer(
        init=init,
        update=update_of(base),
        communications=(Communication(period, (GROUP, WORKER), MeanOf(pushed), finish, late="never"),),
        center=lambda params, state, axes: mean(state.fetched, axes.all),
        restart=restart_of(base),
    )
