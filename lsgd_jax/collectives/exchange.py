"""From every worker to every other: over devices, lanes, or both."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.collectives.axes import AxisName, device_axes, lane_axes, names_of


def to_each(rows: jax.Array, axis_name: AxisName) -> jax.Array:
    """Row k goes to worker k.

    Args:
      rows: [workers, ...], a row for each worker, in the order of their index over the axes.
      axis_name: the axis, or the axes from the outermost in.

    Returns:
      [workers, ...]: the row from each.
    """
    names = names_of(axis_name)
    sizes = [lax.axis_size(name) for name in names]
    table = rows.reshape(*sizes, *rows.shape[1:])
    for name in lane_axes(names):
        at = names.index(name)
        table = lax.all_to_all(table, name, at, at, tiled=True)
    devices = _on_several_devices(names)
    if devices:
        places = [names.index(name) for name in devices]
        front = list(range(len(places)))
        moved = jnp.moveaxis(table, places, front)
        flat = moved.reshape(math.prod(moved.shape[: len(places)]), *moved.shape[len(places) :])
        flat = lax.all_to_all(flat, devices, 0, 0, tiled=True)
        table = jnp.moveaxis(flat.reshape(moved.shape), front, places)
    return table.reshape(rows.shape)


def from_each(row: jax.Array, axis_name: AxisName) -> jax.Array:
    """[workers, ...]: what each worker has, on all of them."""
    names = names_of(axis_name)
    order: list[str] = []  # of the leading dimensions
    for name in reversed(lane_axes(names)):
        row, order = lax.all_gather(row, name), [name, *order]
    devices = _on_several_devices(names)
    if devices:
        row = lax.all_gather(row, devices)
        row = row.reshape(*(lax.axis_size(name) for name in devices), *row.shape[1:])
        order = [*devices, *order]
    alone = [name for name in names if name not in order]
    row, order = row.reshape(*[1] * len(alone), *row.shape), [*alone, *order]
    row = jnp.moveaxis(row, [order.index(name) for name in names], range(len(names)))
    return row.reshape(-1, *row.shape[len(names) :])


def _on_several_devices(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the axes that lie over more devices than one, in their own order."""
    mesh = device_axes(names)
    return tuple(name for name in names if name in mesh and lax.axis_size(name) > 1)
