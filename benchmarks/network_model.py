"""Checks the model of a network against measured times of 4 processes on this machine.

The global communication of LSGD over Gloo on loopback, with models of three sizes. Latency and bandwidth
are fitted on the smallest and the largest; the model then predicts the one in between.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from local_processes import add_process_flags, finish, join, run_processes
from measure import as_table, writable, write_results

PROCESSES = 4
MEGABYTES = (1, 4, 16)
ROOT = pathlib.Path(__file__).parents[1]


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="of each size; their median counts (%(default)s)")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/network_model/network_model.json"))
    add_process_flags(parser)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    if args.process_id is not None:
        return work(args)
    try:
        result = compare(measure(args.repeats))
    except RuntimeError as error:
        print(f"network_model.py: {error}", file=sys.stderr)
        return 1
    print(table(result))
    write_results(args.output, result)
    return 0


def measure(repeats: int) -> dict[int, list[float]]:
    """Seconds of each communication in one of the processes, by size in MB.

    Raises:
      RuntimeError: if a process fails, or they take too long.
    """
    found = run_processes([f"--repeats={repeats}"], PROCESSES)
    return {int(megabytes): seconds for megabytes, seconds in found.items()}


def work(args: argparse.Namespace) -> int:
    """What each process does: one worker on one device."""
    join(args)
    communications = {megabytes: _communication(megabytes) for megabytes in MEGABYTES}
    # The sizes take turns, so that what else the machine does falls on all of them.
    rounds = [
        {megabytes: next(seconds) for megabytes, seconds in communications.items()} for _ in range(args.repeats + 2)
    ]
    return finish(args, {each: [of_round[each] for of_round in rounds[2:]] for each in MEGABYTES})


def _communication(megabytes: int) -> Iterator[float]:
    """Communicates whenever it is asked for the seconds of the next time; the first time compiles."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from lsgd_jax import Axes

    mesh = Mesh(np.array(jax.devices()).reshape(1, PROCESSES), ("group", "worker"))
    split = PartitionSpec(("group", "worker"))
    method = _method()
    (communication,) = [due for due in method.communications if due.level == "global"]

    def communicate(params: jax.Array, score: jax.Array) -> jax.Array:
        return communication.apply(params, method.init(params, Axes()), score[0], communication.axes).params

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
    from fit_link import Measurement, fit_link

    from lsgd_jax import ledger
    from lsgd_jax.accounting.network import link_seconds

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


def table(result: dict[str, Any]) -> str:
    """The results for people."""
    latency, bandwidth = 1e3 * result["latency_seconds"], result["bandwidth_bytes_per_second"] / 1e6
    rows = []
    for row in result["sizes"]:
        measured, predicted = 1e3 * row["measured_seconds"], 1e3 * row["predicted_seconds"]
        shown = "fitted" if row["fitted"] else f"{100 * row['error']:+.0f} %"
        rows.append((f"{row['megabytes']} MB", f"{measured:.2f} ms", f"{predicted:.2f} ms", shown))
    cores = len(os.sched_getaffinity(0))
    return "\n".join(
        [
            f"global communication of lsgd, {PROCESSES} processes on {cores} cores, Gloo on loopback",
            f"fitted: {latency:.3g} ms a message, {bandwidth:,.0f} MB/s",
            as_table(("model", "measured", "predicted", "error"), rows),
        ]
    )


def _method() -> Any:
    import optax

    from lsgd_jax import lsgd

    return lsgd(optax.sgd(0.1))


if __name__ == "__main__":
    sys.exit(main())
