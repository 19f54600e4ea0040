"""Wall-clock of every communication: processes over Gloo on loopback, and devices of one process.

    python benchmarks/communication.py --sizes=351946,4000000 --processes=4,8

Each process is one worker with one CPU device. Alternatives run in turn, and the
process that times them is the last that a ring reaches. The last setting is always
one process with eight devices, between which nothing has a wire.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import measure

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from local_processes import add_process_flags, finish, join, run_processes

AXIS = "worker"
LEAVES = 14  # as many arrays as cnn7 has
LEADER = 1  # rank 0 measures: the last of the ring


def main() -> int:
    """Parses the command line and runs the settings one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=_counts, default=[351_946, 4_000_000], help="float32 parameters of the model")
    parser.add_argument("--processes", type=_counts, default=[4, 8], help="numbers of processes over Gloo")
    parser.add_argument("--devices", type=int, default=8, help="devices of the one process; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each alternative")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one setting may take")
    parser.add_argument("--output", type=measure.writable, default="results/communication/communication.json")
    add_process_flags(parser)
    options = parser.parse_args()
    if options.repeats < 1 or options.devices < 0 or options.timeout <= 0 or 1 in [*options.processes, options.devices]:
        parser.error("--repeats and --timeout must be positive, --processes and --devices at least 2")
    if options.process_id is not None:
        return _work(options)

    rows = []
    for processes in options.processes:
        rows += _run(options, processes, over_gloo=True)
    if options.devices:
        rows += _run(options, options.devices, over_gloo=False)
    measure.write_results(options.output, rows)
    print(f"results in {options.output}")
    return 0


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError(text)
    return counts


def _run(options: argparse.Namespace, workers: int, *, over_gloo: bool) -> list[dict[str, Any]]:
    """One setting, in processes of its own."""
    processes, devices = (workers, 1) if over_gloo else (1, workers)
    flags = [f"--sizes={','.join(map(str, options.sizes))}", f"--repeats={options.repeats}"]
    try:
        rows = run_processes(flags, processes, devices=devices, timeout=options.timeout)
    except RuntimeError as error:
        raise SystemExit(f"communication.py: {error}") from error
    where = f"{workers} processes, Gloo" if over_gloo else f"{workers} devices of one process"
    print(f"\n{where}")
    measure.print_table(
        ("communication", "parameters", "median ms", "min", "max", "MB a link"),
        [
            (
                row["communication"],
                f"{row['parameters']:,}",
                *(f"{1e3 * row[key]:.2f}" for key in ("median", "low", "high")),
                f"{row['bytes_a_link'] / 1e6:.3f}",
            )
            for row in rows
        ],
    )
    return [{"workers": workers, "over": "gloo" if over_gloo else "one process", **row} for row in rows]


def _work(options: argparse.Namespace) -> int:
    """What each of the processes does; rank 0 writes what it measured."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    join(options, options.timeout)
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    rows = []
    for size in options.sizes:
        alternatives, bytes_a_link = _alternatives(mesh, size)
        # Processes end a communication at different times: before each, all wait for the last, untimed.
        wait = alternatives["election: two pmin"]
        in_turn = {
            key: run for name, own in alternatives.items() for key, run in ((f"wait, {name}", wait), (name, own))
        }
        timings = measure.in_turn(in_turn, repeats=options.repeats)
        for name in alternatives:
            timing = timings[name]
            row = {"communication": name, "parameters": size, **timing._asdict(), "bytes_a_link": bytes_a_link[name]}
            rows.append(row)
    return finish(options, rows)


def _alternatives(mesh: Any, size: int) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """What is compared, ready to run, and the bytes that a link carries in each."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from lsgd_jax.accounting.traffic import collectives_of

    n, split = mesh.size, PartitionSpec(AXIS)

    def on_devices(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(rows.shape, NamedSharding(mesh, split), lambda place: rows[place])

    # Leaves of many sizes; each holds 1.5 times the next.
    shares = 1.5 ** -np.arange(LEAVES)
    counts = np.floor(size * shares / shares.sum()).astype(int).tolist()
    counts[0] += size - sum(counts)
    rng = np.random.default_rng(0)
    tree = [on_devices(rng.normal(size=(n, count)).astype(np.float32)) for count in counts]
    scores = on_devices(np.where(np.arange(n) == LEADER, 0, 1).astype(np.float32))

    alternatives: dict[str, Callable[..., Any]] = {
        "election: two pmin": _elect,
        "election: one psum": _elect_by_scores,
        "broadcast: psum of each leaf": _broadcast_leafwise,
    }
    for wire_dtype in (None, "bfloat16", "int8"):
        for method in ("psum", "ring"):
            name = f"broadcast: {method}" + (f", {wire_dtype}" if wire_dtype else "")
            alternatives[name] = functools.partial(_broadcast, method=method, wire_dtype=wire_dtype)
    alternatives["mean"] = _mean

    shapes = [jax.ShapeDtypeStruct((1, count), np.float32) for count in counts]
    score = jax.ShapeDtypeStruct((1,), np.float32)
    runs: dict[str, Callable[[], Any]] = {}
    bytes_a_link: dict[str, float] = {}
    for name, run in alternatives.items():
        mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split))
        runs[name] = functools.partial(mapped, tree, scores)
        bytes_a_link[name] = sum(each.sent for each in collectives_of(run, shapes, score, groups=1, workers=n))
    return runs, bytes_a_link


def _leader() -> Any:
    """As an election would give it, without one."""
    import jax.numpy as jnp
    from jax import lax

    from lsgd_jax import Leader

    mine = lax.axis_index(AXIS) == LEADER
    return Leader(jnp.array(LEADER), jnp.array(0.0), mine, jnp.array(True))


def _elect(tree: Any, scores: Any) -> Any:
    from lsgd_jax import elect_leader

    del tree
    return elect_leader(scores[0], AXIS).is_leader[None]


def _elect_by_scores(tree: Any, scores: Any) -> Any:
    """Everybody's score in one masked sum, and an argmin at home."""
    import jax.numpy as jnp
    from jax import lax

    del tree
    rank = lax.axis_index(AXIS)
    score = jnp.where(jnp.isfinite(scores[0]), scores[0], jnp.inf)
    table = lax.psum(jnp.where(jnp.arange(lax.axis_size(AXIS)) == rank, score, 0), AXIS)
    return (jnp.isfinite(table.min()) & (table.argmin() == rank))[None]


def _broadcast(tree: Any, scores: Any, method: Any, wire_dtype: str | None) -> Any:
    from lsgd_jax import broadcast_from_leader

    del scores
    return broadcast_from_leader(tree, _leader(), AXIS, method=method, wire_dtype=wire_dtype)


def _broadcast_leafwise(tree: Any, scores: Any) -> Any:
    """A message for each leaf, instead of one for the tree."""
    import jax.numpy as jnp
    from jax import lax

    del scores
    mine = _leader().is_leader
    return [jnp.where(mine, leaf, lax.psum(jnp.where(mine, leaf, 0), AXIS)) for leaf in tree]


def _mean(tree: Any, scores: Any) -> Any:
    from jax import lax

    from lsgd_jax.collectives import mean

    del scores
    return lax.pcast(mean(tree, AXIS), AXIS, to="varying")


if __name__ == "__main__":
    sys.exit(main())
