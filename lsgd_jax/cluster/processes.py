"""Several processes that train together: who they are, what they agree on, and their arrays.

Each process runs the same program on its own devices (`jax.distributed`). The first is the main
process, which writes files and speaks to people. In a single process all of this does nothing.
`lsgd_jax.cluster.joining` is how they meet and part.
"""

import functools
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from lsgd_jax.cluster.coordinator import ONE_OF
from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError, ReportedError, agreed_error, disk_full, first_line, is_disk_full

T = TypeVar("T")

POLL_MILLISECONDS = 500
# What all keys of ours begin with, in the store of the coordination service.
KEYS = "lsgd_jax"


def alone() -> bool:
    """Whether this is the only process."""
    return client() is None


def number() -> int:
    """Which process this is, from 0 on."""
    return distributed().process_id


def count() -> int:
    """How many processes there are."""
    return distributed().num_processes


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to people."""
    return number() == 0


def client() -> Any:
    """What speaks to the coordination service; None in a single process."""
    return distributed().client


def distributed() -> Any:
    """What JAX knows of the processes; it has no public name, but Orbax relies on it too."""
    from jax._src import distributed

    return distributed.global_state


def forget() -> None:
    """Forgets the devices that there have been; JAX is about to, too."""
    _replicate.cache_clear()
    _any.cache_clear()


def introduce() -> None:
    """Tells the others where this process runs."""
    client().key_value_set(f"{KEYS}/host/{number()}", socket.gethostname())


def say(line: str) -> None:
    """Prints a line, in one process."""
    if is_main():
        print(line, flush=True)


def hosts() -> list[str]:
    """The name of each process's machine."""
    return [socket.gethostname()] if alone() else [get(f"{KEYS}/host/{i}") for i in range(count())]


def devices() -> list[jax.Device]:
    """The devices of all processes, those of a slice or machine side by side: groups follow from their order.

    Raises:
      InputError: if JAX finds none of the kind that it is told to use.
    """
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:
        choices = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")
        chosen = "".join(f" for {name}={os.environ[name]}" for name in choices if name in os.environ)
        why = f" ({first_line(error)})" if str(error) else ""
        raise InputError(f"JAX finds no device{chosen}{why}: unset that, or install what it needs") from error
    names = hosts()
    return sorted(found, key=lambda d: (_slice_of(d), names.index(names[d.process_index]), d.process_index, d.id))


