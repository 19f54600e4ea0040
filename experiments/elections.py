"""How often the best worker leads: before each election all workers are judged on the whole validation set.

Runs of LSGD with the settings of train.py; a step before each election among all workers the
validation loss of each is measured, and beside it stands who was elected. Written is elections.csv, a line an election.
"""

import contextlib
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from lsgd_jax.commands.command_line import Flag, command, define, describe, described, parse
from lsgd_jax.commands.compilation_cache import use_compilation_cache
from lsgd_jax.commands.cpu_devices import make_cpu_devices
from lsgd_jax.commands.settings import given_settings
from lsgd_jax.compare.command import RUNS, help_of_runs

if TYPE_CHECKING:
    from lsgd_jax.config.config import Config

OWN = (
    Flag("seeds", "list", ["1", "2", "3"], "of the runs"),
    Flag("every", "integer", 1, "of so many elections one is looked at"),
    Flag("workdir", "path", "runs/elections", "folder for elections.csv"),
    Flag("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, itertools.chain(OWN, *RUNS.values()))


class Ballot(NamedTuple):
    """A line of elections.csv.

    Attributes:
      seed: of the run.
      step: of the election.
      leader: who was elected.
      place: of the leader among all workers by their validation losses, from 1, the lowest, on.
      behind: its validation loss less the lowest, in nats.
      spread: the highest validation loss less the lowest.
    """

    seed: int
    step: int
    leader: int
    place: int
    behind: float
    spread: float


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    from lsgd_jax.config.checks import load_config
    from lsgd_jax.errors import InputError
    from lsgd_jax.files.files import write_csv
    from lsgd_jax.files.writable import make_writable

    logging.set_verbosity(logging.ERROR)  # libraries' warnings would stand between our lines
    every: Any = FLAGS.every
    if every < 1 or not all(seed.isdigit() for seed in FLAGS.seeds):
        raise InputError(f"--every={every} --seeds={','.join(FLAGS.seeds)}: give whole numbers, --every of at least 1")
    workdir = pathlib.Path(str(FLAGS.workdir))
    given: dict[str, Any] = given_settings(FLAGS)
    runs: list[dict[str, Any]] = [
        {"seed": int(seed), "workdir": str(workdir / f"seed={seed}")} for seed in FLAGS.seeds
    ]  # none leaves files
    configs = [load_config(run["workdir"], given | run, resume=False) for run in runs]
    make_cpu_devices()
    use_compilation_cache(bool(FLAGS.compilation_cache))
    make_writable(workdir)
    found: list[Ballot] = []
    for config in configs:
        found += (of_seed := list(ballots(config, every)))
        write_csv(workdir / "elections.csv", Ballot._fields, found)
        print(f"seed {config.seed}: {told(of_seed)}", flush=True)
    workers = configs[0].groups * configs[0].workers
    print(f"all: {told(found)}; by chance the best would lead in {1 / workers:.0%}")
    return 0


def usage() -> str:
    """The text of --help."""
    lines = ["usage: elections.py [--flag=value ...]", "", described(__doc__), "", "elections:"]
    return "\n".join([*lines, *describe(OWN), *help_of_runs()])


def ballots(config: "Config", every: int) -> Iterator[Ballot]:
    """Trains, and tells of each election among all workers, or of one in so many.

    Raises:
      InputError: if there is no validation data.
    """
    import jax

    from lsgd_jax.config.checks import check_settings
    from lsgd_jax.config.from_config import trainer_of
    from lsgd_jax.engine.numerics import fixed_numerics
    from lsgd_jax.errors import InputError
    from lsgd_jax.tasks.evaluation import SplitEvaluation
    from lsgd_jax.trainer.candidates import every_worker

    source = check_settings(config, pathlib.Path(config.workdir), resume=False, elastic=False)
    with fixed_numerics(), contextlib.ExitStack() as held:
        run = trainer_of(config, source).build(config.steps)
        held.callback(run.task.close)
        evaluate = run.task.evaluate
        if not isinstance(evaluate, SplitEvaluation) or "validation" not in evaluate.splits:
            raise InputError(f"--task={config.task} has no validation data to judge workers on: give it some")
        judge = evaluate.splits["validation"].figures
        state, step = run.init_state(), 0
        advance = run.rounds.compile(state, step)
        while step < config.steps:
            end = run.rounds.end(step)
            losses: Sequence[float] = []
            if end % (every * config.global_period) == 0:
                if end - step > 1:  # where calls are cut changes nothing
                    state, _, _ = advance(state, step, end - 1)
                    step = end - 1
                figures = [judge(worker) for worker in every_worker(state, run.topology)]
                losses = [float(of.get("loss", of.get(run.task.metric.name))) for of in figures]
            state, report, _ = advance(state, step, end)
            step = end
            if losses:
                elected: Any = report.elections["global"].leader
                yield ballot(config.seed, step, int(jax.device_get(elected.rank).flat[0]), losses)


def ballot(seed: int, step: int, leader: int, losses: Sequence[float]) -> Ballot:
    """An election, beside the workers' validation losses."""
    of_leader, best = losses[leader], min(losses)
    place = 1 + sum(loss < of_leader for loss in losses)
    return Ballot(seed, step, leader, place, of_leader - best, max(losses) - best)


def told(found: Sequence[Ballot]) -> str:
    """In how many elections the best worker led, and how far leaders were behind it."""
    count = max(len(found), 1)
    won = sum(b.place == 1 for b in found) / count
    place, behind, spread = (sum(getattr(b, name) for b in found) / count for name in ("place", "behind", "spread"))
    return (
        f"the best worker led in {won:.0%} of {len(found)} elections; the leader's mean place {place:.2f}, its loss "
        f"{behind:.4f} behind the best, and {spread:.4f} between best and worst"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
