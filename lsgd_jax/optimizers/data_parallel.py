"""Synchronous data parallelism: the baseline that communicates at every step.

Gradients are averaged over all workers before each update, so workers that
start equal stay equal, and N workers with batch B take the steps of one worker
with batch N·B. As everywhere in data parallelism, one gradient that is not
finite reaches everybody.
"""

from typing import Any

import optax

from lsgd_jax.collectives import mean
from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.distributed_optimizer import Axes, DistributedOptimizer


@for_any_pytree
def data_parallel(base: optax.GradientTransformation) -> DistributedOptimizer:
    r"""Averages the workers' gradients at each step: ``x <- x - base update(mean of gradients)``.

    Args:
      base: any optax optimizer; it sees the mean gradient. Of one that evaluates other
        parameters than it steps at (`schedule_free`) the center has the latter.

    Returns:
      A `DistributedOptimizer` without periodic communications.
    """
    base = optax.with_extra_args_support(base)

    def center(params: optax.Params, state: Any, axes: Axes) -> optax.Params:
        """The mean, which is every worker's parameters."""
        del state
        return mean(params, axes.all)

    return DistributedOptimizer(
        init=lambda params, axes: base.init(params),
        reduce_gradients=lambda grads, axes: mean(grads, axes.all),
        update=base.update,
        center=center,
        restart=lambda params, state: base.init(params),
    )
