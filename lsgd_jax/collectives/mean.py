"""Averages over workers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lsgd_jax.collectives.axes import AxisName, check_bound, compiler_axes, device_axes, lane_axes, summed_axes
from lsgd_jax.collectives.sums import is_inexact, power_share, sum_dtype
from lsgd_jax.collectives.wire import by_dtype


def mean(tree: Any, axis_name: AxisName, *, where: ArrayLike = True) -> Any:
    """Averages the floating-point and complex leaves of a tree over the workers for which `where` holds.

    Numbers are summed, and travel, in float32 or their own dtype where it is wider, in
    shares so small that nothing overflows: the mean of finite numbers is finite. Lanes of
    a device are summed first; then one message for each dtype of sums goes around the
    devices.

    Args:
      tree: pytree of arrays. Leaves that are no numbers to average (integers,
        booleans, keys) stay each worker's own.
      axis_name: the axis or axes to average over.
      where: bool[], whether this worker takes part. What the others hold, NaN
        included, does not enter. True for all.

    Returns:
      The mean, of the dtypes of `tree`; NaN where nobody takes part.

    Raises:
      ValueError: if an axis is not bound.
    """
    check_bound(axis_name)
    leaves, structure = jax.tree.flatten(tree)
    averaged = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]
    if not averaged:
        return tree
    workers = lax.axis_size(axis_name)
    share = power_share(workers)
    parts = [jnp.asarray(leaves[i]) for i in averaged]
    parts = [share * part.astype(sum_dtype(part.dtype)) for part in parts]
    if where is True:
        count: Any = workers
        totals = _sums(parts, axis_name)
    else:
        # Counted from an array that varies over the axes even where `where` is a constant, in the dtype of most
        # trees, so that it travels in their message.
        varying = jnp.ones_like(lax.axis_index(axis_name), dtype=jnp.float32)
        *totals, count = _sums([jnp.where(where, part, jnp.zeros_like(part)) for part in (*parts, varying)], axis_name)
    for i, total in zip(averaged, totals, strict=True):
        leaves[i] = (total / jnp.asarray(count * share, total.dtype)).astype(jnp.result_type(leaves[i]))
    return jax.tree.unflatten(structure, leaves)


def _sums(arrays: list[jax.Array], axis_name: AxisName) -> list[jax.Array]:
    """Each array's sum over the axes."""
    devices = device_axes(axis_name)
    if lanes := lane_axes(axis_name):
        arrays = [lax.psum(array, lanes) for array in arrays]
    if not devices:
        return arrays
    # To flatten what the compiler splits over further axes would gather it; one device has nobody to tell.
    if compiler_axes() or lax.axis_size(devices) == 1:
        return [lax.psum(array, summed_axes(devices)) for array in arrays]
    sums = dict[int, jax.Array]()
    for same in by_dtype(arrays):
        message = lax.psum(jnp.concatenate([arrays[i].reshape(-1) for i in same]), devices)
        ends = np.cumsum([arrays[i].size for i in same])
        sums |= dict(zip(same, jnp.split(message, ends[:-1]), strict=True))
    return [sums[i].reshape(array.shape) for i, array in enumerate(arrays)]
