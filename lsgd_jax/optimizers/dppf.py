"""DPPF: workers are pulled to their mean and pushed away from it.

Dimlioglu, Choromanska: "Communication-Efficient Distributed Training for
Collaborative Flat Optima Recovery in Deep Learning", 2025, arXiv:2507.20424.
"""

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.optimizers.distributed_optimizer import (
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
    check_fraction,
)
from lsgd_jax.optimizers.finite import finite_mean, moved_by_mean


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
      base: any optax optimizer, for the local steps.
      pull: in [0, 1].
      push: at least 0, in units of the parameters.
      period: τ, steps of a worker between two communications.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `pull` is outside [0, 1], `push` negative or not finite, or
        `period` less than 1.
    """
    check_fraction("pull", pull)
    if not 0 <= push < float("inf"):
        raise ValueError(f"push must be a finite number of at least 0, got {push}")
    check_count("period", period)
    base = optax.with_extra_args_support(base)

    def apply(params: optax.Params, state: optax.OptState, score: jax.Array, axis_name: tuple[str, ...]) -> Outcome:
        del score
        average = finite_mean(params, axis_name)
        away = jax.tree.map(lambda x, m: x - m, params, average)
        distance = optax.tree.norm(away)
        # Workers that are all at one point differ from their mean by rounding, which is no direction.
        apart = distance > 10 * jnp.finfo(distance.dtype).eps * optax.tree.norm(average)
        kept = 1 - pull + jnp.where(apart, push / distance, 0)
        moved = jax.tree.map(lambda m, d: m + kept.astype(d.dtype) * d, average, away)
        return moved_by_mean(params, state, average, moved)

    return DistributedOptimizer(
        init=lambda params, axes: base.init(params),
        update=base.update,
        communications=(Communication(int(period), (GROUP, WORKER), apply),),
        center=lambda params, state, axes: finite_mean(params, axes.all),
        restart=lambda params, state: base.init(params),
    )
