"""A soak of runs that outlive their processes: one is killed again and again, with --live and with restarts of all.

For each seed three runs of LSGD on digits, one after the other: under `lsgd_jax.launch --live`; left alone; and under
the launcher that starts all again from the last checkpoint. The first and the last have processes killed at the same
times, drawn at random. Told are losses at the end, seconds from a kill to the next steps, and goodput: the steps of
workers that count, over those that the run which is left alone takes in the same time. Runs that are in the output
already, with the same settings, are not run again. Linux only.
"""

import argparse
import csv
import itertools
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

import faults
from measure import as_table, writable, write_results

from lsgd_jax.cluster.generations import CANNOT_BE_INTERRUPTED

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS: dict[str, Any] = faults.SETTINGS | {"sampling": "iid"}
WORKERS = SETTINGS["groups"] * SETTINGS["workers"]
# No run takes longer: it hangs.
LONGEST = 3 * 3600


class Soak(NamedTuple):
    """What became of a run.

    Attributes:
      seconds: from the start of the launcher to its end.
      kills: how many processes were killed.
      useful: steps of workers that count.
      loss: of the center on the validation data at the end.
      error: likewise.
      stuck: how many processes ended since nothing brought them back from a collective.
      survivors: seconds from each kill to the end of the next call of those who are left; of all after a restart.
      newcomers: seconds from each kill until all train again.
    """

    seconds: float
    kills: int
    useful: int
    loss: float
    error: float
    stuck: int
    survivors: list[float]
    newcomers: list[float]


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4, help="of each run, which four divides (%(default)s)")
    parser.add_argument("--steps", type=int, default=40_000, help="of each worker (%(default)s)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills, on average (%(default)s)")
    parser.add_argument(
        "--kills", type=int, default=100, help="at most, of each run; then it ends undisturbed (%(default)s)"
    )
    parser.add_argument("--checkpoint_every", type=int, default=1000, help="steps (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of runs, from 0 on (%(default)s)")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/faults/live.json"))
    args = parser.parse_args()
    if min(args.steps, args.every, args.kills, args.checkpoint_every, args.seeds) <= 0 or WORKERS % args.processes:
        parser.error(f"all numbers must be more than 0, and {WORKERS} workers dealt equally to the processes")
    settings = {name: value for name, value in vars(args).items() if name not in ("seeds", "output")}
    found = runs_before(args.output, settings)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for name, runs in found.items():
                if len(runs) > seed:
                    continue
                workdir = pathlib.Path(folder) / f"{name.replace(' ', '_')}_{seed}"
                runs.append(soak(args, workdir, seed, live=name == "--live", kills=name != "left alone"))
                print(f"seed {seed}, {name}: {runs[-1]}", flush=True)
                every = {name: [run._asdict() for run in runs] for name, runs in found.items()}
                write_results(args.output, {"settings": settings, "rows": table(found), "runs": every})
    rows = table(found)
    print(as_table(tuple(rows[0]), [tuple(each.values()) for each in rows]))
    return 0


def table(found: dict[str, list[Soak]]) -> list[dict[str, Any]]:
    """A line for each kind of run of which there is any."""
    return [row(name, runs, found["left alone"]) for name, runs in found.items() if runs]


def runs_before(output: pathlib.Path, settings: dict[str, Any]) -> dict[str, list[Soak]]:
    """The runs that an output has already, by their names."""
    found: dict[str, list[Soak]] = {"--live": [], "left alone": [], "restarts of all": []}
    if not (text := output.read_text()):
        return found
    try:
        before = json.loads(text)["results"]
        if before["settings"] != settings:
            sys.exit(f"live_faults.py: {output} is of other settings, {before['settings']}: name another --output")
        return {name: [Soak(**run) for run in before["runs"][name]] for name in found}
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"live_faults.py: {output} cannot be read ({error!r}): name another --output, or remove it")


