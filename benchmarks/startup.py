"""Seconds from the shell to the end of the first call of the train step, of one to four steps, and where they go.

`train.py` on the digits of its demo, on CIFAR-10 with --cifar10=DIR (a TFDS folder), and on text with a transformer:
without compiled programs that were kept, and with them. The ratio is to importing jax, flax and optax alone, in turn.

    python benchmarks/startup.py --cifar10=/path/to/tfds
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import print_table, writable, write_results

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
IMPORTS = "import jax, flax, optax"
DIGITS = ("--groups=2", "--workers=4", "--sampling=iid", "--batch_size=32")
PHASES = ("imports", "settings and data", "state", "train step", "first call")
ONE_STEP = ("--local_period=1", "--global_period=1")  # in the first call


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--cifar10", help="a folder that has CIFAR-10 ready for TFDS")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/startup/startup.json"))
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder, "text.txt")
        text.write_bytes(bytes(range(32, 127)) * 2000)
        runs = {"digits": DIGITS, "transformer": (f"--text_file={text}", "--model=transformer", *ONE_STEP)}
        if args.cifar10:
            runs["cifar10"] = ("--dataset=cifar10", f"--data_dir={args.cifar10}", *ONE_STEP)
        figures: dict[str, float] = {}
        rows = []
        for name, flags in runs.items():
            found = measure(flags, pathlib.Path(folder, name), args.repeats)
            alone = found.pop("imports")
            for cache, phases in found.items():
                seconds = sum(phases.values())
                figures[f"{name}, {cache} cache, to the first step [s]"] = seconds
                figures[f"{name}, {cache} cache, over importing jax, flax, optax"] = seconds / alone
                shown = (f"{phase:.2f}" for phase in phases.values())
                rows.append((f"{name}, {cache}", f"{seconds:.2f}", f"{seconds / alone:.2f}", *shown))
    print_table(("", "seconds", "over imports", *PHASES), rows)
    write_results(args.output, {"figures": figures, "rows": rows, "columns": ["", "seconds", "over imports", *PHASES]})
    return 0


def measure(flags: tuple[str, ...], folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    """Median seconds of each phase by cache, "cold" and "warm", and those of importing jax, flax and optax alone."""
    found: dict[str, list[list[float]]] = {"cold": [], "warm": []}
    imports = []
    for turn in range(repeats):
        for cache in found:
            environment = {**os.environ, "XDG_CACHE_HOME": str(folder / f"cache{turn}")}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            workdir = f"--workdir={folder / f'{cache}{turn}'}"
            command = [sys.executable, str(HERE / "startup_side.py"), str(time.time()), workdir, *flags]
            told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
            if told.returncode:
                raise SystemExit(f"{told.stdout}{told.stderr}\nstartup_side.py has failed: its output stands above")
            found[cache].append([float(x) for x in told.stdout.splitlines()[-1].split()])
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        imports.append(time.perf_counter() - start)
    medians = {
        cache: dict(zip(PHASES, map(statistics.median, zip(*turns, strict=True)), strict=True))
        for cache, turns in found.items()
    }
    return {**medians, "imports": statistics.median(imports)}


if __name__ == "__main__":
    sys.exit(main())
