"""Losing a worker: a NaN or an infinity among its parameters, and how means keep clear of it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lsgd_jax.collectives import is_inexact, mean
from lsgd_jax.optimizers.arithmetic import widened
from lsgd_jax.optimizers.distributed_optimizer import Outcome


def all_finite(tree: Any) -> jax.Array:
    """bool[]: whether every number in the tree is finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return jnp.stack(finite).all() if finite else jnp.array(True)


def finite_mean(tree: Any, axis_name: tuple[str, ...]) -> Any:
    """The mean over the workers whose whole tree is finite; NaN where nobody's is."""
    return mean(tree, axis_name, where=all_finite(tree))


def share_of(tree: Any, weight: jax.Array, average: jax.Array, axis_name: tuple[str, ...]) -> Any:
    """What a worker adds to a weighted mean, in float32 or wider; NaN where no worker has a weight.

    The mean of all workers' shares is that mean over their number: `sum_of` makes it of that.

    Args:
      tree: what the worker has. Where it has no weight it leaves no trace, NaN included.
      weight: float[], of this worker, at least 0.
      average: float[], the mean of all weights.
      axis_name: the workers' axes.
    """
    share = weight / average / lax.axis_size(axis_name)  # they sum to 1, and so nothing overflows

    def of_leaf(x: jax.Array) -> jax.Array:
        return jnp.where(average > 0, jnp.where(weight > 0, share.astype(x.dtype) * x, 0), jnp.nan)

    return jax.tree.map(of_leaf, widened(tree))


def sum_of(shares: Any, tree: Any, axis_name: tuple[str, ...]) -> Any:
    """The weighted mean, from the mean of its shares, in the dtypes of a tree."""
    workers = lax.axis_size(axis_name)
    return optax.tree.cast_like(jax.tree.map(lambda x: workers * x, shares), tree)


def select(condition: jax.Array, yes: Any, no: Any) -> Any:
    """One tree or the other. The one that is not chosen leaves no trace, NaN included."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def where_heard(heard: Any, otherwise: Any) -> Any:
    """What has been heard; where it is NaN, nothing has, and another tree stands there."""
    return jax.tree.map(lambda new, old: jnp.where(jnp.isnan(new), old, new), heard, otherwise)


def moved_by_mean(params: Any, state: Any, average: Any, moved: Any) -> Outcome:
    """The outcome of a move from `params` to `moved`, in which a mean was heard.

    A worker that is lost starts again from the mean. Where the mean is not finite,
    nobody was left to enter it, and all stay as they are.
    """
    found, finite = all_finite(average), all_finite(params)
    return Outcome(select(found, select(finite, moved, average), params), state, None, found & ~finite)
