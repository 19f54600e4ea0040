"""Names of axes, and what they are made of."""

import jax

GROUP = "group"
WORKER = "worker"

AxisName = str | tuple[str, ...]


def names_of(axis_name: AxisName) -> tuple[str, ...]:
    """The names as a tuple, outermost first."""
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


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
