"""A run that outlives its processes: what each of them carries from one generation to the next, in its memory.

A process keeps its own workers as they were when the last two calls of the train step began. A death interrupts a call
in some processes, and others may have finished it: all go back to the last step that all have kept, so that a
communication takes effect in all of them or in none, and local steps since then are taken again. Two are enough, since
each call ends with a word from all to all: nobody begins a call before all have come to the end of the last but one.
"""

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.generations import Generation, Membership
from lsgd_jax.collectives import GROUP, WORKER, broadcast_from_leader, elect_leader
from lsgd_jax.engine.communication import WorkerState, begin_again
from lsgd_jax.engine.local_steps import keeps_gradients
from lsgd_jax.engine.numerics import wrap_keys
from lsgd_jax.engine.state import SHARED, TrainState, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.compressed import is_compressed, with_common_references
from lsgd_jax.optimizers.distributed_optimizer import Axes, DistributedOptimizer
from lsgd_jax.optimizers.finite import all_finite, select
from lsgd_jax.optimizers.window import window_mean
from lsgd_jax.trainer.checkpoints import CheckpointInfo, with_raw_keys
from lsgd_jax.trainer.elastic import unknown_fields, with_fields
from lsgd_jax.trainer.run import Run

KEPT = 2
GENERATIONS = "generations.csv"
GENERATION_COLUMNS = ("generation", "step", "groups", "workers", "processes", "lost", "taken_in")


class Kept(NamedTuple):
    """What a process has kept at the beginning of a call.

    Attributes:
      step: local steps so far.
      state: its own workers, NumPy arrays [workers of this process, ...], `keys` raw; and what all share.
      info: what else a run has to know to go on.
    """

    step: int
    state: TrainState
    info: CheckpointInfo


class Begun(NamedTuple):
    """What a process tells the others when a generation begins; a newcomer nothing.

    Attributes:
      workdir: of the run; None while it has none.
      shape: (groups, workers) of the run when all its processes are there.
      members: of the generation before.
      shared: the leaves of the state's shared fields.
      info: at the step from which the run goes on.
    """

    workdir: str | None
    shape: tuple[int, int]
    members: tuple[int, ...]
    shared: list[float]
    info: CheckpointInfo | None


