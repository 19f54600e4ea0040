"""A run from its settings to its results."""

import contextlib
import dataclasses
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax

from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.output import lasting_output
from lsgd_jax.training import elastic as elasticity
from lsgd_jax.training import processes
from lsgd_jax.training.center import save_center
from lsgd_jax.training.checkpoints import Checkpoints, Standing
from lsgd_jax.training.checks import check_settings
from lsgd_jax.training.conditions import Conditions, agreed_conditions, write_conditions
from lsgd_jax.training.config import Config
from lsgd_jax.training.errors import InputError, on_full_disk
from lsgd_jax.training.figures import draw_figures
from lsgd_jax.training.files import write_json
from lsgd_jax.training.lock import locked
from lsgd_jax.training.numerics import fixed_numerics
from lsgd_jax.training.profile import Profile
from lsgd_jax.training.progress import Progress
from lsgd_jax.training.provenance import provenance
from lsgd_jax.training.records import Records, open_records, read_leaders, read_metrics, set_aside
from lsgd_jax.training.reports import RoundLog
from lsgd_jax.training.run import Run, build_run
from lsgd_jax.training.schedules import see, what_changes
from lsgd_jax.training.state import TrainState, state_shardings
from lsgd_jax.training.stopping import StopRequest, stop_on_signals
from lsgd_jax.training.summary import finished
from lsgd_jax.training.task import Metric
from lsgd_jax.training.tasks import AnySource, kind_of
from lsgd_jax.training.workdir import read_config
from lsgd_jax.training.writable import check_parts


class Position(NamedTuple):
    """How far a run has come.

    Attributes:
      state: all workers.
      step: local steps of each worker.
      seconds: wall-clock of training, without compilation, evaluation and checkpoints.
      train_loss: the workers' mean training loss over their last minibatches.
      sent_otherwise: bytes that have been communicated beyond what the run's ledger says, since
        the run has had another number of workers before.
      resettled: whether the checkpoint was of other groups and workers.
    """

    state: TrainState
    step: int
    seconds: float
    train_loss: float
    sent_otherwise: int = 0
    resettled: bool = False


@lasting_output()
@fixed_numerics()
def train(
    config: Config,
    *,
    resume: bool = False,
    elastic: bool = False,
    profile_dir: str | None = None,
    source: AnySource | None = None,
    stop: StopRequest | None = None,
    figures: bool = True,
) -> dict[str, Any] | None:
    """Trains as the settings say, and leaves the results in `config.workdir`.

    Args:
      config: the settings.
      resume: whether to go on with the run that is in that workdir.
      elastic: whether that may be with another number of workers: that of the settings or, where
        this leaves a process without any, one that does not.
      profile_dir: a folder for a `jax.profiler` trace of the first rounds, or None.
      source: the data set of the settings, where the caller has found it already.
      stop: whether to stop, where the caller listens to signals itself; awaited from the first round on.
      figures: whether to draw them, at the end.

    Returns:
      The summary that is also in summary.json; None if the run was stopped before its end,
      by a signal or by `stop`, and is ready to be resumed.

    Raises:
      InputError: if the settings cannot work; nothing has been changed then.
      AllWorkersLostError: if no worker has finite parameters left, and no
        communication will start one again.
      DiskFullError: if the disk of the workdir is full.
    """
    workdir = pathlib.Path(config.workdir)
    processes.check_same({**dataclasses.asdict(config), "resume": resume, "elastic": elastic})
    if elastic:
        config = processes.together(lambda: elasticity.fit(config))
    source = processes.together(
        lambda: check_settings(config, workdir, resume=resume, elastic=elastic, profile_dir=profile_dir, source=source)
    )
    conditions = agreed_conditions(source)
    if elastic:
        config = processes.together(lambda: elasticity.keep_batch_size(config, read_config(workdir), source))
    if resume and (summary := processes.from_main(lambda: finished(config, workdir))):
        processes.say(
            f"the run in {workdir} is already finished, at step {summary['step']}; a larger --steps trains on"
        )
        return summary
    with contextlib.ExitStack() as held:
        processes.from_main(lambda: held.enter_context(locked(workdir)))
        processes.from_main(lambda: check_parts(workdir))
        held.enter_context(on_full_disk(workdir))
        return _train(
            config, source, conditions, workdir, resume=resume, profile_dir=profile_dir, stop=stop, figures=figures
        )


