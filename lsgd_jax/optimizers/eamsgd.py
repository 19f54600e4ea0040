"""EAMSGD, Elastic Averaging SGD with Nesterov's momentum.

Zhang, Choromanska, LeCun: "Deep learning with Elastic Averaging SGD", NeurIPS
2015, arXiv:1412.6651, section 3.2, with all workers in step, and the elastic move
after the step as in `easgd`.
"""

from typing import Any, NamedTuple

import jax
import optax

from lsgd_jax.collectives import GROUP, WORKER, mean
from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.arithmetic import leafwise
from lsgd_jax.optimizers.base import movable
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
    check_fraction,
    check_number,
)
from lsgd_jax.optimizers.easgd import elastic_move
from lsgd_jax.optimizers.finite import all_finite, select
from lsgd_jax.optimizers.sending import MeanOf


class EamsgdState(NamedTuple):
    """State of one worker.

    Attributes:
      base: the base optimizer's state.
      velocity: v, like the parameters. The elastic move does not touch it.
      center: c, the same on every worker.
    """

    base: optax.OptState
    velocity: optax.Params
    center: optax.Params


@for_any_pytree
def eamsgd(
    base: optax.GradientTransformation, *, momentum: float = 0.9, beta: float = 0.9, period: int = 64
) -> DistributedOptimizer:
    r"""Elastic averaging of workers that look ahead.

    With α = β / p for p workers, and gradients of worker i's own minibatch::

      v_i <- momentum v_i - base update(gradient at x_i + momentum v_i)
      x_i <- x_i + v_i
      if period divides t:   x_i <- x_i - α (x_i - c)   and   c <- (1 - β) c + β mean(x_i)

    The parameters that a training loop holds are the points y_i = x_i + momentum v_i,
    for that is where gradients are taken; an elastic move of x_i moves y_i by as
    much. `easgd(optax.sgd(..., momentum=..., nesterov=True))` moves y_i itself.
    c starts as the mean of the x_i, and is what is evaluated.

    Args:
      base: the optimizer of the local steps, without a momentum of its own.
      momentum: δ in [0, 1).
      beta: β in [0, 1].
      period: τ, steps of a worker between two communications.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `momentum` is outside [0, 1), `beta` outside [0, 1] or
        `period` less than 1.
    """
    momentum = check_number("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    beta = check_fraction("beta", beta)
    period = check_count("period", period)
    base = movable(base)

    def behind(ahead: optax.Params, velocity: optax.Params) -> optax.Params:
        """x from y."""
        return leafwise(lambda y, v: y - momentum * v, ahead, velocity)

    def init(params: optax.Params, axes: Axes) -> EamsgdState:
        return EamsgdState(base.init(params), optax.tree.zeros_like(params), mean(params, axes.all))

    def update(
        grads: optax.Updates, state: EamsgdState, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, EamsgdState]:
        updates, base_state = base.update(grads, state.base, params, value=value, **extra)
        velocity = jax.tree.map(lambda v, u: momentum * v + u, state.velocity, updates)
        # y' - y = (x + v' + momentum v') - (x + momentum v)
        ahead = jax.tree.map(lambda new, old: (1 + momentum) * new - momentum * old, velocity, state.velocity)
        return ahead, state._replace(base=base_state, velocity=velocity)

    def finish(params: optax.Params, state: EamsgdState, average: optax.Params, axis_name: tuple[str, ...]) -> Outcome:
        x = behind(params, state.velocity)
        finite = all_finite(x)
        moved, center = elastic_move(x, state.center, average, beta, axis_name)
        params = leafwise(lambda y, new, old: y + (new - old), params, moved, x)
        return Outcome(select(finite, params, center), state._replace(center=center), None, ~finite)

    begin = MeanOf(lambda params, state, axis_name: behind(params, state.velocity))
    return DistributedOptimizer(
        init=init,
        update=update,
        communications=(Communication(period, (GROUP, WORKER), begin, finish),),
        center=lambda params, state, axes: state.center,
        restart=lambda params, state: state._replace(base=base.init(params), velocity=optax.tree.zeros_like(params)),
    )
