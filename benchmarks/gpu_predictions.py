"""How far what is predicted ahead of time holds on the GPU that is here: memory, and the time of a step at its peak.

    python benchmarks/gpu_predictions.py                # predicted for an H100 or H200, and measured
    python benchmarks/gpu_predictions.py --predict      # predicted alone, where there is no GPU; needs the extra 'gpu'
    python benchmarks/gpu_predictions.py --measure="cnn7 float32 4"     # one of them, in this process

Each is predicted and measured in processes of its own: a device remembers the most that a process has used.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from compiled import ROOT, TASKS, figures_of
from measure import print_table, writable, write_results

from lsgd_jax.commands.environment import set_for_compilers

CASES = {
    f"{model} {workers}": [f"{TASKS}:{task}", "--groups=1", f"--workers={workers}", *flags]
    for model, task, flags in (
        ("cnn7 float32", "cnn7", []),
        ("cnn7 bfloat16", "cnn7_bfloat16", []),
        ("resnet50", "resnet50", []),
        ("GPT-2 small", "gpt2_small", ["--optimizer=adamw"]),
    )
    for workers in ((4, 16) if task.startswith("cnn7") else (1, 2))
}
COLUMNS = (
    "",
    "GFLOP a step",
    "ms at peak",
    "ms",
    "of peak",
    "GiB predicted",
    "GiB",
    "compile s predicted",
    "compile s",
)


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="measure nothing")
    parser.add_argument("--measure", choices=CASES, help="print the figures of one as JSON")
    parser.add_argument("--target", default="h100:1x1", help="(default: %(default)s)")
    parser.add_argument("--cases", default=",".join(CASES), help="of %(default)s")
    parser.add_argument("--output", type=writable, help="(default: results/gpu/predictions.json)")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(CASES[args.measure])))
        return 0
    if unknown := set(args.cases.split(",")) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}: choose of {', '.join(CASES)}")
    output = args.output or writable(str(ROOT / "results/gpu/predictions.json"))
    as_it_was = dict(os.environ)
    set_for_compilers()  # this process takes no memory of the GPU
    rows: list[dict[str, Any]] = []
    for name in args.cases.split(","):
        predicted = figures_of(args.target, CASES[name])
        if isinstance(predicted, str):
            raise SystemExit(f"{name}: {predicted}")
        rows.append({"case": name, "predicted": predicted})
        if not args.predict:
            own = [sys.executable, str(pathlib.Path(__file__)), f"--measure={name}"]
            ended = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True, env=as_it_was)
            rows[-1]["measured"] = json.loads(ended.stdout)
        write_results(output, rows)  # what there is, whenever it ends
    print_table(COLUMNS, [columns(**row) for row in rows])
    return 0


def measured(flags: list[str]) -> dict[str, Any]:
    """Compile seconds, seconds a step and bytes at the peak, on the first device that is here."""
    from absl import flags as absl_flags

    from lsgd_jax.commands.command_line import define
    from lsgd_jax.commands.settings import GROUPS, given_settings

    values = absl_flags.FlagValues()
    define(values, [flag for group in GROUPS.values() for flag in group])
    values(["gpu_predictions.py", *flags])
    given = given_settings(values)

    import jax
    import jax.numpy as jnp

    from lsgd_jax import Topology, init_state, make_train_step
    from lsgd_jax.config.checks import load_config
    from lsgd_jax.config.from_config import method_of
    from lsgd_jax.config.kinds import find_source, kind_of
    from lsgd_jax.engine.compiler import compiler_options
    from lsgd_jax.tasks.task import open_task

    config = load_config("unused", {"workdir": "unused"} | given, resume=False)
    device, source = jax.devices()[0], find_source(config)
    topology = Topology(config.groups, config.workers, [device])
    method = method_of(config, topology)
    task = open_task(kind_of(source).task(config, source), topology, seed=0, steps=config.steps)
    state = init_state(method, topology, task.init, jax.random.key(0))
    options = compiler_options(config.compute_dtype, topology)
    step = make_train_step(method, topology, task.loss, task.batches, compiler_options=options)
    data, steps = task.data_for(0, 1), config.global_period
    start = time.perf_counter()
    compiled = step.lower(state, data, jnp.int32(steps)).compile()
    compile_seconds, seconds = time.perf_counter() - start, []
    for _ in range(4):
        start = time.perf_counter()
        state, report = compiled(state, data, jnp.int32(steps))
        jax.block_until_ready((state, report))
        seconds.append((time.perf_counter() - start) / steps)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": device.device_kind,
        "compile_seconds": compile_seconds,
        "step_seconds": min(seconds[1:]),
        "peak": peak,
    }


def columns(case: str, predicted: dict[str, Any], measured: dict[str, Any] | None = None) -> tuple[Any, ...]:
    """A line of the table."""
    at_peak, found = predicted["at_peak_seconds"], measured or {}
    seconds, peak = found.get("step_seconds"), found.get("peak")
    return (
        case,
        f"{predicted['flops'] / 1e9:,.1f}",
        f"{1e3 * at_peak:.2f}",
        f"{1e3 * seconds:.2f}" if seconds else "–",
        f"{at_peak / seconds:.2f}" if seconds else "–",
        f"{predicted['peak'] / 2**30:.2f}",
        f"{peak / 2**30:.2f}" if peak else "–",
        f"{predicted['compile_seconds']:.1f}",
        f"{found['compile_seconds']:.1f}" if found else "–",
    )


if __name__ == "__main__":
    sys.exit(main())
