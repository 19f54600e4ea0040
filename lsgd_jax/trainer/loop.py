"""A run from its beginning, or a checkpoint, to its results."""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.generations import GenerationOverError
from lsgd_jax.cluster.stopping import StopRequest, stop_on_signals
from lsgd_jax.engine.schedules import update_plateau
from lsgd_jax.engine.state import TrainState, state_shardings
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError, on_full_disk
from lsgd_jax.files.files import write_json
from lsgd_jax.files.lock import locked
from lsgd_jax.files.writable import check_parts
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.trainer import elastic
from lsgd_jax.trainer.candidates import Candidates
from lsgd_jax.trainer.checkpoints import CheckpointInfo, Checkpoints, NoCheckpoints
from lsgd_jax.trainer.live import LiveRun
from lsgd_jax.trainer.plan import Plan, what_changes
from lsgd_jax.trainer.profile import Profile
from lsgd_jax.trainer.progress import Progress
from lsgd_jax.trainer.provenance import FILE as ENVIRONMENT
from lsgd_jax.trainer.provenance import provenance
from lsgd_jax.trainer.records import Records, Unwritten, open_records, read_leaders, read_metrics, set_aside
from lsgd_jax.trainer.reports import RoundLog
from lsgd_jax.trainer.run import Run
from lsgd_jax.trainer.saved_models import save_model


class Position(NamedTuple):
    """How far a run has come.

    Attributes:
      state: all workers.
      step: local steps of each worker.
      seconds: wall-clock of training, without compilation, evaluation and checkpoints.
      train_loss: the workers' mean training loss over their last minibatches.
      sent_otherwise: bytes that have been communicated beyond what the run's ledger says, since
        the run has had another number of workers before.
      resized: whether the checkpoint was of other groups and workers.
    """

    state: TrainState
    step: int
    seconds: float
    train_loss: float
    sent_otherwise: int = 0
    resized: bool = False


class Way(NamedTuple):
    """How a run is gone through, and what it leaves.

    Attributes:
      workdir: the folder of its files; None to leave none.
      labels: what the summary says besides: the algorithm, the data set.
      keep_settings: writes down, in the main process, what it takes to resume.
      plan_before: reads the plan that was written down last.
      resume: whether it goes on from its newest checkpoint.
      profile_dir: a folder for a `jax.profiler` trace of the first rounds, or None.
      stop: whether to stop, where the caller listens to signals itself; awaited from the first round on.
      figures: whether to draw them, at the end.
      wandb: whether Weights & Biases has the metrics too.
      live: what this process carries from one generation of the run to the next, of a run that outlives its processes.
    """

    workdir: pathlib.Path | None
    labels: Mapping[str, Any]
    keep_settings: Callable[[], None]
    plan_before: Callable[[], Plan]
    resume: bool = False
    profile_dir: str | None = None
    stop: StopRequest | None = None
    figures: bool = True
    wandb: bool = False
    live: LiveRun | None = None


class Ended(NamedTuple):
    """What came of a run.

    Attributes:
      summary: of a run that is finished; None of one that was stopped, and can be resumed.
      metrics: the rows of metrics.jsonl.
      candidates: gathers the models at its end.
      best: "center" or "leader", which did better at the last evaluation.
    """

    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    candidates: Callable[[], Candidates]
    best: str


@contextlib.contextmanager
def own_folder(workdir: pathlib.Path | None) -> Iterator[None]:
    """Keeps the folder of a run to the processes of this run, and looks whether what is in it can be written.

    Raises:
      NotYetError: if another process trains in that folder.
      InputError: if what is in it cannot be read or written; nothing has been changed then.
      DiskFullError: if the disk of the workdir is full, in the meantime.
    """
    if workdir is None:
        yield
        return
    with contextlib.ExitStack() as held:
        processes.from_main(lambda: held.enter_context(locked(workdir)))
        processes.from_main(lambda: check_parts(workdir))
        held.enter_context(on_full_disk(workdir))
        yield


