"""How many steps/s workers at their own pace take, over workers in step, when one of them is slow.

Four processes of this machine train cnn3 with LSGD, a worker each, over Gloo on loopback. They share a few
cores, so each local step is made to last as long as --step_ms says, and that of the last worker --slowdown
times as long. Rounds of both kinds take turns.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from local_processes import add_process_flags, finish, join, run_processes
from measure import as_table, writable, write_results

PROCESSES = 4
BATCH_SIZE, SAMPLES = 8, 256
ROOT = pathlib.Path(__file__).parents[1]


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each kind; their median counts (%(default)s)")
    parser.add_argument(
        "--period", type=int, default=16, help="steps of a worker between two communications (%(default)s)"
    )
    parser.add_argument("--step_ms", type=float, default=100.0, help="how long a step lasts (%(default)s)")
    parser.add_argument(
        "--slowdown", type=float, default=4.0, help="how many times longer the slow one's (%(default)s)"
    )
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/asynchronous/asynchronous.json"))
    add_process_flags(parser)
    args = parser.parse_args()
    if min(args.repeats, args.period) < 1 or args.step_ms <= 0 or args.slowdown < 1:
        parser.error("--repeats, --period and --slowdown must be at least 1, --step_ms more than 0")
    if args.process_id is not None:
        join(args)
        return finish(args, work(args.repeats, args.period, args.step_ms / 1e3, args.slowdown))
    flags = [f"--{name}={getattr(args, name)}" for name in ("repeats", "period", "step_ms", "slowdown")]
    try:
        measured = run_processes(flags, PROCESSES)
    except RuntimeError as error:
        print(f"asynchronous.py: {error}", file=sys.stderr)
        return 1
    result = compare(measured, args.period, args.slowdown)
    print(table(result))
    write_results(args.output, result)
    return 0


def work(repeats: int, period: int, step_seconds: float, slowdown: float) -> dict[str, Any]:
    """Of each kind of round but its first: seconds, each worker's steps and its waiting."""
    import jax
    import numpy as np
    from workload import CROP, PREPROCESSING, base_optimizer, random_images

    import lsgd_jax
    from lsgd_jax.cluster.asynchronous import AsynchronousRounds, Programs, compile_programs, make_programs
    from lsgd_jax.cluster.processes import put
    from lsgd_jax.cluster.tickets import CoordinatedRound
    from lsgd_jax.data.images import augmented
    from lsgd_jax.data.sampling import make_batches
    from lsgd_jax.engine.state import init_state, state_shardings
    from lsgd_jax.models import make_model
    from lsgd_jax.tasks.classification import classification_loss

    class InStep(CoordinatedRound):
        """A round in which each process has tickets of its own."""

        claimed = 0

        def claim(self, count: int) -> int:
            self.claimed += count
            return PROCESSES * (self.claimed - count)

    topology = lsgd_jax.Topology(1, PROCESSES)
    method = lsgd_jax.lsgd(base_optimizer(), global_period=period)
    model = make_model("cnn3", (CROP, CROP, 3), 10, "float32")
    batches = make_batches("iid", SAMPLES, BATCH_SIZE, augmented(PREPROCESSING))
    state = init_state(method, topology, model.init, jax.random.key(0))
    shapes = jax.eval_shape(lambda state: state, state)

    data = jax.tree.map(lambda array: put(array, topology.replicated), random_images(SAMPLES))
    programs = make_programs(method, topology, classification_loss(model), batches)
    programs = compile_programs(programs, topology, state, data)
    lasts = step_seconds * (slowdown if jax.process_index() == PROCESSES - 1 else 1)

    def step(*arguments: Any) -> Any:
        until = time.perf_counter() + lasts
        result = jax.block_until_ready(programs.step(*arguments))
        time.sleep(max(0.0, until - time.perf_counter()))
        return result

    make = functools.partial(
        AsynchronousRounds, Programs(step, programs.communicate), topology, shapes, state_shardings(topology, shapes)
    )
    kinds = {"asynchronous": make(CoordinatedRound), "synchronous": make(InStep)}
    gather = jax.jit(lambda tree: tree, out_shardings=topology.replicated)
    shown: dict[str, Any] = {kind: [] for kind in kinds}
    end = 0
    for _ in range(repeats + 1):
        for kind, take_round in kinds.items():
            end += period
            started = time.perf_counter()
            state, _, pace = take_round(state, data, end - period, end)
            jax.block_until_ready(state)
            seconds = time.perf_counter() - started
            steps, waiting = (np.array(leaf).ravel().tolist() for leaf in gather(pace))
            shown[kind].append({"seconds": seconds, "steps": steps, "waiting": waiting})
    return {kind: rounds[1:] for kind, rounds in shown.items()}


def compare(measured: dict[str, Any], period: int, slowdown: float) -> dict[str, Any]:
    """Steps/s of both, and their ratio; the limit is what no waiting at all would give."""
    steps = PROCESSES * period
    rates = {kind: steps / statistics.median(each["seconds"] for each in rounds) for kind, rounds in measured.items()}
    return {
        "steps_per_second": rates,
        "ratio": rates["asynchronous"] / rates["synchronous"],
        "limit": (PROCESSES - 1 + 1 / slowdown) / (PROCESSES / slowdown),
        "rounds": measured,
    }


def table(result: dict[str, Any]) -> str:
    """The results for people."""
    rows = []
    for kind, rounds in result["rounds"].items():
        last = rounds[-1]
        steps, waiting = (
            ", ".join(f"{x:{form}}" for x in last[key]) for key, form in (("steps", ""), ("waiting", ".2f"))
        )
        rows.append((kind, f"{result['steps_per_second'][kind]:.1f}", steps, waiting))
    return "\n".join(
        [
            as_table(("workers", "steps/s of all", "steps of each in the last round", "seconds of waiting"), rows),
            f"ratio: {result['ratio']:.2f}; without any waiting: {result['limit']:.2f}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