def _train(
    config: Config,
    source: AnySource,
    conditions: Conditions,
    workdir: pathlib.Path,
    *,
    resume: bool,
    profile_dir: str | None,
    stop: StopRequest | None,
    figures: bool,
) -> dict[str, Any] | None:
    """What `train` does once all is checked and the workdir is this process's own."""
    computed_with = provenance()  # now: the code may change while the run goes on
    run, metric = build_run(config, source), kind_of(source).metric
    processes.warm_up(run.topology)

    def keep_settings() -> None:
        write_json(workdir / "config.json", dataclasses.asdict(config))
        write_conditions(workdir, conditions)

    if not resume:  # before the folder of checkpoints: a run that dies from here on can be resumed
        processes.from_main(keep_settings)
    with contextlib.closing(run.task), contextlib.closing(Checkpoints(workdir)) as checkpoints:
        start = _start(config, run, checkpoints)
        before = Config(**processes.from_main(lambda: read_config(workdir)))
        changes = what_changes(before, config, start.step)
        if start.step == 0:
            processes.from_main(lambda: set_aside(workdir))
        processes.from_main(keep_settings)
        if resume:
            processes.say(f"resuming {workdir} at step {start.step} of {config.steps}")
            if changes:
                processes.say(f"note: {changes}")
        with contextlib.closing(open_records(workdir, start.step, metric.columns)) as records:
            end = _advance(config, run, start, records, checkpoints, profile_dir, stop)
        saved = checkpoints.latest_step() or 0
    if end.step < config.steps:
        where = "with a checkpoint" if saved == end.step else f"all workers lost: to go on from step {saved}"
        processes.say(f"stopped at step {end.step} of {config.steps}, {where if end.step else 'before the first'}")
        return None
    return _finish(config, run, end, workdir, metric, computed_with, figures=figures)


def _start(config: Config, run: Run, checkpoints: Checkpoints) -> Position:
    """Where the newest checkpoint is, or the beginning."""
    step = processes.from_main(checkpoints.latest_step)
    if step is None:
        return Position(run.init_state(), 0, 0.0, math.nan)
    if step > config.steps:
        raise InputError(
            f"--steps={config.steps}: the run has a checkpoint at step {step} already, so use at least that"
        )
    saved = checkpoints.standing(step)
    resettled = saved.shape != run.topology.shape
    if resettled:
        state = elasticity.restore(config, run, checkpoints, step, saved.shape)
    else:
        state = checkpoints.restore(step, run.state_shapes, state_shardings(run.topology, run.state_shapes))
    sent_otherwise = saved.bytes_communicated - run.ledger.bytes_sent(step)
    return Position(state, step, saved.seconds, saved.train_loss, sent_otherwise, resettled)


def _advance(
    config: Config,
    run: Run,
    at: Position,
    records: Records,
    checkpoints: Checkpoints,
    profile_dir: str | None,
    stop: StopRequest | None,
) -> Position:
    """Rounds, with evaluations and checkpoints between them, to the end or a request to stop."""
    state, step, seconds = at.state, at.step, at.seconds
    if step == config.steps:  # stopped there by a signal, or killed before the summary
        if records.last_evaluation != step or at.resettled:
            records.add_metrics(_metrics(run, at))
        return at
    units_per_step = run.topology.size * run.task.units_per_batch

    with (
        contextlib.ExitStack() as closed,
        stop_on_signals() if stop is None else contextlib.nullcontext(stop) as stop,
        Progress(step, config.steps, run.task.unit, units_per_step, silent=not processes.is_main()) as progress,
    ):
        stop.awaited = True
        if any(processes.exchange("stop", bool(stop))):
            return at
        processes.say(f"compiling {run.task.description['model']} for {config.groups} × {config.workers} workers")
        with progress.paused():
            advance = run.rounds.compile(state, step)
        profile = closed.enter_context(contextlib.closing(Profile(profile_dir if processes.is_main() else None)))
        log = RoundLog(run.topology, records, progress, checkpoints.latest_step)
        asked_to_stop = processes.agreed(stop, run.topology)
        started, stopping = time.monotonic(), False
        while step < config.steps and not stopping:
            begin, step = step, run.rounds.end(step)
            state, report, pace = advance(state, begin, step)
            log.add(step, report, pace)
            profile.called(state)

            stopping = asked_to_stop()
            evaluating = _passed(config.evaluation_period, begin, step) or step == config.steps
            saving = _passed(config.checkpoint_period, begin, step) or step == config.steps or stopping
            if not (evaluating or saving):
                continue
            log.catch_up()
            jax.block_until_ready(state)
            seconds += time.monotonic() - started
            with progress.paused():
                at = at._replace(state=state, step=step, seconds=seconds, train_loss=log.train_loss)
                if step == config.steps and log.all_lost and not all_finite(run.candidates(state).center):
                    log.give_up(step)  # no communication comes any more
                if evaluating:
                    metrics = _metrics(run, at)
                    records.add_metrics(metrics)
                    if config.schedule == "plateau":
                        state = _lower_rate_on_plateau(state, metrics, config.plateau_patience, run, progress)
                        at = at._replace(state=state)
                if saving and not log.all_lost:  # else the run might end, and have no good one to go back to
                    records.flush()  # first: no checkpoint is newer than the records
                    checkpoints.save(step, state, _standing(run, at))
            started = time.monotonic()
    return at


