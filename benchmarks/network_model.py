"""Checks the model of a network against measured times of 4 processes on this machine.

The global communication of LSGD over Gloo on loopback, with models of three sizes. Latency and bandwidth
are fitted on the smallest and the largest; the model then predicts the one in between.
"""

import json
import multiprocessing
import os
import pathlib
import platform
import queue
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

PROCESSES = 4
MEGABYTES = (1, 4, 16)
TIMEOUT_SECONDS = 300
ROOT = pathlib.Path(__file__).parents[1]

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "output", str(ROOT / "results/network_model/network_model.json"), "where to write the results", flag_values=FLAGS
)
flags.DEFINE_integer(
    "repeats", 30, "measured communications of each size; their median counts", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    if any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:]):
        print(
            __doc__, *(f"  --{name}: {FLAGS[name].help} (default: {FLAGS[name].default})" for name in FLAGS), sep="\n"
        )
        return 0
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        return _refuse(str(error))
    if len(rest) > 1:
        return _refuse(f"unexpected argument {rest[1]!r}: every setting is a --flag=value")
    repeats: Any = FLAGS.repeats
    output = pathlib.Path(str(FLAGS.output)).expanduser()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()
    except OSError as error:
        return _refuse(f"cannot write to --output={output} ({error.strerror}): choose another file")
    try:
        seconds = measure(repeats)
    except (TimeoutError, RuntimeError) as error:
        print(f"network_model.py: {error}", file=sys.stderr)
        return 1
    result = compare(seconds) | describe(argv, repeats)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(f"\nresults in {output}")
    return 0


def measure(repeats: int) -> dict[int, list[float]]:
    """Seconds of each communication in one of the processes, by size in MB.

    Raises:
      RuntimeError: if a process ends early.
      TimeoutError: if they take too long; none of them is left over.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=work, args=(rank, coordinator, repeats, results), daemon=True)
        for rank in range(PROCESSES)
    ]
    try:
        for worker in workers:
            worker.start()
        return _first(results, workers)
    finally:
        for worker in reversed(workers):  # the first serves the others: without it they end with long errors
            worker.kill()
        for worker in workers:
            worker.join()


def _first(results: Any, workers: list[Any]) -> dict[int, list[float]]:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            return results.get(timeout=1)
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                raise RuntimeError("a process ended early: its error stands above") from None
    raise TimeoutError(f"not done after {TIMEOUT_SECONDS} s: free this machine, or ask for fewer --repeats")


def work(rank: int, coordinator: str, repeats: int, results: Any) -> None:
    """What each process does: one worker on one device."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, PROCESSES, rank)
    communications = {megabytes: _communication(megabytes) for megabytes in MEGABYTES}
    # The sizes take turns, so that what else the machine does falls on all of them.
    rounds = [{megabytes: next(seconds) for megabytes, seconds in communications.items()} for _ in range(repeats + 2)]
    if rank == 0:
        results.put({megabytes: [each[megabytes] for each in rounds[2:]] for megabytes in MEGABYTES})
    time.sleep(TIMEOUT_SECONDS)  # until it is killed: a process that leaves first makes the others fail


def _communication(megabytes: int) -> Iterator[float]:
    """Communicates whenever it is asked for the seconds of the next time; the first time compiles."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()).reshape(1, PROCESSES), ("group", "worker"))
    split = PartitionSpec(("group", "worker"))
    method = _method()
    (communication,) = [due for due in method.communications if due.level == "global"]

    def communicate(params: jax.Array, score: jax.Array) -> jax.Array:
        return communication.apply(params, method.init(params), score[0], communication.axes).params

    mapped = jax.jit(jax.shard_map(communicate, mesh=mesh, in_specs=split, out_specs=split), donate_argnums=0)

    def everywhere(local: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, split), local)

    params = everywhere(np.full(megabytes * 250_000, jax.process_index(), np.float32))
    score = everywhere(np.full(1, jax.process_index(), np.float32))
    while True:
        start = time.perf_counter()
        params = jax.block_until_ready(mapped(params, score))
        yield time.perf_counter() - start


def compare(seconds: dict[int, list[float]]) -> dict[str, Any]:
    """The fit to the smallest and the largest size, and what it predicts for each."""
    import jax
    import jax.numpy as jnp

    from lsgd_jax import ledger
    from lsgd_jax.training.network import Measurement, fit_link, link_seconds

    measured = {}
    for megabytes, each in seconds.items():
        params = jax.ShapeDtypeStruct((megabytes * 250_000,), jnp.float32)
        (sends,) = ledger(_method(), params, groups=1, workers=PROCESSES).entries
        measured[megabytes] = Measurement(sends.messages, sends.sent, statistics.median(each))
    link = fit_link([measured[min(measured)], measured[max(measured)]])
    rows = []
    for megabytes, point in measured.items():
        predicted = link_seconds(link, point.messages, point.bytes)
        quartiles = statistics.quantiles(seconds[megabytes], n=4) if len(seconds[megabytes]) > 1 else []
        rows.append(
            {
                "megabytes": megabytes,
                "fitted": megabytes in (min(measured), max(measured)),
                "messages": point.messages,
                "bytes_sent": point.bytes,
                "measured_seconds": point.seconds,
                "measured_quartiles": quartiles,
                "predicted_seconds": predicted,
                "error": predicted / point.seconds - 1,
            }
        )
    return {"latency_seconds": link.latency, "bandwidth_bytes_per_second": link.bandwidth, "sizes": rows}


def describe(argv: list[str], repeats: int) -> dict[str, Any]:
    """Where the figures come from."""
    import jax
    import jaxlib

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "command": shlex.join(["python", "benchmarks/network_model.py", *argv[1:]]),
        "commit": commit.stdout.strip(),
        "device": f"{PROCESSES} processes on {os.cpu_count()} cores, {platform.machine()}, Gloo on loopback",
        "repeats": repeats,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def table(result: dict[str, Any]) -> str:
    """The results for people."""
    latency, bandwidth = 1e3 * result["latency_seconds"], result["bandwidth_bytes_per_second"] / 1e6
    lines = [
        f"global communication of lsgd: {result['device']}",
        f"fitted: {latency:.3g} ms a message, {bandwidth:,.0f} MB/s",
        f"{'model':>8}{'measured':>12}{'predicted':>12}{'error':>9}",
    ]
    for row in result["sizes"]:
        measured, predicted = 1e3 * row["measured_seconds"], 1e3 * row["predicted_seconds"]
        told = "   fitted" if row["fitted"] else f"{100 * row['error']:>+7.0f} %"
        lines.append(f"{row['megabytes']:>5} MB{measured:>9.2f} ms{predicted:>9.2f} ms{told:>9}")
    return "\n".join(lines)


def _method() -> Any:
    import optax

    from lsgd_jax import lsgd

    return lsgd(optax.sgd(0.1))


def _refuse(reason: str) -> int:
    print(f"network_model.py: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
