"""Images a second of the whole train step, over workers, ways to compute lanes, and dtypes.

Beside it, in turn in the same run: the bare gradients of one model (what the engine adds), and one
model on the batch of all workers together (what having many different models costs).

    python benchmarks/throughput.py --workers=1,4,16,64
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import in_turn, print_table, writable, write_results
from workload import BATCH_SIZE, Runner, bare_gradients, train_step

from lsgd_jax.models import MODELS

ROOT = pathlib.Path(__file__).parents[1]


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnn3,cnn7", help="separated by commas (default: %(default)s)")
    parser.add_argument("--workers", default="1,4,16,64", help="separated by commas (default: %(default)s)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="(default: %(default)s)")
    parser.add_argument("--lanes", default="sequential,vmap", help="(default: %(default)s)")
    parser.add_argument("--period", type=int, default=16, help="local steps of a round (default: %(default)s)")
    parser.add_argument("--gradients", type=int, default=16, help="bare gradients in a call (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/throughput/throughput.json"))
    args = parser.parse_args()
    unknown = set(args.models.split(",")) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}: choose of {', '.join(MODELS)}")

    rows = []
    for model in args.models.split(","):
        for dtype in args.dtypes.split(","):
            rows += measure(model, dtype, [int(w) for w in args.workers.split(",")], args)
    table(rows)
    write_results(args.output, rows)
    return 0


def measure(model: str, dtype: str, workers: list[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of images a second: median, and that of the slowest and the fastest repeat."""
    images: dict[str, int] = {}
    runs: dict[str, Callable[[], Any]] = {}
    kinds: dict[str, tuple[str, int]] = {}

    def add(name: str, kind: str, count: int, run: Callable[[], Any], images_a_call: int) -> None:
        runs[name], images[name], kinds[name] = run, images_a_call, (kind, count)

    gradients = bare_gradients(model, compute_dtype=dtype)
    steps = args.gradients
    add("bare gradients", "bare gradients", 1, functools.partial(gradients, steps), steps * BATCH_SIZE)
    for count in workers:
        for lanes in args.lanes.split(","):
            if count == 1 and lanes == "vmap":
                continue
            runner = Runner(train_step(model, 1, count, compute_dtype=dtype, lanes=lanes, period=args.period))
            add(
                f"{count} workers, {lanes}",
                lanes,
                count,
                functools.partial(runner, args.period),
                args.period * count * BATCH_SIZE,
            )
        if count > 1:
            large = bare_gradients(model, batch_size=count * BATCH_SIZE, compute_dtype=dtype)
            add(f"one model, {count} × the batch", "one model", count, functools.partial(large, 1), count * BATCH_SIZE)
    timings = in_turn(runs, repeats=args.repeats)
    return [
        {
            "model": model,
            "dtype": dtype,
            "what": kinds[name][0],
            "workers": kinds[name][1],
            "images_per_second": images[name] / timing.median,
            "slowest": images[name] / timing.high,
            "fastest": images[name] / timing.low,
        }
        for name, timing in timings.items()
    ]


def table(rows: list[dict[str, Any]]) -> None:
    """Prints images a second, and as a ratio to the bare gradients of the same model and dtype."""
    print(f"images/s on {jax.devices()[0].device_kind}, batches of {BATCH_SIZE} a worker")
    lines = []
    for row in rows:
        bare = next(r for r in rows if (r["model"], r["dtype"]) == (row["model"], row["dtype"]))
        ratio = row["images_per_second"] / bare["images_per_second"]
        figures = [f"{row[key]:,.0f}" for key in ("images_per_second", "slowest", "fastest")]
        lines.append((f"{row['model']} {row['dtype']} {row['what']}", row["workers"], *figures, f"{ratio:.2f}"))
    print_table(("", "workers", "median", "slowest", "fastest", "of bare gradients"), lines)


if __name__ == "__main__":
    sys.exit(main())
