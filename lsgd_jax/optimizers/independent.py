"""Workers that never communicate: the control that shows what communication buys.

On one worker it is its base optimizer, plain SGD say.
"""

import optax

from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.optimizers.finite import finite_mean


@for_any_pytree
def independent(base: optax.GradientTransformation) -> DistributedOptimizer:
    """Local steps and nothing else: ``x <- x - base update(gradient of x's own minibatch)``.

    Args:
      base: any optax optimizer. Of one that evaluates other parameters than it steps
        at (`schedule_free`) the center has the latter.

    Returns:
      A `DistributedOptimizer` without communications. What is evaluated is the
      mean of the workers, as for the other methods.
    """
    base = optax.with_extra_args_support(base)
    return DistributedOptimizer(
        init=lambda params, axes: base.init(params),
        update=base.update,
        center=lambda params, state, axes: finite_mean(params, axes.all),
        restart=lambda params, state: base.init(params),
    )