def go(build: Callable[[], Run], plan: Plan, way: Way) -> Ended:
    """Trains, after all has been checked, and leaves the results in the run's `own_folder`.

    Args:
      build: makes the run.
      plan: what it does.
      way: how to go through it.

    Raises:
      InputError: if what is in the folder cannot be read; nothing has been changed then.
      AllWorkersLostError: if no worker has finite parameters left, and no
        communication will start one again.
    """
    versions = provenance()  # now: the code may change while the run goes on
    run, workdir = build(), way.workdir
    device = f"{run.topology.mesh.size} × {run.topology.mesh.devices.flat[0].device_kind}"
    computed_with = {"device": device, "processes": jax.process_count(), **versions}
    resumed = way.resume and not (way.live and way.live.generation.step is not None)
    processes.warm_up(run.topology)

    if not way.resume:  # before the folder of checkpoints: a run that dies from here on can be resumed
        processes.from_main(way.keep_settings)
    kept = NoCheckpoints() if workdir is None else Checkpoints(workdir)
    with contextlib.closing(run.task), contextlib.closing(kept) as checkpoints:
        start = _start(plan, run, checkpoints, way.live)
        if workdir is not None:
            changes = processes.from_main(lambda: what_changes(way.plan_before(), plan, start.step))
            if start.step == 0:
                processes.from_main(lambda: set_aside(workdir))
            processes.from_main(way.keep_settings)
            processes.from_main(lambda: write_json(workdir / ENVIRONMENT, computed_with))
            if way.live is not None:
                way.live.begin(workdir, start.step, run.topology.shape)
            if resumed:
                processes.say(f"resuming {workdir} at step {start.step} of {plan.steps}")
                if changes:
                    processes.say(f"note: {changes}")
        opened = Unwritten() if workdir is None else open_records(workdir, start.step, run.task.columns, way.wandb)
        with contextlib.closing(opened) as records:
            if resumed:
                records.add_incident(start.step, "resumed from a checkpoint" if start.step else "began again")
            end = _advance(plan, run, start, records, checkpoints, way)
            if end.step < plan.steps:
                records.add_incident(end.step, "stopped, as it was asked to")
        saved = checkpoints.latest_step() or 0
    candidates = functools.cache(lambda: run.candidates(end.state))
    rows = records.rows if isinstance(records, Unwritten) else []
    metrics = rows if workdir is None else processes.from_main(lambda: read_metrics(workdir, run.task.columns))
    best = run.task.metric.best(metrics[-1]) if metrics else "center"
    if end.step < plan.steps:
        where = "with a checkpoint" if saved == end.step else f"all workers lost: to go on from step {saved}"
        where = "without a checkpoint" if workdir is None else where
        processes.say(f"stopped at step {end.step} of {plan.steps}, {where if end.step else 'before the first'}")
        return Ended(None, metrics, candidates, best)
    return Ended(_finish(plan, run, end, candidates(), metrics, computed_with, way), metrics, candidates, best)


def _start(plan: Plan, run: Run, checkpoints: Checkpoints, live: LiveRun | None) -> Position:
    """Where its processes are, or the newest checkpoint is, or the beginning."""
    if live is not None and (restored := live.restored(run)) is not None:
        return _position(run, *restored)
    step = processes.from_main(checkpoints.latest_step)
    if step is None:
        return Position(run.init_state(), 0, 0.0, math.nan)
    if step > plan.steps:
        raise InputError(f"--steps={plan.steps}: the run has a checkpoint at step {step} already, so use at least that")
    saved = checkpoints.info(step)
    if saved.shape != run.topology.shape:
        state = elastic.restore(run, checkpoints, step, saved.shape)
    else:
        shapes = run.state_shapes(run.topology.shape)
        state = checkpoints.restore(step, shapes, state_shardings(run.topology, shapes))
    return _position(run, state, saved)


def _position(run: Run, state: TrainState, saved: CheckpointInfo) -> Position:
    """Where a run goes on with a state, of which more is known."""
    step, resized = int(state.step), saved.shape != run.topology.shape
    sent_otherwise = saved.bytes_communicated - run.ledger.bytes_sent(step)
    return Position(state, step, saved.seconds, saved.train_loss, sent_otherwise, resized)


def _advance(plan: Plan, run: Run, at: Position, records: Records, checkpoints: Checkpoints, way: Way) -> Position:
    """Rounds, with evaluations and checkpoints between them, to the end or a request to stop."""
    state, step, seconds = at.state, at.step, at.seconds
    if step == plan.steps:  # stopped there by a signal, or killed before the summary
        if records.last_evaluation != step or at.resized:
            records.add_metrics(_metrics(run, at))
        return at
    units_per_step = run.topology.size * run.task.units_per_batch

    with (
        contextlib.ExitStack() as closed,
        stop_on_signals() if way.stop is None else contextlib.nullcontext(way.stop) as stop,
        Progress(step, plan.steps, run.task.unit, units_per_step, silent=not processes.is_main()) as progress,
    ):
        stop.awaited = True
        if any(processes.exchange("stop", bool(stop))):
            return at
        groups, workers = run.topology.shape
        processes.say(f"compiling {run.task.description['model']} for {groups} × {workers} workers")
        with progress.paused():
            advance = run.rounds.compile(state, step)
        profile = closed.enter_context(contextlib.closing(Profile(way.profile_dir if processes.is_main() else None)))
        beside = closed.enter_context(ThreadPoolExecutor(1, "compiling"))
        evaluation: Future[None] | None = None
        own_scores = run.task.score is None
        log = RoundLog(run.topology, records, progress, checkpoints.latest_step, own_scores=own_scores)
        agreed = _agreed(stop, run.topology, way.live)
        started, stopping = time.monotonic(), False
        while step < plan.steps and not stopping:
            if way.live is not None:
                at = at._replace(state=state, step=step, seconds=seconds + time.monotonic() - started)
                way.live.keep(state, step, _checkpoint_info(run, at))
            begin, step = step, run.rounds.end(step)
            state, report, pace = advance(state, begin, step)
            log.add(step, report, pace)
            # While the first call trains: traced here, where the caller's settings of JAX hold, and compiled beside.
            evaluation = evaluation or beside.submit(_compile, run.lower_evaluation(state))
            profile.called(state)

            stopping, regrouping = agreed(state)
            evaluating = _passed(plan.evaluation_period, begin, step) or step == plan.steps
            saving = _passed(plan.checkpoint_period, begin, step) or step == plan.steps or stopping
            if not (evaluating or saving or regrouping):
                continue
            log.catch_up()
            jax.block_until_ready(state)
            seconds += time.monotonic() - started
            with progress.paused():
                at = at._replace(state=state, step=step, seconds=seconds, train_loss=log.train_loss)
                if step == plan.steps and log.all_lost and not all_finite(run.candidates(state).center):
                    log.give_up(step)  # no communication comes any more
                if evaluating:
                    evaluation.result()
                    metrics = _metrics(run, at)
                    log.add_scores(step)
                    records.add_metrics(metrics)
                    if plan.schedule.kind == "plateau":
                        state = _lower_rate_on_plateau(state, metrics, plan.schedule.patience, run, progress)
                        at = at._replace(state=state)
                if saving and not log.all_lost:  # else the run might end, and have no good one to go back to
                    records.flush()  # first: no checkpoint is newer than the records
                    checkpoints.save(step, state, _checkpoint_info(run, at))
                if way.live is not None and regrouping and step < plan.steps:
                    way.live.keep(state, step, _checkpoint_info(run, at))
                    raise GenerationOverError
            started = time.monotonic()
    return at


