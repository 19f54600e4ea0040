"""Runs the trials of a comparison, each once, and foretells how long they take."""

import dataclasses
import pathlib
import shutil
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.compare.grid import choose
from lsgd_jax.compare.plan import Comparison
from lsgd_jax.compare.report import FILES, write_report
from lsgd_jax.compare.trials import DIVERGED, Setting, Trial, TrialOutcome, finished
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import trainer_of
from lsgd_jax.config.kinds import AnySource, kind_of
from lsgd_jax.config.train import train
from lsgd_jax.engine.numerics import fixed_numerics
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import AllWorkersLostError
from lsgd_jax.files.files import write_json
from lsgd_jax.files.writable import check_replaceable
from lsgd_jax.trainer.workdir import is_started


class StoppedError(Exception):
    """A comparison was asked to stop, and can go on."""


def compare(plan: Comparison, commands: Sequence[str], stop: StopRequest) -> list[pathlib.Path]:
    """Runs all that has not been run, and writes the report.

    A request to stop ends the run that goes on, and the comparison with it. A report of what there is then
    stands in the workdir, too.

    Returns:
      The files of the report.

    Raises:
      StoppedError: if it was asked to stop.
      InputError: if the report could not be written; nothing is run then.
    """
    check_replaceable(pathlib.Path(plan.base.workdir) / name for name in FILES)
    outcomes: list[TrialOutcome] = []
    chosen: dict[str, Setting | None] = {}
    stop.awaited = True
    try:
        search = plan.search()
        for number, trial in enumerate(search, start=1):
            outcomes.append(run(trial, plan.source, f"search {number} of {len(search)}", stop))
        chosen = choose(plan.settings, outcomes, plan.metric)
        tests = plan.test(chosen)
        for number, trial in enumerate(tests, start=1):
            outcomes.append(run(trial, plan.source, f"test {number} of {len(tests)}", stop))
    finally:
        files = _report(plan, outcomes, chosen, commands)
    return files


def chosen_so_far(plan: Comparison) -> dict[str, Setting | None]:
    """The best setting of each method whose search is over; of others as `choose` has it."""
    found = [outcome for trial in plan.search() if (outcome := finished(trial, plan.metric))]
    return choose(plan.settings, found, plan.metric)


def run(trial: Trial, source: AnySource, title: str, stop: StopRequest) -> TrialOutcome:
    """Runs a trial, goes on with it, or reads what came of it.

    Raises:
      StoppedError: if that was asked for.
    """
    metric = kind_of(source).metric
    outcome = finished(trial, metric)
    if outcome is None:
        if stop:  # perhaps at the very end of the run before
            raise StoppedError
        shown = ", ".join(f"{flag} {value}" for flag, value in trial.varied)
        print(f"\n{title}: {trial.method}, seed {trial.seed}{', ' + shown if shown else ''}", flush=True)
        resume = is_started(trial.workdir)
        try:
            # Without figures of its own: they take a quarter of the time of a small run.
            if train(trial.config, resume=resume, source=source, stop=stop, figures=False) is None:
                raise StoppedError
        except AllWorkersLostError as error:
            print(error)
            write_json(trial.workdir / DIVERGED, {"reason": str(error)})
        shutil.rmtree(trial.workdir / "checkpoints", ignore_errors=True)  # nothing will go on from them
        outcome = finished(trial, metric)
        assert outcome is not None
    return outcome


def _report(
    plan: Comparison, outcomes: Sequence[TrialOutcome], chosen: dict[str, Setting | None], commands: Sequence[str]
) -> list[pathlib.Path]:
    if not outcomes:
        return []
    seconds = plan.compute_seconds or _measured_compute_seconds(outcomes)
    workdir = pathlib.Path(plan.base.workdir)
    return write_report(workdir, outcomes, chosen, network=plan.network, compute_seconds=seconds, commands=commands)


def _measured_compute_seconds(outcomes: Sequence[TrialOutcome]) -> float:
    """Of a local step of one worker: workers that share a device take turns."""

    def of_run(config: Config, seconds: float) -> float:
        topology = Topology(config.groups, config.workers, worker_axes=config.own_axes)
        return seconds * topology.mesh.size / (config.steps * topology.size)

    measured = [of_run(each.trial.config, each.summary["seconds"]) for each in outcomes if each.summary]
    return statistics.median(measured) if measured else 1.0


class MeasuredPace(NamedTuple):
    """How fast this machine is, in seconds.

    Attributes:
      start: to build and compile a run.
      sample: to train on one.
      evaluation: of the center and the leader.
    """

    start: float
    sample: float
    evaluation: float


def forecast(plan: Comparison) -> str:
    """What would run, and for how long, after timing a few steps and an evaluation of the first method."""
    search, chosen = plan.search(), chosen_so_far(plan)
    # Where the search is not over yet, any setting takes as long.
    tests = plan.test({method: chosen.get(method, choices[0]) for method, choices in plan.settings.items()})
    pace = measure_pace((search or tests)[0].config, plan.source)
    lines, minutes = [], []
    for phase, trials in (("search", search), ("test", tests)):
        left = [trial for trial in trials if finished(trial, plan.metric) is None]
        minutes.append(sum(_seconds(trial.config, pace) for trial in left) / 60)
        for method in dict.fromkeys(trial.method for trial in trials):
            settings = list(dict.fromkeys(trial.varied for trial in trials if trial.method == method))
            total, todo = (sum(trial.method == method for trial in some) for some in (trials, left))
            which = f"{len(settings)} settings" if phase == "search" else "the chosen setting"
            lines.append(f"{phase:<8}{method:<14} {which}: {todo} of {total} runs to do")
            if phase == "search":
                lines += [f"{'':<10}{', '.join(f'{flag}={value}' for flag, value in setting)}" for setting in settings]
    lines.append(
        f"about {minutes[0]:.1f} minutes of search and {minutes[1]:.1f} minutes of test on this machine "
        f"({1 / max(pace.sample, 1e-9):,.0f} samples/s, {pace.evaluation:.1f} s an evaluation, "
        f"{pace.start:.1f} s to start a run)"
    )
    return "\n".join(lines)


def _seconds(config: Config, pace: MeasuredPace) -> float:
    """How long a run takes."""
    assert config.batch_size is not None  # the plan has set it
    samples = config.steps * config.batch_size * config.groups * config.workers
    return pace.start + samples * pace.sample + config.steps / config.evaluation_period * pace.evaluation


@fixed_numerics()
def measure_pace(config: Config, source: AnySource) -> MeasuredPace:
    """Times the start of a run, a few steps, and an evaluation."""
    started = time.monotonic()
    in_step = dataclasses.replace(config, worker_speeds=None)  # as many steps, one after the other
    built = trainer_of(in_step, source).build(config.steps)
    state = built.init_state()
    advance = built.rounds.compile(state, 0)
    state, *_ = jax.block_until_ready(advance(state, 0, 1))
    start = time.monotonic() - started
    steps = min(8, built.rounds.end(1) - 1)
    started = time.monotonic()
    state, *_ = jax.block_until_ready(advance(state, 1, 1 + steps))
    sample = (time.monotonic() - started) / (steps * built.task.batch_size * built.topology.size)
    built.task.close()

    def evaluate() -> float:
        begun = time.monotonic()
        candidates = built.candidates(state)
        for model in (candidates.center, candidates.leader):
            built.task.evaluate(model, "")
        return time.monotonic() - begun

    first, second = evaluate(), evaluate()  # the first compiles
    return MeasuredPace(start + first - second, sample, second)
