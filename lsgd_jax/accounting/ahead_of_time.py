"""The train step, compiled for devices that are not here: memory, time by the compiler's model, and what is sent."""

import functools
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lsgd_jax.accounting.compiled import Placed, Sent, as_compiled, cycles, placed
from lsgd_jax.accounting.flops import flops
from lsgd_jax.accounting.ledger import Ledger, ledger
from lsgd_jax.accounting.network import Network, collective_seconds, communication_seconds
from lsgd_jax.engine.communications import those_ahead
from lsgd_jax.engine.local_steps import Batches, Loss
from lsgd_jax.engine.state import start_state, state_shardings
from lsgd_jax.engine.topology import Topology, placed_shapes
from lsgd_jax.engine.train_step import make_train_step
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer

# Levels of a method, as `make_train_step` names what it traces.
LEVELS, WHOLE = ("gradient", "local", "global"), "whole"
TOO_LARGE = re.compile(
    r"\(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)"
    r"|Allocation \(size=(\d+)\) would exceed memory \(size=(\d+)\)"  # as by libtpu 0.0.41, of one array
)


class Problem(NamedTuple):
    """What is trained, as shapes: nothing of it can be on devices that are not here.

    Attributes:
      init: `key -> (params, model_state)`.
      loss: of one worker on one minibatch.
      batches: how minibatches are drawn.
      data: the shapes of what they are drawn from.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Loss
    batches: Batches
    data: Any


class Compiled(NamedTuple):
    """A compiled train step, of one device.

    Attributes:
      arguments: bytes of the state and the data.
      updated_in_place: of the new state, the share that takes the place of the old.
      temporaries: bytes, what else it needs.
      peak: bytes at its peak.
      flops: floating-point operations of a local step, in products and convolutions.
      cycles: of a local step on a TPU by the compiler's estimates, which know no links, and are of use only where it
        optimizes; 0 if it gives none.
      sent: the collectives of each level of the method, "gradient", "local" and "global".
      inside: those between the devices of one worker.
      text: the program.
      seconds: that compiling took.
      processor_seconds: of it, on all cores.
    """

    arguments: int
    updated_in_place: float
    temporaries: int
    peak: int
    flops: int
    cycles: int
    sent: dict[str, list[Placed]]
    inside: list[Placed]
    text: str
    seconds: float
    processor_seconds: float


def compile_for(
    problem: Problem,
    method: DistributedOptimizer,
    topology: Topology,
    compiler_options: dict[str, Any] | None = None,
) -> Compiled:
    """Compiles the train step for the devices of a topology.

    Raises:
      InputError: if it does not fit into a device's memory, with the compiler's figure.
    """
    step = make_train_step(method, topology, problem.loss, problem.batches, compiler_options=compiler_options)
    state = placed_shapes(*_state(problem, method, topology))
    data = placed_shapes(problem.data, _data_shardings(problem, topology))
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=topology.replicated)
    everything = tuple(range(len(those_ahead(method, topology.groups))))
    traced = step.trace(state, data, count, begins=everything)
    lowered = traced.lower()
    begin, processor = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if found := TOO_LARGE.search(str(error)):
            used, there = (
                found.groups()[:2] if found[1] else (f"{int(size) / 2**30:.2f}G" for size in found.groups()[2:])
            )
            raise InputError(
                f"it does not fit: {used} of {there} of a device's memory: split a worker over more devices "
                "(--worker_axes), compute blocks again (--remat), or use a smaller batch"
            ) from error
        raise
    seconds, processor_seconds = time.perf_counter() - begin, time.process_time() - processor
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    sent = placed(text)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        updated_in_place=memory.alias_size_in_bytes / max(1, memory.output_size_in_bytes),
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        flops=flops(traced.jaxpr.jaxpr) // topology.devices_per_worker,  # over whose axes the trace is not split
        cycles=cycles(text),
        sent={level: [each for each in sent if level_of(each, topology) == level] for level in LEVELS},
        inside=[each for each in sent if level_of(each, topology) is None and not _of_the_lost(each)],
        text=text,
        seconds=seconds,
        processor_seconds=processor_seconds,
    )


def level_of(collective: Placed, topology: Topology) -> str | None:
    """At which level of the method it takes place; None inside a worker."""
    of_one = len({device // topology.devices_per_worker for device in collective.members}) == 1
    if of_one and collective.sent[0].kind != "send":
        return None
    parts = re.split(r"[/() ]", collective.operation)
    return next((level for level in LEVELS if level in parts), None)


def _mostly_asynchronous(collectives: list[Placed]) -> bool:
    """Whether most of the bytes are sent while something may be computed: who leads has to be known before."""
    sizes = [(sum(array.bytes for array in each.sent), each.asynchronous) for each in collectives]
    return 2 * sum(size for size, asynchronous in sizes if asynchronous) > sum(size for size, _ in sizes)


def _of_the_lost(collective: Placed) -> bool:
    """Whether it takes place only where a worker is lost."""
    return WHOLE in re.split(r"[/() ]", collective.operation)


def sent_together(collectives: list[Placed]) -> Counter[Sent]:
    """What they send, each as often as it takes place."""
    found = Counter[Sent]()
    for each in collectives:
        for array in each.sent:
            found[array] += each.times
    return found


def memory_and_time(found: Compiled) -> dict[str, Any]:
    """Its figures of one device, as JSON has them."""
    return {
        "peak": found.peak,
        "arguments": found.arguments,
        "temporaries": found.temporaries,
        "updated_in_place": found.updated_in_place,
        "flops": found.flops,
        "cycles": found.cycles,
        "compile_seconds": found.seconds,
        "compile_cpu_seconds": found.processor_seconds,
        "program_bytes": len(found.text),
    }


def traffic(
    found: Compiled, problem: Problem, method: DistributedOptimizer, topology: Topology, network: Network
) -> dict[str, Any]:
    """What a device sends, beside the ledger, and how long it takes on a network, as JSON has it.

    Bytes are those of operands, each as often as it is sent in a communication, or in a local step.
    """
    sends = chip_ledger(problem, method, topology)
    slots = topology.mesh.size // topology.devices_per_worker
    levels = []
    for level in LEVELS:
        placed_there, entries = found.sent[level], [entry for entry in sends.entries if entry.level == level]
        if not entries:
            continue
        # What goes over a single worker goes nowhere.
        collectives = [one for entry in entries for one in entry.collectives if one.workers > 1]
        sent, expected = sent_together(placed_there), as_compiled(collectives, devices=slots)
        levels.append(
            {
                "level": level,
                "period": entries[0].period,
                "kinds": {kind: _bytes(sent, kind) for kind in sorted({array.kind for array in sent})},
                "asynchronous": _mostly_asynchronous(placed_there),
                "conditional": all(each.conditional for each in placed_there),
                "ledger": sum(array.bytes * times for array, times in expected.items()),
                "seconds": sum(collective_seconds(each, sends, network) for each in collectives),
            }
        )
    inside = {
        (kind, loops): _bytes(sent_together([each for each in found.inside if each.loops == loops]), kind)
        for loops in sorted({each.loops for each in found.inside})
        for kind in sorted({array.kind for each in found.inside for array in each.sent if each.loops == loops})
    }
    return {
        "levels": levels,
        "inside": [{"kind": kind, "loops": loops, "bytes": size} for (kind, loops), size in inside.items()],
        "communication_seconds": communication_seconds(sends, network),
    }


def _bytes(sent: Counter[Sent], kind: str) -> int:
    return sum(array.bytes * times for array, times in sent.items() if array.kind == kind)


def chip_ledger(problem: Problem, method: DistributedOptimizer, topology: Topology) -> Ledger:
    """What one device sends: its part of all that a worker sends."""
    params, model_state = jax.eval_shape(problem.init, jax.random.key(0))
    parts = [
        jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(x.shape), x.dtype),
            tree,
            topology.of_model(tree),
        )
        for tree in (params, model_state)
    ]
    return ledger(method, *parts, groups=topology.groups, workers=topology.workers)


def _state(problem: Problem, method: DistributedOptimizer, topology: Topology) -> tuple[Any, Any]:
    start = functools.partial(start_state, method, topology, problem.init)
    shapes = jax.eval_shape(start, jax.random.key(0))
    return shapes, state_shardings(topology, shapes)


def _data_shardings(problem: Problem, topology: Topology) -> Any:
    def of(own: bool, part: Any) -> Any:
        return jax.tree.map(lambda _: topology.per_worker if own else topology.replicated, part)

    return jax.tree.map(of, problem.batches.per_worker, problem.data)