def row(name: str, runs: list[Soak], alone: list[Soak]) -> dict[str, Any]:
    """A line of the table."""
    pace = sum(run.useful for run in alone) / sum(run.seconds for run in alone) if alone else math.nan

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"

    def span(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} ({max(values):.1f})" if values else "–"

    return {
        "run": name,
        "kills": sum(run.kills for run in runs),
        "stuck": sum(run.stuck for run in runs),
        "seconds": f"{statistics.mean(run.seconds for run in runs):.0f}",
        "goodput": f"{sum(run.useful for run in runs) / sum(run.seconds for run in runs) / pace:.2f}",
        "loss": spread([run.loss for run in runs]),
        "error": spread([run.error for run in runs]),
        "to the next steps, s": span([each for run in runs for each in run.survivors]),
        "to those of all, s": span([each for run in runs for each in run.newcomers]),
    }


def soak(args: argparse.Namespace, workdir: pathlib.Path, seed: int, *, live: bool, kills: bool) -> Soak:
    """Runs to the end."""
    flags = SETTINGS | {
        **{"steps": args.steps, "checkpoint_every": args.checkpoint_every, "workdir": workdir, "seed": seed},
        "heartbeat_timeout": 10,
    }
    launcher = [f"--processes={args.processes}", "--max_restarts=100000", *(["--live"] if live else [])]
    command = [sys.executable, "-m", "lsgd_jax.launch", *launcher, "-m", "lsgd_jax.train"]
    environment = faults.ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    said: list[tuple[float, str]] = []
    with subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in flags.items())],
        cwd=workdir.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        lines = run.stdout
        reader = threading.Thread(target=lambda: said.extend((time.monotonic(), line) for line in lines))
        reader.start()
        killed = killing(run, args, seed) if kills else []
        run.wait(LONGEST)
        reader.join()
    if run.returncode:
        sys.exit(f"live_faults.py: a run has failed:\n{''.join(line for _, line in said)[-4000:]}")
    seconds = time.monotonic() - started
    summary = json.loads((workdir / "summary.json").read_text())
    return Soak(
        seconds, len(killed), useful(workdir, args.steps), summary["validation_loss"], summary["validation_error"],
        sum(CANNOT_BE_INTERRUPTED in line for _, line in said), *recoveries(killed, said),
    )  # fmt: skip


def killing(run: subprocess.Popen, args: argparse.Namespace, seed: int) -> list[float]:
    """Kills processes of a launcher, one at a time, until it has ended or there were enough; the times."""
    chance = random.Random(seed)
    killed: list[float] = []
    while len(killed) < args.kills:
        due = time.monotonic() + chance.uniform(0.5, 1.5) * args.every
        number = chance.randrange(args.processes)
        while time.monotonic() < due:
            if run.poll() is not None:
                return killed
            time.sleep(0.05)
        for pid in faults.children(run.pid):
            if f"--process_id={number}\0" in command_of(pid):
                os.kill(pid, 9)
                killed.append(time.monotonic())
    return killed


def command_of(pid: int) -> str:
    """The command line of a process, its arguments followed by NUL."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def recoveries(killed: list[float], said: list[tuple[float, str]]) -> tuple[list[float], list[float]]:
    """Seconds from each kill to the next step that is told, and to the next of all processes."""
    anybody: list[float] = []
    everybody: list[float] = []
    for begin, end in itertools.pairwise([*killed, float("inf")]):
        after = [(at, line) for at, line in said if begin < at < end]
        begun = [at for at, line in after if re.search(r"^(\[\d+\] )?(lost: |resuming )", line)]
        back = [at for at, line in after if re.search(r"^(\[\d+\] )?(taken in: |resuming )", line)]
        steps = [at for at, line in after if re.match(r"(\[\d+\] )?step \d+/", line)]
        for seen, into in ((begun, anybody), (back[-1:], everybody)):
            if next_steps := [at for at in steps if seen and at > seen[0]]:
                into.append(next_steps[0] - begin)
    return anybody, everybody


def useful(workdir: pathlib.Path, steps: int) -> int:
    """Steps of workers that count: of generations with fewer workers those of these."""
    path = workdir / "generations.csv"
    if not path.exists():
        return steps * WORKERS
    with path.open(newline="") as file:
        rows = [(int(row["step"]), int(row["groups"]) * int(row["workers"])) for row in csv.DictReader(file)]
    ends = [step for step, _ in rows[1:]] + [steps]
    return sum(workers * (end - begin) for (begin, workers), end in zip(rows, ends, strict=True))


if __name__ == "__main__":
    sys.exit(main())
