"""Where workers live: axes of a device mesh times lanes on each device."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.optimizers.distributed_optimizer import Axes, check_count

GROUP_LANE = "group_lane"
WORKER_LANE = "worker_lane"

Lanes = Literal["vmap", "sequential"]


@dataclasses.dataclass(frozen=True)
class Topology:
    """`groups` × `workers` workers over whatever devices there are.

    The mesh axes `group` and `worker` take as many devices as divide the shape;
    the remaining workers are lanes on each device. On one device all are lanes,
    on groups·workers devices none. A run does not depend on the split.

    Per-worker arrays have the shape (groups, workers, ...), and on a device the
    shape (groups / mesh groups, workers / mesh workers, ...).

    Attributes:
      groups: n, the number of groups.
      workers: l, the number of workers in each group.
      devices: the devices to use; all of them by default.
      lanes: how a device's lanes take their steps: "vmap" all at once,
        "sequential" one after the other (gradient by gradient, for methods that
        reduce gradients). By default sequential on CPU,
        where batched kernels are slow, and vmap elsewhere.

    Raises:
      ValueError: if `groups` or `workers` is less than 1, `devices` is empty, or
        `lanes` is unknown.
    """

    groups: int
    workers: int
    devices: Sequence[jax.Device] | None = None
    lanes: Lanes | None = None

    def __post_init__(self) -> None:
        for name in ("groups", "workers"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        devices = tuple(jax.devices() if self.devices is None else self.devices)
        if not devices:
            raise ValueError("devices is empty: name at least one device, or leave it out to use all")
        if self.lanes not in (None, "vmap", "sequential"):
            raise ValueError(f'lanes must be "vmap" or "sequential", got {self.lanes!r}')
        object.__setattr__(self, "devices", devices)
        if self.lanes is None:
            object.__setattr__(self, "lanes", "sequential" if self.platform == "cpu" else "vmap")

    @property
    def shape(self) -> tuple[int, int]:
        """(groups, workers)."""
        return self.groups, self.workers

    @property
    def size(self) -> int:
        """The number of workers of all groups."""
        return self.groups * self.workers

    @property
    def platform(self) -> str:
        """What its devices are: "cpu", "gpu" or "tpu". All that differs between these is chosen by it."""
        assert self.devices is not None
        return self.devices[0].platform

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices with the axes (group, worker): as many as divide the shape.

        Of two meshes of the same size, the one with more groups: workers of a
        group, who talk more often, then share devices.
        """
        assert self.devices is not None
        count = len(self.devices)
        sizes = [
            (g * w, g, w)
            for g in range(1, count + 1)
            for w in range(1, count // g + 1)
            if self.groups % g == 0 and self.workers % w == 0
        ]
        used, mesh_groups, mesh_workers = max(sizes)
        return Mesh(np.array(self.devices[:used]).reshape(mesh_groups, mesh_workers), (GROUP, WORKER))

    @property
    def axes(self) -> Axes:
        """The names that are bound inside `over_lanes` inside `over_devices`."""
        return Axes(group=(GROUP, GROUP_LANE), worker=(WORKER, WORKER_LANE))

    @property
    def per_worker(self) -> NamedSharding:
        """The sharding of arrays of shape (groups, workers, ...)."""
        return NamedSharding(self.mesh, PartitionSpec(GROUP, WORKER))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device has."""
        return NamedSharding(self.mesh, PartitionSpec())

    def over_devices(self, function: Callable, *, in_specs: Any, out_specs: Any, mesh: Mesh | None = None) -> Callable:
        """`jax.shard_map` over the mesh, or over another one of some of its devices."""
        # Collectives over lanes inside a shard_map need check_vma=False.
        return jax.shard_map(function, mesh=mesh or self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def traced(self, function: Callable) -> Callable:
        """A function of whole arrays for `jax.jit`, traced for these devices: models choose by their platform."""

        @functools.wraps(function)
        def on_mesh(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*args)

        return on_mesh

    def over_lanes(self, function: Callable, in_axes: Any = 0) -> Callable:
        """Maps a function of one worker over this device's lanes, where it may communicate."""
        return jax.vmap(
            jax.vmap(function, in_axes=in_axes, axis_name=WORKER_LANE), in_axes=in_axes, axis_name=GROUP_LANE
        )

    def each_lane(self, function: Callable, in_axes: Sequence[Any]) -> Callable:
        """Maps a function that does not communicate over this device's lanes, as `lanes` says."""
        if self.lanes == "vmap":
            return jax.vmap(jax.vmap(function, in_axes), in_axes)

        def one_after_the_other(*args: Any) -> Any:
            shape = _lanes_of(args[0])
            out = lax.map(lambda lane: function(*_take(lane, args, in_axes)), _indices(shape))
            return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), out)

        return one_after_the_other

    def update_lanes(self, function: Callable, in_axes: Sequence[Any]) -> Callable:
        """Like `each_lane`, of `function(lane, *args) -> lane`, in place: the lanes are not held twice."""
        if self.lanes == "vmap":
            return jax.vmap(jax.vmap(function, (0, *in_axes)), (0, *in_axes))

        def one_after_the_other(lanes: Any, *args: Any) -> Any:
            indices = _indices(_lanes_of(lanes))

            def update(i: jax.Array, lanes: Any) -> Any:
                lane = indices[0][i], indices[1][i]
                new = function(*_take(lane, (lanes, *args), (0, *in_axes)))
                return jax.tree.map(lambda x, of_lane: x.at[lane].set(of_lane), lanes, new)

            return lax.fori_loop(0, len(indices[0]), update, lanes)

        return one_after_the_other


def _lanes_of(tree: Any) -> tuple[int, int]:
    """(groups, workers) on this device."""
    groups, workers = jax.tree.leaves(tree)[0].shape[:2]
    return groups, workers


def _indices(shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """(group, worker) of each lane, row-major."""
    groups, workers = np.indices(shape).reshape(2, -1)
    return jnp.asarray(groups), jnp.asarray(workers)


def _take(lane: tuple[jax.Array, jax.Array], args: Sequence[Any], in_axes: Sequence[Any]) -> list[Any]:
    """The lane's part of the arguments, or parts of arguments, whose axis is 0; the others as they are."""

    def take(axis: int | None, part: Any) -> Any:
        return part if axis is None else jax.tree.map(lambda x: x[lane], part)

    return jax.tree.map(take, list(in_axes), list(args), is_leaf=lambda axis: axis is None)