def devices_for(*, overlapped: bool) -> list[jax.Device]:
    """Those on which workers live: of CPU processes whose communications are overlapped the first half of each.

    The others carry what is under way (`lsgd_jax.engine.carried`). Workers of several devices, of which that knows
    nothing, take all: to be called with False.
    """
    found = devices()
    if not overlapped or alone() or found[0].platform != "cpu":
        return found
    halves = {number: max(1, of // 2) for number, of in Counter(device.process_index for device in found).items()}
    seen = Counter[int]()
    kept = []
    for device in found:
        seen[device.process_index] += 1
        if seen[device.process_index] <= halves[device.process_index]:
            kept.append(device)
    return kept


def machines() -> int:
    """How many groups of devices communicate cheaply inside: slices of TPUs, whatever their hosts; else machines."""
    found = devices()
    return len({_slice_of(device) for device in found}) if found[0].platform == "tpu" else len(set(hosts()))


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def default_shape(given: Mapping[str, Any], devices_per_worker: int = 1, in_all: int | None = None) -> dict[str, int]:
    """Groups and workers of a run of several processes, where they are not given: a group for each of `machines`.

    Args:
      given: settings, of which `groups` and `workers` count.
      devices_per_worker: over how many devices each is split.
      in_all: how many processes there will be, if some may be missing.
    """
    in_all = in_all or count()
    if in_all == 1:
        return {}
    late = given.get("overlap") is not None and devices_per_worker == 1
    groups = given.get("groups") or machines()
    places = len(devices_for(overlapped=late)) * in_all // count()
    return {
        "groups": groups,
        "workers": given.get("workers") or max(1, places // devices_per_worker // groups),
    }


def idle(topology: Topology) -> set[int]:
    """The processes that a topology leaves without workers."""
    return set(range(count())) - {device.process_index for device in topology.mesh.devices.flat}


def check_joined() -> None:
    """Refuses to train alone in a process that the launcher has started as one of several.

    Raises:
      InputError: saying how it joins the others.
    """
    count = int(os.environ.get(ONE_OF, "1"))
    if count > 1 and alone():
        raise InputError(
            f"this process was started as one of {count}, and has not joined the others: call "
            "jax.distributed.initialize with the three flags that the launcher has appended (docs/cluster.md)"
        )


def check_all_work(topology: Topology) -> None:
    """Refuses a topology that leaves a process without workers.

    Raises:
      InputError: naming the flags.
    """
    without = idle(topology)
    if without:
        raise InputError(
            f"--groups={topology.groups} --workers={topology.workers} leave process {min(without)} without workers: "
            f"choose numbers that {len(topology.devices or ())} devices divide, or leave both out"
        )


def warm_up(topology: Topology) -> None:
    """Lets the processes along each axis of the mesh connect now, when all are here.

    At their first collective they would have 30 s to come, which Gloo fixes. Later ones wait.
    """
    if alone():
        return

    def sums(x: jax.Array) -> list[jax.Array]:
        return [lax.psum(x, names) for names in (GROUP, WORKER, (GROUP, WORKER))]

    split = topology.per_worker.spec
    numbers = put(np.zeros(topology.shape, np.float32), topology.per_worker)
    compiled = jax.jit(topology.over_devices(sums, in_specs=split, out_specs=split)).lower(numbers).compile()
    exchange("warm_up", None)
    jax.block_until_ready(compiled(numbers))


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that all processes have, on the devices; each process puts its own shards."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole(tree: Any, topology: Topology) -> Any:
    """Arrays of the workers, as every process can read them."""
    return tree if alone() else _replicate(topology.replicated)(tree)


def agreed(requests: Sequence[Any], topology: Topology, *, at_once: bool = False) -> Callable[[], list[bool]]:
    """Makes the function that tells, once a round, which requests are made in any process: those that are true.

    It gives the same answer in all processes, of which each has to call it. Among several the
    answer is that of the call before, so that no device waits for the host; or at once, after waiting for all.
    """
    if alone():
        return lambda: list(map(bool, requests))
    answers: list[Any] = [] if at_once else [np.zeros(len(requests), bool)]

    def ask() -> list[bool]:
        made = np.array(list(map(bool, requests)))
        answers.append(_any(topology.replicated)(put(np.broadcast_to(made, (*topology.shape, made.size)), spread)))
        return np.asarray(answers.pop(0)).tolist()

    spread = topology.per_worker
    return ask


def get(key: str) -> str:
    """A value, once it is there. Between polls Ctrl-C is heard; if its process dies, JAX ends this one."""
    while True:
        try:
            return client().blocking_key_value_get(key, POLL_MILLISECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def exchange(name: str, value: Any) -> list[Any]:
    """What each process says, in their order. All have to call it.

    Args:
      name: of what is exchanged.
      value: what this process says, as JSON has it.
    """
    if alone():
        return [value]
    turn = client().key_value_increment(f"{KEYS}/turn/{name}/{number()}", 1)
    client().key_value_set(f"{KEYS}/{name}/{turn}/{number()}", json.dumps(value))
    return [json.loads(get(f"{KEYS}/{name}/{turn}/{i}")) for i in range(count())]


def from_main(function: Callable[[], T]) -> T:
    """What a function gives in the main process, in which alone it is called. All have to call this.

    Args:
      function: its result goes to other processes as JSON.

    Raises:
      ReportedError: in all processes, if the function raises one.
    """
    if alone():
        return function()
    result, failure = _attempt(function if is_main() else _nothing)
    _raise_together(failure)
    given = exchange("from_main", result if is_main() else None)[0]
    return result if is_main() else given


def together(check: Callable[[], T]) -> T:
    """What a function gives: called first in the main process, then in the others. All have to call this.

    Raises:
      ReportedError: in all processes, if the function raises one in any.
    """
    if alone():
        return check()
    result, failure = _attempt(check if is_main() else _nothing)
    _raise_together(failure)
    if not is_main():
        result, failure = _attempt(check)
    _raise_together(failure)
    return result


def check_same(settings: Mapping[str, Any]) -> None:
    """Refuses settings that are not those of the main process.

    Raises:
      InputError: in all processes, naming the first that differs.
    """
    if alone():
        return
    ours = {name: json.dumps(value) for name, value in settings.items()}  # as text NaN is NaN
    of_main = exchange("settings", ours)[0]

    def compare() -> None:
        for name, value in of_main.items():
            if ours[name] != value:
                raise InputError(f"--{name}={ours[name]}, but {value} in process 0: give all processes the same flags")

    together(compare)


def _nothing() -> None:
    pass


def _attempt(function: Callable[[], T]) -> tuple[Any, tuple[int, str] | None]:
    """What a function gives, or the exit code and the message of what it raises."""
    try:
        return function(), None
    except ReportedError as error:
        return None, (error.exit_code, str(error))
    except Exception as error:
        if not is_disk_full(error):
            raise
        full = disk_full(error, "the run")
        return None, (full.exit_code, str(full))


def _raise_together(failure: tuple[int, str] | None) -> None:
    for i, found in enumerate(exchange("errors", failure)):
        if found is not None:
            code, message = found
            raise agreed_error(code, message if i == 0 else f"process {i} on {hosts()[i]}: {message}")


@functools.cache
def _replicate(sharding: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


@functools.cache
def _any(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda asked: asked.any((0, 1)), out_shardings=sharding)
