"""Elastic Averaging SGD, in its synchronous form.

Zhang, Choromanska, LeCun: "Deep learning with Elastic Averaging SGD", NeurIPS
2015, arXiv:1412.6651, section 3. `eamsgd` is its momentum form.
"""

from typing import NamedTuple

import optax
from jax import lax

from lsgd_jax.collectives import GROUP, WORKER, mean
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
    restart_of,
    update_of,
)
from lsgd_jax.optimizers.finite import all_finite, select
from lsgd_jax.optimizers.sending import MeanOf


class EasgdState(NamedTuple):
    """State of one worker.

    Attributes:
      base: the base optimizer's state. The elastic move does not touch it.
      center: c, the same on every worker.
    """

    base: optax.OptState
    center: optax.Params


@for_any_pytree
def easgd(base: optax.GradientTransformation, *, beta: float = 0.9, period: int = 64) -> DistributedOptimizer:
    r"""Workers and a center variable pull at each other.

    With α = β / p for p workers::

      x_i <- x_i - base update(gradient of x_i's own minibatch)
      if period divides t:   x_i <- x_i - α (x_i - c)   and   c <- (1 - β) c + β mean(x_i)

    both from the x_i and the c before the move. In the paper the gradient is taken
    where the move starts, here where the last one has ended. c starts as the mean of
    the x_i, and is what is evaluated. A worker whose parameters are not finite takes
    no part in the mean, and starts again from c.

    Args:
      base: an optax optimizer, for the local steps, but `schedule_free` and the like (see
        `movable`). The paper's has no momentum.
      beta: β in [0, 1]: 0.9 in the paper, 0.43 in the code of LSGD's authors.
      period: τ, steps of a worker between two communications.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `beta` is outside [0, 1] or `period` less than 1.
    """
    beta = check_fraction("beta", beta)
    period = check_count("period", period)
    base = movable(base)

    def init(params: optax.Params, axes: Axes) -> EasgdState:
        return EasgdState(base.init(params), mean(params, axes.all))

    def finish(params: optax.Params, state: EasgdState, average: optax.Params, axis_name: tuple[str, ...]) -> Outcome:
        finite = all_finite(params)
        moved, center = elastic_move(params, state.center, average, beta, axis_name)
        return Outcome(select(finite, moved, center), state._replace(center=center), None, ~finite)

    return DistributedOptimizer(
        init=init,
        update=update_of(base),
        communications=(Communication(period, (GROUP, WORKER), MeanOf(), finish),),
        center=lambda params, state, axes: state.center,
        restart=restart_of(base),
    )


def elastic_move(
    params: optax.Params, center: optax.Params, average: optax.Params, beta: float, axis_name: tuple[str, ...]
) -> tuple[optax.Params, optax.Params]:
    """Where the elastic move leads one worker and the center, both from where they were, with the workers' mean."""
    average = select(all_finite(average), average, center)  # where no worker is left, the center stays
    alpha = beta / lax.axis_size(axis_name)
    return toward(center, params, alpha), toward(average, center, beta)
