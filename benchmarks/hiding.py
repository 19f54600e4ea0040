"""What overlapped communication hides on a slow link: wall-clock of the same run, sent at once, late, and not at all.

    python benchmarks/hiding.py --rate=100mbit

Processes of this machine train a transformer on text, one worker each, in a network namespace of their own whose
loopback carries --rate in all (tc and unshare of Linux; no rights are needed). Runs take turns; seconds are those of
training in the second half of a run: in the first, evaluations are compiled beside it.
"""

import argparse
import json
import os
import pathlib
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

import measure

ROOT = pathlib.Path(__file__).parents[1]
PERIOD = 16
NOTHING = "nothing is sent"
ALTERNATIVES = {
    NOTHING: ["--algorithm=none"],
    "lsgd": [],
    "lsgd, late": [f"--overlap={PERIOD}"],
    "lsgd, 4 bits, late": ["--compress=4", f"--overlap={PERIOD}"],
}


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="100mbit", help="of the link, as tc has it (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="at most as many as there are cores (%(default)s)")
    parser.add_argument("--width", type=int, default=256, help="of the transformer (%(default)s)")
    parser.add_argument("--steps", type=int, default=16 * PERIOD, help="local steps of a run (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; their median counts (%(default)s)")
    parser.add_argument("--output", type=measure.writable, default=str(ROOT / "results/hiding/hiding.json"))
    args = parser.parse_args()
    if args.repeats < 1 or args.processes < 2 or args.steps < 1 or args.steps % (2 * PERIOD):
        parser.error(f"--repeats must be at least 1, --processes 2, and --steps a multiple of {2 * PERIOD}")
    seconds: dict[str, list[float]] = {name: [] for name in ALTERNATIVES}
    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder) / "text"
        rng = random.Random(0)
        text.write_text("".join(rng.choices("abcdefgh \n", k=400_000)))
        for turn in range(args.repeats):
            for name in random.Random(turn).sample(list(ALTERNATIVES), len(ALTERNATIVES)):
                workdir = pathlib.Path(folder) / f"{turn}" / name.replace(" ", "_")
                try:
                    found = train(args, ALTERNATIVES[name], text, workdir)
                except subprocess.CalledProcessError as error:
                    print(f"hiding.py: {name}: {error.output[-400:].strip()}", file=sys.stderr)
                    return 1
                except FileNotFoundError as error:
                    print(f"hiding.py: {error.filename} is not installed: it is part of Linux", file=sys.stderr)
                    return 1
                seconds[name].append(found)
                print(f"{name}: {found:.1f} s", flush=True)
    rows = rows_of(seconds)
    measure.print_table(
        ("run", "median s", "min", "max", f"of that in which {NOTHING}"),
        [(r["run"], *(f"{r[key]:.1f}" for key in ("median", "low", "high")), f"{r['ratio']:.2f}") for r in rows],
    )
    measure.write_results(args.output, {"rate": args.rate, "processes": args.processes, "runs": rows})
    figure = args.output.with_suffix(".png")
    draw(figure, rows, args)
    print(f"results in {args.output} and {figure}")
    return 0


def rows_of(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The median of each alternative, its range, and its ratio to that of a run that sends nothing."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {"run": name, "median": medians[name], "low": min(times), "high": max(times),
         "ratio": medians[name] / medians[NOTHING]}
        for name, times in seconds.items()
    ]  # fmt: skip


def draw(path: pathlib.Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Draws the medians, with their ranges."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    names, medians = [row["run"] for row in rows], [row["median"] for row in rows]
    ranges = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    bars = axes.barh(names, medians, xerr=ranges, capsize=3, color=["0.7", "tab:red", "tab:blue", "tab:cyan"])
    axes.bar_label(bars, [f"{row['ratio']:.2f}" for row in rows], label_type="center", color="white")
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds of {args.steps // 2} local steps, {args.processes} processes, link of {args.rate}")
    figure.savefig(path, dpi=150)


def train(args: argparse.Namespace, how: list[str], text: pathlib.Path, workdir: pathlib.Path) -> float:
    """Seconds of training in the second half of a run.

    Raises:
      subprocess.CalledProcessError: if it fails, or there is no such link.
    """
    flags = [
        *(f"--workdir={workdir}", f"--text_file={text}", f"--model_width={args.width}", "--model_layers=4"),
        *("--batch_size=8", "--sequence_length=64", "--optimizer=adamw", "--learning_rate=0.001", "--sampling=iid"),
        *("--groups=1", f"--workers={args.processes}", f"--global_period={PERIOD}", f"--steps={args.steps}"),
        *(f"--eval_every={args.steps // 2}", f"--checkpoint_every={args.steps}", *how),
    ]
    command = [sys.executable, "-m", "lsgd_jax.launch", f"--processes={args.processes}", "-m", "lsgd_jax.train", *flags]
    link = f"ip link set lo up && tc qdisc add dev lo root tbf rate {args.rate} burst 1mb latency 2s"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["unshare", "-rn", "sh", "-c", f"{link} && {shlex.join(command)}"],
        env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    half, whole = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return whole["seconds"] - half["seconds"]


if __name__ == "__main__":
    sys.exit(main())