def _agreed(stop: StopRequest, topology: Topology, live: LiveRun | None) -> Callable[[TrainState], tuple[bool, bool]]:
    """Makes the function that tells, after each call, whether to stop, and whether to take in who waits."""
    if live is not None:
        return live.agreed(stop, topology)
    asked = processes.agreed((stop,), topology)
    return lambda state: (asked()[0], False)


def _compile(programs: Iterable[jax.stages.Lowered]) -> None:
    """Compiles programs for those who call them later; JAX keeps them."""
    for program in programs:
        program.compile()


def _lower_rate_on_plateau(
    state: TrainState, metrics: dict[str, Any], patience: int, run: Run, progress: Progress
) -> TrainState:
    """The state after an evaluation, of the better of center and leader."""
    figure = "loss" if "validation_loss" in metrics else run.task.metric.name
    figures = (metrics[f"{model}validation_{figure}"] for model in ("", "leader_"))
    best = min((value for value in figures if math.isfinite(value)), default=math.inf)
    plateau = jax.device_put(update_plateau(state.plateau, best, patience), run.topology.replicated)
    if plateau.scale < state.plateau.scale:
        progress.write(
            f"step {int(state.step)}: validation {figure} saturates, learning rate × {float(plateau.scale):g}"
        )
    return state._replace(plateau=plateau)


def _checkpoint_info(run: Run, at: Position) -> CheckpointInfo:
    """What a checkpoint keeps besides the state."""
    return CheckpointInfo(run.topology.shape, at.seconds, at.train_loss, _sent(run, at))


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
    plan: Plan,
    run: Run,
    end: Position,
    candidates: Candidates,
    metrics: list[dict[str, Any]],
    computed_with: dict[str, Any],
    way: Way,
) -> dict[str, Any]:
    """Saves the center, the figures and, last of all, the summary, with the metric of every worker."""
    workdir, metric = way.workdir, run.task.metric
    (params, model_state), (of_leader, leader_state) = candidates.center, candidates.leader
    if workdir is not None:
        save_model(workdir, "center", params, model_state, run.task.description)
        # What a center does not keep is a worker's place in its data.
        save_model(workdir, "leader", of_leader, leader_state if model_state else {}, run.task.description)
    evaluated = run.evaluate_workers(end.state)
    of_workers = {
        f"worker_{figure}": [of_worker[figure] for of_worker in evaluated]
        for figure in metric.columns_of("", run.task.splits)
    }
    summary = {
        **metrics[-1],
        **way.labels,
        "model": run.task.description["model"],
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "groups": run.topology.groups,
        "workers": run.topology.workers,
        "bytes_by_level": run.ledger.bytes_by_level(end.step),
        "batch_size": run.task.batch_size,
        "unit": run.task.unit,
        "units_per_batch": run.task.units_per_batch,
        "metric": metric.name,
        "best": metric.best(metrics[-1]),
        "seed": plan.seed,
        **computed_with,
        **of_workers,
        "figures": [],
    }
    if workdir is None:
        return summary

    def write_summary() -> dict[str, Any]:
        drawn: list[pathlib.Path] = []
        if way.figures:
            from lsgd_jax.trainer.figures import draw_figures  # at the end: importing matplotlib takes a while

            drawn = draw_figures(workdir / "figures", metrics, read_leaders(workdir), run.topology.size, metric)
        summary["figures"] = [str(path.relative_to(workdir)) for path in drawn]
        write_json(workdir / "summary.json", summary)
        return summary

    return processes.from_main(write_summary)
