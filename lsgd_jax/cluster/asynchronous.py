"""Processes that take local steps independently, each on its own devices, and meet to communicate.

Two programs make a round: one local step of a process's workers, which runs at each
process's own pace, and the communication, a collective that all enter together. Arrays change
hands between them without a copy.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.tickets import SharedRound, share_round
from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.communications import RoundReport, Score, make_communications
from lsgd_jax.engine.local_steps import Batches, Loss
from lsgd_jax.engine.schedules import Factor, constant
from lsgd_jax.engine.simulated_speeds import Pace, check_rounds
from lsgd_jax.engine.state import TrainState, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.engine.train_step import make_take_steps
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer


class Programs(NamedTuple):
    """The two programs of a round.

    Attributes:
      step: `(state, data, last) -> state`, of arrays on this process's devices: a step of its
        workers. `state.step` goes on with them, up to `last`, the round's last, int32[].
      communicate: `(state, end) -> (state, report)`, of arrays on all devices: the communications that
        are due at step `end`, int32[].
    """

    step: Any
    communicate: Any


def make_programs(
    method: DistributedOptimizer,
    topology: Topology,
    loss: Loss,
    batches: Batches,
    *,
    rate_factor: Factor = constant,
    score: Score | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> Programs:
    """Makes the programs; the arguments are those of `make_train_step`. Both consume the state.

    Raises:
      ValueError: if the method has no rounds in which workers step independently.
    """
    check_rounds(method, topology.groups)
    take_steps = make_take_steps(method, topology, loss, batches, 1, rate_factor)
    communicate_when_due = make_communications(method, topology, score)
    per_worker, same = PartitionSpec(GROUP, WORKER), PartitionSpec()

    def step(state: TrainState, data: Any, last: jax.Array) -> TrainState:
        state = take_steps(state, jnp.int32(1), state.step + 1, data)
        return state._replace(step=jnp.minimum(state.step, last))

    def communicate(state: TrainState, end: jax.Array) -> tuple[TrainState, RoundReport]:
        return communicate_when_due(state._replace(step=end))

    own = topology.over_devices(
        step,
        in_specs=(state_specs(), batches.specs, same),
        out_specs=state_specs(),
        mesh=own_mesh(topology),
    )
    all_devices = topology.over_devices(
        communicate, in_specs=(state_specs(), same), out_specs=(state_specs(), per_worker)
    )
    options: dict[str, Any] = {"donate_argnums": 0, "compiler_options": compiler_options}
    return Programs(jax.jit(own, **options), jax.jit(all_devices, **options))


def compile_programs(programs: Programs, topology: Topology, state: TrainState, data: Any) -> Programs:
    """The programs, compiled for arrays like these on the devices of all processes."""
    own, own_data = (take_own(tree, own_mesh(topology)) for tree in (state, data))
    return Programs(
        programs.step.lower(own, own_data, np.int32(0)).compile(),
        programs.communicate.lower(state, np.int32(0)).compile(),
    )


def check_shares(topology: Topology) -> None:
    """Refuses a topology in which processes have different numbers of workers: they claim tickets for all of theirs.

    Raises:
      InputError: naming the flags, or if a worker has devices of several processes.
    """
    if any(len({device.process_index for device in worker}) > 1 for worker in _devices_of_workers(topology)):
        raise InputError(
            f"--asynchronous: the {topology.devices_per_worker} devices of a worker are those of several processes: "
            "use smaller worker axes, or processes with more devices"
        )
    shares = Counter(device.process_index for device in topology.mesh.devices.flat)
    if len(set(shares.values())) > 1:
        raise InputError(
            f"--asynchronous: --groups={topology.groups} --workers={topology.workers} give processes different numbers "
            "of workers: choose numbers that their devices divide"
        )


def own_mesh(topology: Topology) -> Mesh:
    """This process's devices of a topology, with one group: local steps know no neighbours."""
    own = [worker for worker in _devices_of_workers(topology) if worker[0].process_index == processes.number()]
    return Mesh(np.array(own).reshape(1, len(own), *topology.own_axes.values()), topology.mesh.axis_names)


def _devices_of_workers(topology: Topology) -> np.ndarray:
    """Those of the mesh, [workers, devices of each]: a worker there is one or several that share devices."""
    return topology.mesh.devices.reshape(-1, topology.devices_per_worker)


def take_own(tree: Any, mesh: Mesh) -> Any:
    """The shards on this process's devices, as arrays of its own; without a copy."""

    def own(array: jax.Array) -> jax.Array:
        shards = [shard.data for shard in array.addressable_shards]
        sharding: Any = array.sharding
        if not {GROUP, WORKER} & set(sharding.spec):
            shape, spec = array.shape, sharding.spec
        else:  # by workers
            groups, workers = shards[0].shape[:2]
            shape = (groups, workers * mesh.shape[WORKER], *array.shape[2:])
            spec = PartitionSpec(GROUP, WORKER, *sharding.spec[2:])
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, spec), shards)

    return jax.tree.map(own, tree)


def join(tree: Any, shapes: Any, shardings: Any) -> Any:
    """The arrays of all processes that these are the shards of, which `take_own` has given; without a copy."""

    def whole(array: jax.Array, shape: Any, sharding: NamedSharding) -> jax.Array:
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape.shape, sharding, shards)

    return jax.tree.map(whole, tree, shapes, shardings)


class AsynchronousRounds:
    """Trains in rounds that processes share by tickets.

    Args:
      programs: of the method.
      topology: of all processes, which `check_shares` has checked.
      shapes: of the state.
      shardings: of the state.
      make_shared_round: makes what the processes share in the next round.
    """

    def __init__(
        self,
        programs: Programs,
        topology: Topology,
        shapes: TrainState,
        shardings: TrainState,
        make_shared_round: Callable[[], SharedRound],
    ) -> None:
        self._programs, self._topology, self._make_shared_round = programs, topology, make_shared_round
        self._shapes, self._shardings = shapes, shardings
        self._mesh = own_mesh(topology)
        self._workers = topology.size * self._mesh.size // topology.mesh.size

    def __call__(self, state: TrainState, data: Any, begin: int, end: int) -> tuple[TrainState, RoundReport, Pace]:
        """Trains from step `begin` to step `end`, at most the next communication's; it consumes the state."""
        own, data, last = take_own(state, self._mesh), take_own(data, self._mesh), np.int32(end - 1)

        def step() -> None:
            nonlocal own
            own = self._programs.step(own, data, last)
            jax.block_until_ready(own)  # so that tickets are claimed as fast as steps are computed, not sent

        budget = self._topology.size * (end - begin)
        steps, waiting = share_round(self._make_shared_round(), budget, self._workers, step)
        # The count that all share is no longer the same in all; the communication sets it.
        state, report = self._programs.communicate(join(own, self._shapes, self._shardings), np.int32(end))
        return state, report, Pace(self._everywhere(steps, np.int32), self._everywhere(waiting, np.float32))

    def _everywhere(self, value: float, dtype: Any) -> jax.Array:
        """What each process knows of its workers, as an array of all."""
        return processes.put(np.full(self._topology.shape, value, dtype), self._topology.per_worker)
