"""DPPF: workers are pulled to their mean and pushed away from it.

Dimlioglu, Choromanska: "Communication-Efficient Distributed Training for
Collaborative Flat Optima Recovery in Deep Learning", 2025, arXiv:2507.20424.
"""

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.arithmetic import leafwise, norm, widened
from lsgd_jax.optimizers.base import movable
from lsgd_jax.optimizers.distributed_optimizer import (
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
    check_fraction,
    check_number,
)
from lsgd_jax.optimizers.finite import finite_mean, moved_by_mean
from lsgd_jax.optimizers.sending import MeanOf


@for_any_pytree
def dppf(
    base: optax.GradientTransformation, *, pull: float = 0.1, push: float = 0.1, period: int = 64
) -> DistributedOptimizer:
    r"""A pull to the mean in proportion to the distance, and a push of constant length.

    ::

      x_i <- x_i - base update(gradient of x_i's own minibatch)
      if period divides t:   m = mean(x_i)
                             x_i <- x_i - pull (x_i - m) + push (x_i - m) / |x_i - m|

    with the Euclidean norm over all parameters of the worker. The two are in balance
    at the distance push / pull. The mean of the workers is what is evaluated. A
    worker whose parameters are not finite takes no part in m, and starts again from it.

    Args:
      base: an optax optimizer, for the local steps, but `schedule_free` and the like (see
        `movable`).
      pull: in [0, 1].
      push: at least 0, in units of the parameters.
      period: τ, steps of a worker between two communications.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `pull` is outside [0, 1], `push` negative or not finite, or
        `period` less than 1.
    """
    pull = check_fraction("pull", pull)
    push = check_number("push", push)
    if not 0 <= push < float("inf"):
        raise ValueError(f"push must be a finite number of at least 0, got {push}")
    period = check_count("period", period)
    base = movable(base)

    def finish(
        params: optax.Params, state: optax.OptState, average: optax.Params, axis_name: tuple[str, ...]
    ) -> Outcome:
        del axis_name
        distance = norm(jax.tree.map(jnp.subtract, widened(params), average))
        # Workers that are all at one point differ from their mean by rounding, which is no direction.
        rounding = norm(jax.tree.map(lambda m: float(jnp.finfo(m.dtype).eps) * m, average))
        kept = 1 - pull + jnp.where(distance > 10 * rounding, push / distance, 0)
        moved = leafwise(lambda x, m: m + kept.astype(x.dtype) * (x - m), params, average)
        return moved_by_mean(params, state, optax.tree.cast_like(average, params), moved)

    return DistributedOptimizer(
        init=lambda params, axes: base.init(params),
        update=base.update,
        communications=(Communication(period, (GROUP, WORKER), MeanOf(lambda params, *_: widened(params)), finish),),
        center=lambda params, state, axes: finite_mean(params, axes.all),
        restart=lambda params, state: base.init(params),
    )
