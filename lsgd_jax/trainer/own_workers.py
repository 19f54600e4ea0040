"""The workers of this process, as NumPy arrays: from a state of all, and into one."""

from typing import Any

import jax
import numpy as np

from lsgd_jax.cluster import processes
from lsgd_jax.engine.state import SHARED, TrainState, shared_fields
from lsgd_jax.engine.topology import Topology
from lsgd_jax.trainer.checkpoints import with_raw_keys


def _own_devices(topology: Topology) -> list[jax.Device]:
    """The devices of the mesh that are this process's, in the mesh's order."""
    return [device for device in topology.mesh.devices.flat if device.process_index == jax.process_index()]


def own_count(topology: Topology) -> int:
    """How many workers live in this process."""
    return topology.size // topology.mesh.size * len(_own_devices(topology))


def own_rows(state: TrainState) -> TrainState:
    """A state as NumPy arrays: of this process's workers [workers, ...], and what all share; `keys` raw. Copies."""
    raw = with_raw_keys(state)

    def rows(array: jax.Array) -> np.ndarray:
        sharding: Any = array.sharding
        order = {device: place for place, device in enumerate(sharding.mesh.devices.flat)}
        shards = sorted(array.addressable_shards, key=lambda shard: order[shard.device])
        return np.concatenate([np.array(shard.data).reshape(-1, *array.shape[2:]) for shard in shards])

    def whole(array: jax.Array) -> np.ndarray:
        return np.array(array.addressable_shards[0].data)

    own = dict.fromkeys(TrainState._fields, rows) | dict.fromkeys(SHARED, whole)
    return TrainState(**{name: jax.tree.map(of, getattr(raw, name)) for name, of in own.items()})


def placed(rows: Any, topology: Topology) -> Any:
    """Arrays of all workers from each process's `own_rows`; the fields of a state that all share as they are."""
    devices = _own_devices(topology)
    groups, workers = (of // on for of, on in zip(topology.shape, topology.mesh.devices.shape, strict=False))

    def of_workers(leaf: np.ndarray) -> jax.Array:
        parts = leaf.reshape(len(devices), groups, workers, *leaf.shape[1:])
        shards = [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)]
        shape = (*topology.shape, *leaf.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, topology.per_worker, shards)

    if not isinstance(rows, TrainState):
        return jax.tree.map(of_workers, rows)
    shared = jax.tree.map(lambda leaf: processes.put(leaf, topology.replicated), shared_fields(rows))
    own = {name: jax.tree.map(of_workers, getattr(rows, name)) for name in TrainState._fields if name not in SHARED}
    return TrainState(**own, **shared)
