"""Overlapped communications of CPU processes: on devices of their own.

Programs of a CPU device run one after the other, and what a program sends is waited for. Two devices of one process
are two threads: on the second a communication can be under way while on the first local steps are taken.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.communications import Score, make_communications, make_first_halves
from lsgd_jax.engine.local_steps import Batches, Loss
from lsgd_jax.engine.schedules import Factor, constant
from lsgd_jax.engine.state import TrainState, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.engine.train_step import make_take_steps, round_steps
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer


class CarriedStep(NamedTuple):
    """A call of the train step in three programs.

    Attributes:
      begin: `(params, opt_state, losses, begins) -> news`, on the carriers: the first halves of the communications
        of these numbers.
      steps: `(state, data, steps) -> state`: the local steps; it consumes the state.
      end: `(state, news, begins) -> (state, report)`: what has been heard is kept, and what is due follows; it consumes
        the state.
    """

    begin: jax.stages.Wrapped
    steps: jax.stages.Wrapped
    end: jax.stages.Wrapped


def carriers_of(topology: Topology) -> Topology | None:
    """The same workers on devices that are free, each in the process of its own; None where a process has too few.

    None, too, of workers that span devices, and where there is one process or no CPU.
    """
    used = list(topology.mesh.devices.flat)
    if topology.platform != "cpu" or topology.own_axes or len({device.process_index for device in used}) == 1:
        return None
    assert topology.devices is not None
    taken, free = set(topology.devices), dict[int, list[Any]]()
    for device in jax.devices():
        if device not in taken:
            free.setdefault(device.process_index, []).append(device)
    try:
        carriers = [free[device.process_index].pop(0) for device in used]
    except (KeyError, IndexError):
        return None
    return Topology(*topology.shape, carriers, topology.lanes)


def make_carried_step(
    method: DistributedOptimizer,
    topology: Topology,
    carriers: Topology,
    loss: Loss,
    batches: Batches,
    *,
    rate_factor: Factor = constant,
    score: Score | None = None,
    longest_call: int,
    compiler_options: dict[str, Any] | None = None,
) -> CarriedStep:
    """Makes the programs; what they do together is what `make_train_step` does in one, whose arguments these are."""
    each, same = PartitionSpec(GROUP, WORKER), PartitionSpec()
    longest = min(round_steps(method, topology.groups), longest_call)
    take_steps = make_take_steps(method, topology, loss, batches, longest, rate_factor)
    communicate_when_due = make_communications(method, topology, score)
    carried_send, keep = make_first_halves(method, carriers).send, make_first_halves(method, topology).keep

    def begin(params: Any, opt_state: Any, losses: Any, begins: tuple[int, ...]) -> tuple[Any, ...]:
        def send(*of_workers: Any) -> tuple[Any, ...]:
            params, opt_state, losses = of_workers
            return carried_send(params, opt_state, losses, begins)

        return carriers.over_devices(send, in_specs=each, out_specs=each)(params, opt_state, losses)

    def steps(state: TrainState, data: Any, steps: jax.Array) -> TrainState:
        def on_device(state: TrainState, data: Any, steps: jax.Array) -> TrainState:
            return take_steps(state, steps, state.step + steps, data)

        specs = (state_specs(), batches.specs, same)
        return topology.over_devices(on_device, in_specs=specs, out_specs=state_specs())(state, data, steps)

    def end(state: TrainState, news: tuple[Any, ...], begins: tuple[int, ...]) -> Any:
        def on_device(state: TrainState, news: tuple[Any, ...]) -> Any:
            return communicate_when_due(keep(state, news, begins))

        specs = (state_specs(), each)
        return topology.over_devices(on_device, in_specs=specs, out_specs=specs)(state, news)

    return CarriedStep(
        jax.jit(begin, static_argnames="begins"),
        jax.jit(steps, donate_argnums=0, compiler_options=compiler_options),
        jax.jit(end, donate_argnums=0, static_argnames="begins"),
    )


def moved(tree: Any, topology: Topology) -> Any:
    """Arrays of all workers on the devices of a topology, from other devices of the same processes."""
    places = dict(np.ndenumerate(topology.mesh.devices))

    def move(array: jax.Array) -> jax.Array:
        sharding: Any = array.sharding
        at = {device: place for place, device in np.ndenumerate(sharding.mesh.devices)}
        shards = [jax.device_put(shard.data, places[at[shard.device]]) for shard in array.addressable_shards]
        there = NamedSharding(topology.mesh, sharding.spec)
        return jax.make_array_from_single_device_arrays(array.shape, there, shards)

    return jax.tree.map(move, tree)


def empty_like(shapes: Any, topology: Topology) -> Any:
    """Shapes of all workers' arrays as they are placed on a topology, to compile for."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=topology.per_worker), shapes)
