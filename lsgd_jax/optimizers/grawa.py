"""MGRAWA: a pull toward a mean in which workers in flat regions weigh more.

Dimlioglu, Choromanska: "GRAWA: Gradient-based Weighted Averaging for Distributed
Training of Deep Learning Models", AISTATS 2024, arXiv:2403.04206: the model-level
variant, with all workers in step.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from lsgd_jax.collectives import GROUP, WORKER, mean
from lsgd_jax.optimizers.any_pytree import for_any_pytree
from lsgd_jax.optimizers.arithmetic import norm, toward
from lsgd_jax.optimizers.base import movable
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
    check_fraction,
    scalar_like,
)
from lsgd_jax.optimizers.finite import all_finite, moved_by_mean, share_of, sum_of
from lsgd_jax.optimizers.sending import MeanOf
from lsgd_jax.optimizers.window import Window, emptied, empty_window, record, window_mean

# A gradient this short or shorter weighs as one of this length.
SMALLEST_NORM = 1e-12


class GrawaState(NamedTuple):
    """State of one worker.

    Attributes:
      base: the base optimizer's state. The pull does not touch it.
      norms: the norms of the worker's last minibatch gradients.
    """

    base: optax.OptState
    norms: Window


@for_any_pytree
def grawa(
    base: optax.GradientTransformation, *, pull: float = 0.1, period: int = 64, window: int = 10
) -> DistributedOptimizer:
    r"""Pulls workers toward their mean, weighted by the inverse of their gradients' norms.

    With g_i the mean norm of worker i's last `window` minibatch gradients::

      x_i <- x_i - base update(gradient of x_i's own minibatch)
      if period divides t:   m = sum of x_i / g_i, over the sum of 1 / g_i
                             x_i <- (1 - pull) x_i + pull m

    m is what is evaluated. A worker whose parameters are not finite has no weight,
    and starts again from m.

    Args:
      base: an optax optimizer, for the local steps, but `schedule_free` and the like (see
        `movable`).
      pull: in [0, 1].
      period: τ, steps of a worker between two communications.
      window: minibatches in a norm.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if `pull` is outside [0, 1], or `period` or `window` less than 1.
    """
    pull = check_fraction("pull", pull)
    period = check_count("period", period)
    window = check_count("window", window)
    base = movable(base)

    def init(params: optax.Params, axes: Axes) -> GrawaState:
        return GrawaState(base.init(params), empty_window(scalar_like(params, axes), window))

    def update(
        grads: optax.Updates, state: GrawaState, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, GrawaState]:
        updates, base_state = base.update(grads, state.base, params, value=value, **extra)
        return updates, GrawaState(base_state, record(state.norms, norm(grads)))

    def finish(params: optax.Params, state: GrawaState, heard: optax.Params, axis_name: tuple[str, ...]) -> Outcome:
        average = sum_of(heard, params, axis_name)
        return moved_by_mean(params, state, average, toward(average, params, pull))

    def shared(params: optax.Params, state: GrawaState, axis_name: tuple[str, ...]) -> optax.Params:
        return _share_of(params, state.norms, axis_name)

    def center(params: optax.Params, state: GrawaState, axes: Axes) -> optax.Params:
        return sum_of(mean(shared(params, state, axes.all), axes.all), params, axes.all)

    return DistributedOptimizer(
        init=init,
        update=update,
        communications=(Communication(period, (GROUP, WORKER), MeanOf(shared), finish),),
        center=center,
        restart=lambda params, state: GrawaState(base.init(params), emptied(state.norms)),
    )


def _share_of(params: optax.Params, norms: Window, axis_name: tuple[str, ...]) -> optax.Params:
    """What a worker adds to m; NaN where no worker has a weight."""
    length, able = window_mean(norms), all_finite(params)
    weight = jnp.where(able & jnp.isfinite(length), 1 / jnp.maximum(length, SMALLEST_NORM), 0)
    # Who has just begun again has no norm, and no weight; before the first step, when nobody has, all weigh the same.
    alike = (able & (norms.filled == 0)).astype(weight.dtype)
    # First of all the weights' own means, so that nothing large is added up; and at least float32, which they need.
    average, average_alike = mean(jnp.stack([weight, alike]), axis_name)
    weight, average = jnp.where(average > 0, weight, alike), jnp.where(average > 0, average, average_alike)
    return share_of(params, weight, average, axis_name)
