"""Seconds of importing this library, and over those of importing jax and optax, in turn, each in a new interpreter.

The library imports what it needs when its first name is used: that is timed too.

    python benchmarks/import_time.py
"""

import argparse
import functools
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import in_turn, print_table, writable, write_results

ROOT = pathlib.Path(__file__).parents[1]
ALONE = "import jax, optax"
PROGRAMS = {
    ALONE: ALONE,
    "import lsgd_jax": "import lsgd_jax",
    "its first use": "import lsgd_jax; lsgd_jax.lsgd",
}


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--output", type=writable, required=True)
    args = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = functools.partial(subprocess.run, check=True, env=environment)
    timings = in_turn(
        {name: functools.partial(run, [sys.executable, "-c", program]) for name, program in PROGRAMS.items()},
        repeats=args.repeats,
    )
    seconds = {name: timing.median for name, timing in timings.items()}
    over = {name: seconds[name] / seconds[ALONE] for name in PROGRAMS}
    print_table(
        ("", "median s", "fastest", "slowest", f"over {ALONE}"),
        [(name, *(f"{x:.2f}" for x in (t.median, t.low, t.high, over[name]))) for name, t in timings.items()],
    )
    write_results(args.output, {"seconds": seconds, "over_jax_and_optax": over})
    return 0


if __name__ == "__main__":
    sys.exit(main())
