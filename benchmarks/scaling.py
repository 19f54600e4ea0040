"""What more workers and longer periods cost: time a step, compile time and memory, on one device.

Memory is what the compiled train step needs (`memory_analysis()`): in all, and what of it is beyond the workers'
own parameters, optimizer states and score windows, beyond the data, and beyond what one worker alone needs
(its activations, above all), in models a worker.

    python benchmarks/scaling.py --workers=1,4,16,64,256
    python benchmarks/scaling.py --model=transformer --workers=4,256 --rounds=1
"""

import argparse
import functools
import math
import pathlib
import sys
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import in_turn, print_table, writable, write_results
from peer_ratios import rate
from peer_workload import unit, units_a_step
from text_workload import SIZES, text_train_step
from workload import Runner, Training, train_step

from lsgd_jax.models import MODELS

ROOT = pathlib.Path(__file__).parents[1]


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnn7", choices=[*MODELS, *SIZES], help="(default: %(default)s)")
    parser.add_argument("--workers", default="1,4,16,64,256", help="separated by commas (default: %(default)s)")
    parser.add_argument("--timed_up_to", type=int, default=256, help="workers; more are only compiled")
    parser.add_argument("--rounds", type=int, default=4, help="steps of a round (default: %(default)s)")
    parser.add_argument("--periods", default="1,4,16,64", help="of 4 workers; empty for none (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/scaling/scaling.json"))
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    counts, periods = ([int(x) for x in given.split(",") if x] for given in (args.workers, args.periods))
    by_workers = over_workers(args.model, counts, args.timed_up_to, args.repeats, args.rounds)
    by_period = over_periods(args.model, periods, args.repeats) if periods else []
    write_results(args.output, {"model": args.model, "over_workers": by_workers, "over_periods": by_period})
    return 0


def compiled_step(model: str, workers: int, period: int) -> Training:
    """The train step of a model on images or on text."""
    if model in SIZES:
        return text_train_step(model, workers, period=period)
    return train_step(model, 1, workers, period=period)


def over_workers(model: str, counts: list[int], timed_up_to: int, repeats: int, period: int) -> list[dict[str, Any]]:
    """Rows of one count each; rounds of `period` steps."""
    compiled = {count: compiled_step(model, count, period) for count in sorted({1, *counts})}
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
                f"{unit(model)}_per_second": timing and rate(count * period * units_a_step(model), timing)._asdict(),
                "bytes": needed(training),
                "models_beyond": (beyond_workers(training) - alone) / (count * model_bytes(training, count)),
            }
        )
    device = jax.devices()[0].device_kind
    print(f"{model}, steps of {units_a_step(model):,} {unit(model)}, rounds of {period}, on {device}")
    columns = ("workers", "compile s", "s a step", f"{unit(model)}/s", "memory GiB", "beyond, models a worker")
    print_table(columns, [[r["workers"], f"{r['compile_seconds']:.1f}", *_shown(r, unit(model))] for r in rows])
    return rows


def over_periods(model: str, periods: list[int], repeats: int, workers: int = 4) -> list[dict[str, Any]]:
    """Rows of one period each; the same number of steps for all."""
    most = math.lcm(*periods)
    runners = {period: Runner(compiled_step(model, workers, period)) for period in periods}

    def train(period: int) -> None:
        for _ in range(most // period):
            runners[period](period)

    timings = in_turn({str(period): functools.partial(train, period) for period in periods}, repeats=repeats)
    rows: list[dict[str, Any]] = [
        {
            "period": period,
            "seconds_a_step": timings[str(period)].median / most,
            f"{unit(model)}_per_second": rate(most * workers * units_a_step(model), timings[str(period)])._asdict(),
        }
        for period in periods
    ]
    shown = [
        (r["period"], f"{r['seconds_a_step']:.3f}", *(f"{x:,.0f}" for x in r[f"{unit(model)}_per_second"].values()))
        for r in rows
    ]
    print_table((f"period, {workers} workers", "s a step", f"{unit(model)}/s", "slowest", "fastest"), shown)
    return rows


def beyond_workers(training: Training) -> float:
    """Bytes that the step needs beyond its own workers' state and the data."""
    state = jax.tree.leaves((training.state.params, training.state.opt_state, training.state.losses))
    return needed(training) - sum(x.nbytes for x in (*state, *jax.tree.leaves(training.data)))


def needed(training: Training) -> float:
    """Bytes that the step needs in all."""
    memory = training.step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes


def model_bytes(training: Training, workers: int) -> float:
    """Bytes of one worker's parameters."""
    return sum(x.nbytes for x in jax.tree.leaves(training.state.params)) / workers


def _shown(row: dict[str, Any], unit: str) -> tuple[str, ...]:
    found, seconds = row[f"{unit}_per_second"], row["seconds_a_step"]
    shown = "" if found is None else f"{found['median']:,.0f} ({found['slowest']:,.0f} to {found['fastest']:,.0f})"
    memory = f"{row['bytes'] / 2**30:.2f}"
    return "" if seconds is None else f"{seconds:.3f}", shown, memory, f"{row['models_beyond']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