class LiveRun:
    """A run, as one of its processes sees it, from its first generation to its last.

    Args:
      membership: this process, as a member.
      count: how many processes the run has when all are there.

    Attributes:
      generation: the one that trains.
      begun: what the members that have a state know; None at the beginning of the run.
      workdir: of the run, once it is known.
      shape: (groups, workers) with all processes, once it is known.
    """

    def __init__(self, membership: Membership, count: int) -> None:
        self.membership, self.count = membership, count
        self.generation = Generation(0, (), (), None, None)
        self.begun: Begun | None = None
        self.workdir: str | None = None
        self.shape: tuple[int, int] | None = None
        self._kept: collections.deque[Kept] = collections.deque(maxlen=KEPT)

    def join(self) -> None:
        """Joins the next generation, and hears from its members how far the run has come."""
        before = self.generation
        self.generation = self.membership.join([kept.step for kept in self._kept])
        if self.is_new:
            self._kept.clear()
        mine = None
        if self.workdir is not None and self.shape is not None and not self.is_new:
            kept = self._at(self.generation.step)
            shared = [] if kept is None else [leaf.item() for leaf in jax.tree.leaves(_shared(kept.state))]
            info = None if kept is None else kept.info
            mine = Begun(self.workdir, self.shape, before.members, shared, info)
        told = next((each for each in processes.exchange("begun", mine) if each is not None), None)
        if told is None:
            self.begun = None
            return
        workdir, shape, members, shared, info = told
        info = None if info is None else CheckpointInfo(tuple(info[0]), *info[1:])
        self.begun = Begun(workdir, tuple(shape), tuple(members), shared, info)
        self.workdir, self.shape = workdir, tuple(shape)

    @property
    def is_new(self) -> bool:
        """Whether this process has come to a run that goes on."""
        return self.generation.step is not None and self.membership.number in self.generation.newcomers

    def shape_now(self) -> tuple[int, int]:
        """(groups, workers) of the generation: all workers of its members, in groups of the same size.

        As many groups as there are of which any member is left, if its workers can be dealt to them equally, else as
        many below as they can.

        Raises:
          InputError: if this cannot be.
        """
        assert self.shape is not None
        groups, workers = self.shape
        if groups * workers % self.count:
            raise InputError(
                f"--live: {groups} × {workers} workers cannot be dealt equally to {self.count} processes: choose a "
                f"number of workers that {self.count} divides"
            )
        if (platform := processes.devices()[0].platform) != "cpu":
            raise InputError(
                f"--live: processes come and go on CPU devices alone, and these are {platform}: leave it out"
            )
        each, members = groups * workers // self.count, self.generation.members
        left = {rank // workers for number in members for rank in range(number * each, (number + 1) * each)}
        size = each * len(members)
        for count in range(len(left), 0, -1):
            if size % count == 0:
                topology = Topology(count, size // count, processes.devices())
                own = collections.Counter(device.process_index for device in topology.mesh.devices.flat)
                if len(own) == processes.count() and len(set(own.values())) == 1:
                    return topology.shape
        raise InputError(f"--live: {size} workers cannot be dealt equally to the devices of {len(members)} processes")

    def keep(self, state: TrainState, step: int, info: CheckpointInfo) -> None:
        """Keeps this process's workers, in copies: the next call consumes the state."""
        self._kept.append(Kept(step, own_rows(state), info))

    def restored(self, run: Run) -> tuple[TrainState, CheckpointInfo] | None:
        """The state of all workers at the generation's step, and what belongs to it; None where nobody has any.

        Workers of a newcomer start from the best of their group, or of all where all of a group are new.
        """
        step = self.generation.step
        if step is None:
            return None
        assert self.begun is not None
        assert self.begun.info is not None
        fresh = run.init_state()
        rows, kept = own_rows(fresh), self._at(step)
        if kept is not None:
            unknown = unknown_fields(kept.state.opt_state, rows.opt_state)
            rows = kept.state._replace(opt_state=with_fields(kept.state.opt_state, unknown))
        like, treedef = jax.tree.flatten(_shared(rows))
        values = [np.asarray(value, leaf.dtype) for value, leaf in zip(self.begun.shared, like, strict=True)]
        shared = jax.tree.unflatten(treedef, values) | {"learning_rate": np.asarray(fresh.learning_rate)}
        state = placed(rows._replace(**shared), run.topology)
        state = state._replace(keys=wrap_keys(state.keys))
        if self.generation.newcomers:
            new = np.full(own_count(run.topology), kept is None)
            state = make_admit(run.method, run.topology)(state, fresh.keys, placed(new, run.topology))
        return state, self.begun.info

    def news(self) -> list[str]:
        """Who was lost, and who has come, for people."""
        lost, come = self._changes()
        return [
            f"{what}: process {', '.join(map(str, who))}" for what, who in (("lost", lost), ("taken in", come)) if who
        ]

    def record(self, workdir: pathlib.Path, step: int, shape: tuple[int, int]) -> None:
        """Adds a line about this generation to generations.csv, in the main process."""
        lost, come = self._changes()
        path, (groups, workers) = workdir / GENERATIONS, shape
        row = (self.generation.number, step, groups, workers, *(" ".join(map(str, who)) for who in (
            self.generation.members, lost, come)))  # fmt: skip
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([GENERATION_COLUMNS, row] if new else [row])

    def _changes(self) -> tuple[list[int], list[int]]:
        """The members of the generation before that are gone, and those that are new."""
        now = set(self.generation.members)
        before = now if self.begun is None else set(self.begun.members)
        return sorted(before - now), sorted(now - before)

    def agreed(self, stop: Any, topology: Topology) -> Callable[[], tuple[bool, bool]]:
        """Makes the function that tells after each call whether to stop, and whether to take in who waits.

        It waits for all processes, of which each has to call it.
        """
        ask = processes.agreed((stop, _Wanted(self.membership)), topology, at_once=True)

        def both() -> tuple[bool, bool]:
            stopping, wanted = ask()
            return stopping, wanted and not stopping

        return both

    def _at(self, step: int | None) -> Kept | None:
        return next((kept for kept in self._kept if kept.step == step), None)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """True once somebody waits to be taken in."""

    membership: Membership

    def __bool__(self) -> bool:
        return self.membership.wanted


def _shared(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in SHARED}


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
    shared = jax.tree.map(lambda leaf: processes.put(leaf, topology.replicated), _shared(rows))
    own = {name: jax.tree.map(of_workers, getattr(rows, name)) for name in TrainState._fields if name not in SHARED}
    return TrainState(**own, **shared)


def make_admit(method: DistributedOptimizer, topology: Topology) -> Callable[..., TrainState]:
    """Makes `(state, fresh keys, new) -> state`, in which those that are new have begun; it consumes the state.

    They start from the best in their group that is not new, or of all: with its parameters and model state, a fresh
    optimizer state and no losses. Where gradients are shared in each step all have to stay equal, and they take the
    optimizer's state too.
    """
    axes = topology.axes

    def start(worker: TrainState, key: jax.Array, new: jax.Array) -> TrainState:
        score = window_mean(worker.losses)
        largest = jnp.finfo(score.dtype).max  # who has no score counts as the worst of those who can lead
        able = ~new & all_finite(worker.params)
        score = jnp.where(able, jnp.where(jnp.isfinite(score), score, largest), jnp.inf)
        of_group, of_all = (elect_leader(score, names) for names in (axes.worker, axes.all))
        sent = (worker.params, worker.model_state, () if keeps_gradients(method) else worker.opt_state)
        near, far = (
            broadcast_from_leader(sent, leader, names)
            for leader, names in ((of_group, axes.worker), (of_all, axes.all))
        )
        params, model_state, opt_state = select(of_group.valid, near, far)
        state = WorkerState(params, model_state, worker.opt_state, worker.losses)
        again = begin_again(method, state)
        changed: dict[str, Any] = {
            "params": params,
            "model_state": model_state,
            "opt_state": again.opt_state if keeps_gradients(method) else opt_state,
            "losses": again.losses,
            "own_steps": worker.step,
            # With the step, since a key of its number may be somebody's already.
            "keys": jax.random.fold_in(key, worker.step),
        }
        old = {name: getattr(worker, name) for name in changed}
        worker = worker._replace(**select(new, changed, old))
        if is_compressed(worker.opt_state):
            fresh = method.init(worker.params, Axes())
            worker = worker._replace(opt_state=with_common_references(worker.opt_state, fresh))
        return worker

    split, specs = PartitionSpec(GROUP, WORKER), state_specs()
    fields: Any = dict.fromkeys(TrainState._fields, 0) | dict.fromkeys(SHARED)
    mapped = TrainState(**fields)

    def on_device(state: TrainState, keys: jax.Array, new: jax.Array) -> TrainState:
        def of_lane(worker: TrainState, key: jax.Array, new: jax.Array) -> TrainState:
            nothing: dict[str, Any] = dict.fromkeys(SHARED, ())
            return start(worker, key, new)._replace(**nothing)

        began = topology.over_lanes(of_lane, in_axes=(mapped, 0, 0))(state, keys, new)
        return began._replace(**_shared(state))

    admit = topology.over_devices(on_device, in_specs=(specs, split, split), out_specs=specs)
    return jax.jit(admit, donate_argnums=0)
