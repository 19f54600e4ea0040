"""Local SGD, also known as periodic averaging and, with a client a worker, FedAvg.

McMahan et al.: "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv:1602.05629; Stich: "Local SGD Converges
Fast and Communicates Little", ICLR 2019, arXiv:1805.09767; in two levels: Lin et
al., "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020, arXiv:1808.07217.
"""

import optax

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.base import movable
from lsgd_jax.optimizers.distributed_optimizer import (
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
)
from lsgd_jax.optimizers.finite import finite_mean, moved_by_mean
from lsgd_jax.optimizers.sending import MeanOf


@for_any_pytree
def local_sgd(
    base: optax.GradientTransformation, *, local_period: int | None = None, global_period: int = 64
) -> DistributedOptimizer:
    r"""Workers take steps of their own, and become their mean now and then.

    With t counted from 1 after the step of a worker x in group j::

      x <- x - base update(gradient of x's own minibatch)
      if local_period divides t:    x <- mean of group j
      if global_period divides t:   x <- mean of all

    The base optimizer's state is not averaged. A worker whose parameters are not
    finite takes no part in a mean, and starts again from it.

    Args:
      base: an optax optimizer, for the local steps, but `schedule_free` and the like (see
        `movable`).
      local_period: steps of a worker between two means of its group, or None for
        none. Without effect in one group.
      global_period: steps of a worker between two means of all, a multiple of
        `local_period` where there are several groups.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if a period is less than 1. That they fit together is checked
        where the number of groups is known.
    """
    global_period = check_count("global_period", global_period)
    everywhere = (Communication(global_period, (GROUP, WORKER), MeanOf(), become_the_mean, late="mixed"),)
    inside: tuple[Communication, ...] = ()
    if local_period is not None:
        local_period = check_count("local_period", local_period)
        inside = (Communication(local_period, (WORKER,), MeanOf(), become_the_mean, late="mixed"),)
    base = movable(base)
    return DistributedOptimizer(
        init=lambda params, axes: base.init(params),
        update=base.update,
        communications=inside + everywhere,
        center=lambda params, state, axes: finite_mean(params, axes.all),
        restart=lambda params, state: base.init(params),
    )


def become_the_mean(
    params: optax.Params, state: optax.OptState, average: optax.Params, axis_name: tuple[str, ...]
) -> Outcome:
    """All workers are the mean of those that were finite."""
    del axis_name
    return moved_by_mean(params, state, average, average)
