"""Names of axes, and what they are made of."""

from typing import Any

import jax
from jax import lax

GROUP = "group"
WORKER = "worker"

AxisName = str | tuple[str, ...]


def names_of(axis_name: AxisName) -> tuple[str, ...]:
    """The names as a tuple, outermost first."""
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def check_bound(axis_name: AxisName) -> None:
    """Raises ValueError, which says what to do, unless all the axes are bound here."""
    for name in names_of(axis_name):
        try:
            lax.axis_size(name)
        except NameError as error:
            raise ValueError(
                f"axis {name!r} is not bound: call this inside jax.shard_map, jax.pmap or jax.vmap over it; "
                "for workers without groups say group_axis=None, and Axes(group=())"
            ) from error


def lane_axes(axis_name: AxisName) -> tuple[str, ...]:
    """Those of the axes that are lanes of `jax.vmap`."""
    devices = device_axes(axis_name)
    return tuple(name for name in names_of(axis_name) if name not in devices)


def device_axes(axis_name: AxisName) -> tuple[str, ...]:
    """Those of the axes that lie over devices, in the order of the mesh; the others are lanes of `jax.vmap`.

    Tracing knows the mesh, inside `jax.pmap` too.
    """
    names = names_of(axis_name)
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in mesh.axis_names if name in names and name in mesh.manual_axes)


def compiler_axes() -> tuple[str, ...]:
    """Axes of the mesh that are left to the compiler: a worker then spans several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in mesh.axis_names if name not in mesh.manual_axes and mesh.shape[name] > 1)


def summed_axes(axis_name: AxisName) -> tuple[str, ...]:
    """The axes to sum over: XLA cannot sum what is split over axes left to the compiler over others of one device."""
    names = names_of(axis_name)
    return tuple(name for name in names if lax.axis_size(name) > 1) if compiler_axes() else names


def varies_over(array: jax.Array) -> frozenset[str]:
    """The axes of a mesh over which an array's type says that it may differ."""
    kind: Any = jax.typeof(array)
    return kind.mat.varying


def varying(array: jax.Array, axis_name: AxisName) -> jax.Array:
    """The array, of a type that says that it may differ over the axes, where types say so at all."""
    missing = tuple(name for name in names_of(axis_name) if name in tracked_axes() - varies_over(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def tracked_axes() -> frozenset[str]:
    """The axes of which types say what varies over them: in `jax.shard_map`, unless it is told check_vma=False."""
    mesh = jax.sharding.get_abstract_mesh()
    return varies_over(lax.axis_index(mesh.manual_axes)) if mesh.manual_axes else frozenset()
