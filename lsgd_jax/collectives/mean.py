"""Averages over workers."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from lsgd_jax.collectives.axes import AxisName


def mean(tree: Any, axis_name: AxisName, *, where: ArrayLike = True) -> Any:
    """Averages a tree of float arrays over the workers for which `where` holds.

    Args:
      tree: pytree of floating-point arrays.
      axis_name: the axis or axes to average over.
      where: bool[], whether this worker takes part. What the others hold, NaN
        included, does not enter.

    Returns:
      The mean, of the dtypes of `tree`; NaN where nobody takes part.
    """
    taking_part = jnp.asarray(where)
    # Counted from an array that varies over the axes even where `where` is a constant.
    index = lax.axis_index(axis_name)
    count = lax.psum(jnp.where(taking_part, jnp.ones_like(index), 0), axis_name)

    def average(leaf: jax.Array) -> jax.Array:
        total = lax.psum(jnp.where(taking_part, leaf, jnp.zeros_like(leaf)), axis_name)
        return total / count.astype(leaf.dtype)

    return jax.tree.map(average, tree)
