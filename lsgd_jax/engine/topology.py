"""Where workers live: axes of a device mesh times lanes on each device."""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.collectives.partition import gathered, keeping, split_by_size
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

    A worker may span several devices itself: `worker_axes={"fsdp": 4}` adds an axis to the
    mesh, over which the compiler splits its arrays. Along the first such axis a worker's
    minibatch is split, and its parameters, which are gathered where the loss uses them;
    further ones split the computation.

    Attributes:
      groups: n, the number of groups.
      workers: l, the number of workers in each group.
      devices: the devices to use; all of them by default.
      lanes: how a device's lanes take their steps: "vmap" all at once,
        "sequential" one after the other (gradient by gradient, for methods that
        reduce gradients). By default sequential on CPU,
        where batched kernels are slow, and vmap elsewhere.
      worker_axes: the sizes of the axes of one worker, by name; none by default. Kept as pairs.
      partition: how a worker's arrays are split over these: pairs of a regular expression, which is
        searched for in the path of a leaf, as "blocks/attend/kernel", and a `PartitionSpec`; the
        first that is found counts, if it divides the leaf; axes that there are not are left out of it.
        Others are split by their size: see `lsgd_jax.collectives.partition.split_by_size`.

    Raises:
      ValueError: if `groups` or `workers` is less than 1, `devices` is empty or fewer than a
        worker's axes take, `lanes` is unknown, or an axis has a name that is taken.
    """

    groups: int
    workers: int
    devices: Sequence[jax.Device] | None = None
    lanes: Lanes | None = None
    worker_axes: Mapping[str, int] | Sequence[tuple[str, int]] | None = None
    partition: Sequence[tuple[str, PartitionSpec]] = ()

    def __post_init__(self) -> None:
        for name in ("groups", "workers"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        devices = tuple(jax.devices() if self.devices is None else self.devices)
        if not devices:
            raise ValueError("devices is empty: name at least one device, or leave it out to use all")
        if self.lanes not in (None, "vmap", "sequential"):
            raise ValueError(f'lanes must be "vmap" or "sequential", got {self.lanes!r}')
        object.__setattr__(self, "devices", devices)
        object.__setattr__(self, "worker_axes", tuple(dict(self.worker_axes or {}).items()))
        object.__setattr__(self, "partition", tuple((str(rule), spec) for rule, spec in self.partition))
        for name, size in self.own_axes.items():
            check_count(f"worker_axes[{name!r}]", size)
            if name in (GROUP, WORKER, GROUP_LANE, WORKER_LANE):
                raise ValueError(f"worker_axes: the name {name!r} is taken: choose another")
        if self.devices_per_worker > len(devices):
            raise ValueError(
                f"a worker of {self.devices_per_worker} devices ({self.own_axes}) does not fit on {len(devices)}: "
                "use smaller worker_axes"
            )
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
    def own_axes(self) -> dict[str, int]:
        """The sizes of the axes of one worker, by name."""
        return dict(self.worker_axes or ())

    @property
    def devices_per_worker(self) -> int:
        """Over how many devices a worker's arrays are split."""
        return math.prod(self.own_axes.values())

    @property
    def platform(self) -> str:
        """What its devices are: "cpu", "gpu" or "tpu". All that differs between these is chosen by it."""
        assert self.devices is not None
        return self.devices[0].platform

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices with the axes (group, worker), then those of a worker: as many as divide the shape.

        Of two meshes of the same size, the one with more groups: workers of a
        group, which communicate more often, then share devices.
        """
        assert self.devices is not None
        count = len(self.devices) // self.devices_per_worker
        sizes = [
            (g * w, g, w)
            for g in range(1, count + 1)
            for w in range(1, count // g + 1)
            if self.groups % g == 0 and self.workers % w == 0
        ]
        used, mesh_groups, mesh_workers = max(sizes)
        devices = np.array(self.devices[: used * self.devices_per_worker])
        own = self.own_axes
        return Mesh(devices.reshape(mesh_groups, mesh_workers, *own.values()), (GROUP, WORKER, *own))

    @property
    def axes(self) -> Axes:
        """The names that are bound inside `over_lanes` inside `over_devices`."""
        return Axes(group=(GROUP, GROUP_LANE), worker=(WORKER, WORKER_LANE))

    @property
    def per_worker(self) -> NamedSharding:
        """The sharding of arrays of shape (groups, workers, ...)."""
        return NamedSharding(self.mesh, PartitionSpec(GROUP, WORKER))

    @property
    def over_samples(self) -> tuple[str, ...]:
        """The axes over which samples that are no worker's are spread, as those of an evaluation."""
        return (GROUP, WORKER, *list(self.own_axes)[:1])

    @property
    def sample_shares(self) -> int:
        """Among how many devices these are shared out."""
        return math.prod(self.mesh.shape[name] for name in self.over_samples)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device has."""
        return NamedSharding(self.mesh, PartitionSpec())

    def spec_of(self, path: Sequence[Any], shape: Sequence[int]) -> PartitionSpec:
        """How a leaf of a worker's is split over its own axes.

        Args:
          path: its keys, as `jax.tree_util.tree_flatten_with_path` gives them.
          shape: of one worker's.
        """
        name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
        found = next((spec for rule, spec in self.partition if re.search(rule, name)), None)
        chosen = None if found is None else _fitting(found, shape, self.own_axes)
        return split_by_size(shape, self.own_axes) if chosen is None else chosen

    def of_workers(self, tree: Any) -> Any:
        """The shardings of arrays, or shapes, (groups, workers, ...), a leaf of each worker."""
        spread = (GROUP, WORKER)
        return self._mapped(lambda spec, _: NamedSharding(self.mesh, PartitionSpec(*spread, *spec)), tree, 2)

    def of_model(self, tree: Any) -> Any:
        """The shardings of arrays, or shapes, of one model that all have."""
        return self._mapped(lambda spec, _: NamedSharding(self.mesh, spec), tree, 0)

    def split(self, tree: Any, leading: int = 0) -> Any:
        """Inside `over_devices`: a worker's arrays as they are kept, split over its own devices.

        Args:
          tree: pytree of its arrays.
          leading: of the dimensions of each, how many count lanes.
        """
        if not self.own_axes:
            return tree

        def keep(spec: PartitionSpec, leaf: jax.Array) -> jax.Array:
            return lax.with_sharding_constraint(leaf, PartitionSpec(*[None] * leading, *spec))

        return self._mapped(keep, tree, leading)

    def gathered(self, params: Any) -> Any:
        """Inside `over_devices`, or `traced`: a worker's parameters as its loss takes them."""
        return gathered(params, self._mapped(lambda spec, _: spec, params, 0)) if self.own_axes else params

    def _mapped(self, function: Callable[[PartitionSpec, Any], Any], tree: Any, leading: int) -> Any:
        """Maps a function of each leaf's spec and the leaf."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: function(self.spec_of(path, leaf.shape[leading:]), leaf), tree
        )

    def over_devices(self, function: Callable, *, in_specs: Any, out_specs: Any, mesh: Mesh | None = None) -> Callable:
        """`jax.shard_map` over the mesh, or over another one of some of its devices; a worker's own axes are left."""
        manual: dict[str, Any] = {"axis_names": {GROUP, WORKER}} if self.own_axes else {}
        # Collectives over lanes inside a shard_map need check_vma=False.
        return jax.shard_map(
            function, mesh=mesh or self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False, **manual
        )

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


def _fitting(spec: PartitionSpec, shape: Sequence[int], axes: Mapping[str, int]) -> PartitionSpec | None:
    """The spec over those axes; None for an array that it does not divide: beside a parameter other shapes are kept."""
    names = keeping(spec, axes.__contains__)
    counts = [math.prod(axes[name] for name in of) for of in names]
    divides = len(names) <= len(shape) and not any(map(operator.mod, shape, counts))
    return PartitionSpec(*[of or None for of in names]) if divides else None


def placed_shapes(shapes: Any, shardings: Any) -> Any:
    """Shapes that say where their arrays are, or would be."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


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
