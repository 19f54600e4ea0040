"""What more workers and longer periods cost: time a step, compile time and memory, on one device.

Memory is what the compiled train step needs (`memory_analysis()`): what is beyond the workers' own
parameters, optimizer states and score windows, beyond the data, and beyond what one worker alone needs
(its activations, above all), in models a worker.

    python benchmarks/scaling.py --workers=1,4,16,64,256
"""

import argparse
import functools
import math
import pathlib
import sys
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import Timing, in_turn, print_table, writable, write_results
from workload import BATCH_SIZE, Runner, Training, train_step

ROOT = pathlib.Path(__file__).parents[1]


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnn7", help="(default: %(default)s)")
    parser.add_argument("--workers", default="1,4,16,64,256", help="separated by commas (default: %(default)s)")
    parser.add_argument("--timed_up_to", type=int, default=256, help="workers; more are only compiled")
    parser.add_argument("--periods", default="1,4,16,64", help="of 4 workers (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/scaling/scaling.json"))
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    by_workers = over_workers(args.model, [int(w) for w in args.workers.split(",")], args.timed_up_to, args.repeats)
    by_period = over_periods(args.model, [int(p) for p in args.periods.split(",")], args.repeats)
    write_results(args.output, {"model": args.model, "over_workers": by_workers, "over_periods": by_period})
    return 0


def over_workers(
    model: str, counts: list[int], timed_up_to: int, repeats: int, period: int = 4
) -> list[dict[str, Any]]:
    """Rows of one count each; rounds of `period` steps."""
    compiled = {count: train_step(model, 1, count, period=period) for count in sorted({1, *counts})}
    runners = {count: Runner(training) for count, training in compiled.items() if count <= timed_up_to}
    timings = in_turn(
        {str(count): functools.partial(runner, period) for count, runner in runners.items()}, repeats=repeats
    )
    alone = beyond_workers(compiled[1])
    rows = []
    for count, training in compiled.items():
        timing = timings.get(str(count))
        rows.append(
            {
                "workers": count,
                "compile_seconds": training.compile_seconds,
                "seconds_a_step": timing and timing.median / period,
                "images_per_second": timing and images_per_second(timing, count * period),
                "models_beyond": (beyond_workers(training) - alone) / (count * model_bytes(training, count)),
            }
        )
    print(f"{model}, batches of {BATCH_SIZE}, rounds of {period} steps, on {jax.devices()[0].device_kind}")
    columns = ("workers", "compile s", "s a step", "images/s", "memory beyond, models a worker")
    print_table(columns, [[r["workers"], f"{r['compile_seconds']:.1f}", *_shown(r)] for r in rows])
    return rows


def over_periods(model: str, periods: list[int], repeats: int, workers: int = 4) -> list[dict[str, Any]]:
    """Rows of one period each; the same number of steps for all."""
    most = math.lcm(*periods)
    runners = {period: Runner(train_step(model, 1, workers, period=period)) for period in periods}

    def train(period: int) -> None:
        for _ in range(most // period):
            runners[period](period)

    timings = in_turn({str(period): functools.partial(train, period) for period in periods}, repeats=repeats)
    rows: list[dict[str, Any]] = [
        {
            "period": period,
            "seconds_a_step": timings[str(period)].median / most,
            "images_per_second": images_per_second(timings[str(period)], most * workers),
        }
        for period in periods
    ]
    shown = [
        (r["period"], f"{r['seconds_a_step']:.3f}", *(f"{x:,.0f}" for x in r["images_per_second"].values()))
        for r in rows
    ]
    print_table((f"period, {workers} workers", "s a step", "images/s", "slowest", "fastest"), shown)
    return rows


def beyond_workers(training: Training) -> float:
    """Bytes that the step needs beyond its own workers' state and the data."""
    memory = training.step.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    state = jax.tree.leaves((training.state.params, training.state.opt_state, training.state.losses))
    return peak + memory.temp_size_in_bytes - sum(x.nbytes for x in (*state, *jax.tree.leaves(training.data)))


def model_bytes(training: Training, workers: int) -> float:
    """Bytes of one worker's parameters."""
    return sum(x.nbytes for x in jax.tree.leaves(training.state.params)) / workers


def images_per_second(timing: Timing, worker_steps: int) -> dict[str, float]:
    """The median, the slowest and the fastest."""
    images = worker_steps * BATCH_SIZE
    return {"median": images / timing.median, "slowest": images / timing.high, "fastest": images / timing.low}


def _shown(row: dict[str, Any]) -> tuple[str, str, str]:
    rate, seconds = row["images_per_second"], row["seconds_a_step"]
    images = "" if rate is None else f"{rate['median']:,.0f} ({rate['slowest']:,.0f} to {rate['fastest']:,.0f})"
    return "" if seconds is None else f"{seconds:.3f}", images, f"{row['models_beyond']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