def _lower_rate_on_plateau(
    state: TrainState, metrics: dict[str, Any], patience: int, run: Run, progress: Progress
) -> TrainState:
    """The state after an evaluation, of the better of center and leader."""
    losses = (metrics["validation_loss"], metrics["leader_validation_loss"])
    best = min((loss for loss in losses if math.isfinite(loss)), default=math.inf)
    plateau = jax.device_put(see(state.plateau, best, patience), run.topology.replicated)
    if plateau.scale < state.plateau.scale:
        progress.tell(f"step {int(state.step)}: validation loss saturates, learning rate × {float(plateau.scale):g}")
    return state._replace(plateau=plateau)


def _standing(run: Run, at: Position) -> Standing:
    """What a checkpoint keeps besides the state."""
    return Standing(run.topology.shape, at.seconds, at.train_loss, _sent(run, at))


def _sent(run: Run, at: Position) -> int:
    """Bytes that all workers together have sent, since the start."""
    return run.ledger.bytes_sent(at.step) + at.sent_otherwise


def _passed(period: int, begin: int, end: int) -> bool:
    """Whether a call came to, or went over, a multiple of the period."""
    return end // period > begin // period


def _metrics(run: Run, at: Position) -> dict[str, Any]:
    """A row of metrics.jsonl: figures of the center, but for the workers' train_loss and the leader's figures."""
    candidates = run.candidates(at.state)
    return {
        "step": at.step,
        "seconds": round(at.seconds, 3),
        "groups": run.topology.groups,
        "workers": run.topology.workers,
        **run.rounds.metrics(at.step),
        "bytes_communicated": _sent(run, at),
        "train_loss": at.train_loss,
        **run.task.evaluate(candidates.center, ""),
        **run.task.evaluate(candidates.leader, "leader_"),
        "leader": int(candidates.leader_rank),
    }


def _finish(
    config: Config,
    run: Run,
    end: Position,
    workdir: pathlib.Path,
    metric: Metric,
    computed_with: dict[str, Any],
    *,
    figures: bool,
) -> dict[str, Any]:
    """Saves the center, the figures and, last of all, the summary, with the metric of every worker."""
    params, model_state = run.candidates(end.state).center
    save_center(workdir, params, model_state, run.task.description)
    evaluated = run.evaluate_workers(end.state)
    of_workers = {
        f"worker_{figure}": [of_worker[figure] for of_worker in evaluated]
        for figure in (f"validation_{metric.name}", f"test_{metric.name}")
    }
    parameters = sum(x.size for x in jax.tree.leaves(params))

    def write_summary() -> dict[str, Any]:
        metrics, leaders = read_metrics(workdir, metric.columns), read_leaders(workdir)
        drawn = draw_figures(workdir / "figures", metrics, leaders, run.topology.size, metric) if figures else []
        summary = {
            **metrics[-1],
            "algorithm": config.algorithm,
            "dataset": config.data_name,
            "model": run.task.description["model"],
            "parameters": parameters,
            "groups": config.groups,
            "workers": config.workers,
            "processes": jax.process_count(),
            "batch_size": run.task.batch_size,
            "unit": run.task.unit,
            "units_per_batch": run.task.units_per_batch,
            "metric": metric.name,
            "seed": config.seed,
            "device": f"{run.topology.mesh.size} × {run.topology.mesh.devices.flat[0].device_kind}",
            **computed_with,
            **of_workers,
            "figures": [str(path.relative_to(workdir)) for path in drawn],
        }
        write_json(workdir / "summary.json", summary)
        return summary

    return processes.from_main(write_summary)
