"""A soak: a run of several processes of which one is killed again and again, beside one that is left alone.

The run trains LSGD on digits under the launcher, which starts all processes again from the last checkpoint. Which
process is killed, and when, is drawn at random: while they start and connect as well as while they train and write
checkpoints. In the end parameters, optimizer states, metrics and leaders of both runs are compared. Linux only.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import as_table, writable, write_results

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = {
    **{"model": "mlp", "groups": 2, "workers": 2, "batch_size": 32, "local_period": 4, "global_period": 16},
    **{"stale_global_pull": 0.01, "learning_rate": 0.02},
}
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "PYTHONPATH": str(ROOT),
}
# More restarts than kills would be a failure that nobody caused.
SPARE_RESTARTS = 3


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4, help="of each run (%(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="how many processes to kill (%(default)s)")
    parser.add_argument("--steps", type=int, default=20_000, help="of each worker (%(default)s)")
    parser.add_argument("--checkpoint_every", type=int, default=200, help="steps (%(default)s)")
    parser.add_argument(
        "--longest_life", type=float, default=30.0, help="seconds to the next kill, at most (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when (%(default)s)")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/faults/faults.json"))
    args = parser.parse_args()
    if min(args.processes, args.kills, args.steps, args.checkpoint_every, args.longest_life) <= 0:
        parser.error("all numbers must be more than 0")

    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        alone, _, _ = soak(args, workdir / "alone", kills=0)
        seconds, killed, log = soak(args, workdir / "killed", kills=args.kills)
        lives = re.findall(r"^resuming \S+ at step (\d+) ", log, re.MULTILINE)
        result = {
            "kills": len(killed),
            "restarts": log.count("\nlaunch: restart "),
            "killed_processes": dict(collections.Counter(str(kill.number) for kill in killed)),
            "seconds_to_each_kill": [round(kill.lived, 2) for kill in killed],
            "seconds_to_the_end_of_all": [round(kill.ended, 2) for kill in killed],
            "resumed_at": [int(step) for step in lives],
            "seconds": {"alone": alone, "killed": seconds},
            **differences(workdir / "alone", workdir / "killed"),
        }
    print(table(result))
    write_results(args.output, result)
    held = result["kills"] >= args.kills and result["restarts"] == result["kills"] and result["same"]
    if result["kills"] < args.kills:
        print("the run was over before: give it more --steps", file=sys.stderr)
    return 0 if held else 1


class Kill(NamedTuple):
    """The number of the process; seconds that all had lived, and that it took them all to end."""

    number: int
    lived: float
    ended: float


def soak(args: argparse.Namespace, workdir: pathlib.Path, kills: int) -> tuple[float, list[Kill], str]:
    """Runs to the end.

    Returns:
      Its seconds; the kills; what was printed.
    """
    flags = SETTINGS | {"steps": args.steps, "checkpoint_every": args.checkpoint_every, "workdir": workdir}
    launcher = [f"--processes={args.processes}", f"--max_restarts={kills + SPARE_RESTARTS}"]
    command = [sys.executable, "-m", "lsgd_jax.launch", *launcher, "experiments/train.py"]
    started = time.monotonic()
    with (
        subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in flags.items())],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as run,
        killing(run, args, kills) as killed,
    ):
        log, _ = run.communicate()
    if run.returncode:
        sys.exit(f"faults.py: a run has failed:\n{log[-4000:]}")
    return time.monotonic() - started, killed, log


@contextlib.contextmanager
def killing(run: subprocess.Popen, args: argparse.Namespace, kills: int) -> Iterator[list[Kill]]:
    """Kills so many processes of a launcher meanwhile, one in each life of them all."""
    chance = random.Random(args.seed)
    killed: list[Kill] = []

    def go() -> None:
        before: list[int] = []
        while run.poll() is None and len(killed) < kills:
            living = children(run.pid)
            if len(living) < args.processes or set(living) & set(before):
                time.sleep(0.01)
                continue
            life, number = chance.uniform(0, args.longest_life), chance.randrange(args.processes)
            born = time.monotonic()
            while time.monotonic() < born + life and run.poll() is None:
                time.sleep(0.01)
            before = living
            if run.poll() is None and living[number] in children(run.pid):
                os.kill(living[number], signal.SIGKILL)
                now = time.monotonic()
                while set(living) & set(children(run.pid)):
                    time.sleep(0.01)
                killed.append(Kill(number, now - born, time.monotonic() - now))

    killer = threading.Thread(target=go)
    killer.start()
    try:
        yield killed
    finally:
        killer.join()


def children(pid: int) -> list[int]:
    """The processes that one has started, in their order; none if it is gone."""
    with contextlib.suppress(OSError):
        return sorted(int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return []


def differences(one: pathlib.Path, other: pathlib.Path) -> dict[str, Any]:
    """What two runs left behind, compared."""
    import absl.logging
    import jax
    import numpy as np

    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax would warn that it only reads

    from lsgd_jax.config.reload import reload_run
    from lsgd_jax.trainer.records import read_leaders, read_metrics

    states = [reload_run(workdir).state for workdir in (one, other)]
    states = [state._replace(keys=jax.random.key_data(state.keys)) for state in states]
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, states), strict=True)]
    changed = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs if a.tobytes() != b.tobytes()]
    rows = [[{**row, "seconds": None} for row in read_metrics(workdir)] for workdir in (one, other)]
    leaders = [read_leaders(workdir) for workdir in (one, other)]
    return {
        "largest_difference_of_states": max((float(np.abs(a - b).max()) for a, b in changed), default=0.0),
        "evaluations": [len(each) for each in rows],
        "elections": [len(each) for each in leaders],
        "same": not changed and rows[0] == rows[1] and leaders[0] == leaders[1],
    }


def table(result: dict[str, Any]) -> str:
    """The results for people."""
    lives, ends = ([0.0, *result[f"seconds_to_{name}"]] for name in ("each_kill", "the_end_of_all"))
    rows = [
        ("kills, restarts", f"{result['kills']}, {result['restarts']}"),
        (
            "killed, by number of the process",
            ", ".join(f"{k}: {n}" for k, n in sorted(result["killed_processes"].items())),
        ),
        ("seconds from a start to a kill, at most", f"{max(lives):.1f}"),
        ("seconds from a kill to the end of all, at most", f"{max(ends):.1f}"),
        ("starts that found a checkpoint", str(len([step for step in result["resumed_at"] if step]))),
        ("seconds, left alone and killed", f"{result['seconds']['alone']:.0f}, {result['seconds']['killed']:.0f}"),
        ("evaluations of each", "{}, {}".format(*result["evaluations"])),
        ("elections of each", "{}, {}".format(*result["elections"])),
        ("largest difference of states", f"{result['largest_difference_of_states']:g}"),
        ("states, metrics and leaders bitwise the same", "yes" if result["same"] else "NO"),
    ]
    return as_table(("soak", ""), rows)


if __name__ == "__main__":
    sys.exit(main())
