"""Averages over workers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lsgd_jax.collectives.axes import AxisName, compiler_axes, device_axes, lane_axes
from lsgd_jax.collectives.wire import by_dtype


def mean(tree: Any, axis_name: AxisName, *, where: ArrayLike = True) -> Any:
    """Averages a tree of float arrays over the workers for which `where` holds.

    Lanes of a device are summed first; then one message for each dtype goes around
    the devices.

    Args:
      tree: pytree of floating-point arrays.
      axis_name: the axis or axes to average over.
      where: bool[], whether this worker takes part. What the others hold, NaN
        included, does not enter. True for all.

    Returns:
      The mean, of the dtypes of `tree`; NaN where nobody takes part.
    """
    leaves, structure = jax.tree.flatten(tree)
    if where is True:
        count: Any = lax.axis_size(axis_name)
        totals = _sums([jnp.asarray(leaf) for leaf in leaves], axis_name)
    else:
        # Counted from an array that varies over the axes even where `where` is a constant, in the dtype of most
        # trees, so that it travels in their message.
        varying = jnp.ones_like(lax.axis_index(axis_name), dtype=jnp.float32)
        parts = [jnp.asarray(leaf) for leaf in leaves]
        *totals, count = _sums([jnp.where(where, part, jnp.zeros_like(part)) for part in (*parts, varying)], axis_name)
    means = [total / jnp.asarray(count, total.dtype) for total in totals]
    return jax.tree.unflatten(structure, means)


def _sums(arrays: list[jax.Array], axis_name: AxisName) -> list[jax.Array]:
    """Each array's sum over the axes."""
    devices = device_axes(axis_name)
    if lanes := lane_axes(axis_name):
        arrays = [lax.psum(array, lanes) for array in arrays]
    if not devices:
        return arrays
    # To flatten what the compiler splits over further axes would gather it; one device has nobody to tell.
    if compiler_axes() or lax.axis_size(devices) == 1:
        return [lax.psum(array, devices) for array in arrays]
    sums = dict[int, jax.Array]()
    for same in by_dtype(arrays):
        message = lax.psum(jnp.concatenate([arrays[i].reshape(-1) for i in same]), devices)
        ends = np.cumsum([arrays[i].size for i in same])
        sums |= dict(zip(same, jnp.split(message, ends[:-1]), strict=True))
    return [sums[i].reshape(array.shape) for i, array in enumerate(arrays)]
