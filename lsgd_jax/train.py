"""Trains an image classifier or a language model on many workers, with LSGD or a baseline.

Without flags: scikit-learn's handwritten digits, 2 groups of 4 workers on this machine.
"""

import contextlib
import datetime
import itertools
import math
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.commands.command_line import define, describe, described, parse, program_name, refuse, stoppable
from lsgd_jax.commands.compilation_cache import use_compilation_cache
from lsgd_jax.commands.cpu_devices import make_cpu_devices
from lsgd_jax.commands.settings import GROUPS, given_settings, methods_help, usual_help
from lsgd_jax.errors import ExitCode, InputError

if TYPE_CHECKING:
    from lsgd_jax.trainer.live import LiveRun

FLAGS = flags.FLAGS
LONGEST_WAIT = 10**6  # seconds
# A center is far behind a leader whose figure is less than so much of its own.
FAR = 0.8

define(FLAGS, itertools.chain(*GROUPS.values()))


def usage() -> str:
    """The text of --help."""
    lines = [
        "usage: python -m lsgd_jax.train [--flag=value ...]",
        "",
        described(__doc__),
        "",
        *methods_help(),
        "",
        *usual_help(),
        "",
    ]
    for group, members in GROUPS.items():
        lines += [f"{group}:", *describe(members), ""]
    lines.append("  --flagfile=FILE            read flags from a file, one a line")
    return "\n".join(lines)


@stoppable
def main(argv: list[str], stop: StopRequest) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    if FLAGS.resume == "auto":
        stop.exit_code = ExitCode.STOPPED

    if FLAGS.resume and FLAGS.workdir is None:
        return refuse(argv, "--resume needs to know the run: add its --workdir")
    if FLAGS.elastic and not FLAGS.resume:
        return refuse(argv, "--elastic is for runs that go on: add --resume and the run's --workdir")
    waits: dict[str, Any] = {name: FLAGS[name].value for name in ("connect_timeout", "heartbeat_timeout")}
    for name, seconds in waits.items():
        if not 0 < seconds <= LONGEST_WAIT:
            return refuse(argv, f"--{name}={seconds}: must be more than 0 and at most {LONGEST_WAIT:,}")

    # Only now: a mistyped flag is told without waiting for these.
    from lsgd_jax.cluster import joining

    logging.set_verbosity(logging.FATAL)  # what libraries log would stand between our lines; errors are raised too
    body = live_run if FLAGS.live else run
    return joining.guard(lambda: body(argv[0], stop), FLAGS.heartbeat_timeout)


def run(program: str, stop: StopRequest) -> int:
    """What each process does; returns its exit code."""
    from lsgd_jax.cluster import joining, processes

    joining.connect(
        FLAGS.coordinator_address,
        FLAGS.num_processes,
        FLAGS.process_id,
        FLAGS.connect_timeout,
        FLAGS.heartbeat_timeout,
        before_devices=lambda: make_cpu_devices(2 if _overlapped() else 1),  # the second carries what is under way
    )
    if processes.alone():
        make_cpu_devices()
    return train_here(program, stop)


def live_run(program: str, stop: StopRequest) -> int:
    """What each process of a run does that outlives its processes: from one generation to the next."""
    from lsgd_jax.cluster.generations import RunFinishedError, membership
    from lsgd_jax.trainer.live import LiveRun

    make_cpu_devices(2 if _is_overlapped() else 1)
    place = FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id
    with membership(*place, FLAGS.connect_timeout, FLAGS.heartbeat_timeout) as member:
        live = LiveRun(member, FLAGS.num_processes)
        while True:
            try:
                live.join()
                return train_here(program, stop, live)
            except RunFinishedError:
                return ExitCode.DONE
            except Exception as error:
                if not member.is_over(error):
                    raise
            member.part()  # not before the error is forgotten, and what it has seen


def train_here(program: str, stop: StopRequest, live: "LiveRun | None" = None) -> int:
    """Trains, now that the processes know each other; returns the exit code."""
    from lsgd_jax.cluster import processes

    stop.awaited = not processes.alone()  # others wait for this process: they end together, or go on

    from lsgd_jax.config.checks import load_config
    from lsgd_jax.config.config import read_worker_axes
    from lsgd_jax.config.methods import METHODS, unused_by
    from lsgd_jax.config.train import train
    from lsgd_jax.engine.compiler import why_bfloat16_is_slow
    from lsgd_jax.trainer.workdir import is_started

    given = given_settings(FLAGS)
    known = live.workdir if live is not None else None
    workdir: str = str(FLAGS.workdir or processes.from_main(lambda: known or _default_workdir()))
    goes_on = live is not None and live.generation.number > 1
    again = FLAGS.resume == "auto" or goes_on  # the same command, until the run is finished
    resume = processes.from_main(lambda: is_started(pathlib.Path(workdir))) if again else FLAGS.resume
    axes = processes.together(lambda: read_worker_axes(given.get("worker_axes")))
    if live is not None and axes:
        raise InputError("--live does not go with --worker_axes: a worker lives in one process")
    in_all = None if live is None else live.count
    shape = {} if resume else processes.default_shape(given, math.prod(axes.values()), in_all)
    config = processes.together(lambda: load_config(workdir, shape | given | {"workdir": workdir}, resume=resume))
    use_compilation_cache(FLAGS.compilation_cache)
    if config.compute_dtype == "bfloat16" and (reason := why_bfloat16_is_slow(processes.devices()[0].platform)):
        processes.say(f"note: --compute_dtype=bfloat16 is no faster than float32 here: {reason}")
    own = "" if config.algorithm in METHODS else ", whose arguments are given by --method_args"
    notes = [f"--{name} is not used by {config.algorithm}{own}" for name in unused_by(config.algorithm, given)]
    how: Any = {"notes": notes, "profile_dir": FLAGS.profile_dir, "wandb": FLAGS.wandb, "stop": stop, "live": live}
    try:
        with _live_report(workdir):
            summary = train(config, resume=resume, elastic=(FLAGS.elastic or goes_on) and resume, **how)
    except KeyboardInterrupt:
        hint = _how_to_resume(program, workdir) if is_started(pathlib.Path(workdir)) else "nothing is saved"
        print(f"{program_name([program])}: interrupted\n{hint}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    processes.say(_how_to_resume(program, workdir) if summary is None else table(summary, config.workdir))
    return ExitCode.STOPPED if summary is None and FLAGS.resume == "auto" else ExitCode.DONE


def _live_report(workdir: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a page of the run fresh, in the main process, if that was asked for."""
    from lsgd_jax.cluster import processes

    if not (FLAGS.live_report and processes.is_main()):
        return contextlib.nullcontext()
    from lsgd_jax.report.live import kept_fresh

    return kept_fresh(pathlib.Path(workdir))


def _overlapped() -> bool:
    """Whether communications are overlapped, as the flags say, or the run that goes on; the same in all processes."""
    from lsgd_jax.cluster import processes

    return processes.from_main(_is_overlapped)


def _is_overlapped() -> bool:
    from lsgd_jax.config.saved import read_config
    from lsgd_jax.trainer.workdir import is_started

    workdir = pathlib.Path(str(FLAGS.workdir or ""))
    goes_on = (FLAGS.resume or FLAGS.live) and FLAGS.workdir and is_started(workdir)
    saved = read_config(workdir) if goes_on else {}
    return given_settings(FLAGS).get("overlap", saved.get("overlap")) is not None


def table(summary: dict[str, Any], workdir: str) -> str:
    """The table at the end of a run."""

    from lsgd_jax.config.kinds import metric_named
    from lsgd_jax.tasks.metric import SPLITS

    metric = metric_named(summary.get("metric", "error"))

    splits = [split for split in SPLITS if f"{split}_{metric.name}" in summary]

    def shown(model: str) -> str:
        return "".join(cell(summary[f"{model}{split}_{metric.name}"]) for split in splits)

    def cell(figure: float | None) -> str:
        return f"{metric.shown(metric.bounded(figure))} {metric.unit}".rstrip().rjust(12)

    samples = f"{summary.get('units_per_batch', summary['batch_size']):,} {summary.get('unit', 'images')}"
    setting = (
        f"{summary['algorithm']} on {summary['dataset']}: {summary['model']}, {summary['parameters']:,} parameters, "
        f"{summary['groups']} × {summary['workers']} workers, {summary['step']} steps of {samples}, "
        f"{summary['seconds']:.1f} s, {summary['bytes_communicated'] / 1e6:,.1f} MB sent"
    )
    best = metric.best(summary)
    leader = f"leader ({summary['leader']})"
    marks = {name: "  best" if name == best and "validation" in splits else "" for name in ("center", "leader")}
    lines = [
        "",
        setting,
        f"{metric.label:<16}" + "".join(f"{split:>12}" for split in splits),
        f"{'center':<16}{shown('')}{marks['center']}",
        f"{leader:<16}{shown('leader_')}{marks['leader']}",
    ]
    of_workers = (summary[f"worker_{split}_{metric.name}"] for split in splits)
    for rank, figures in enumerate(zip(*of_workers, strict=True)):
        lines.append(f"{f'worker {rank}':<16}" + "".join(map(cell, figures)))
    if "validation" in splits and metric.read(summary, "leader_validation") < FAR * metric.read(summary, "validation"):
        lines += [
            "",
            "the center is far behind the leader: a shorter --global_period, a stronger pull or a stale one help",
        ]
    lines += ["", f"results in {workdir}: " + ", ".join(["metrics.jsonl", "leaders.csv", *summary["figures"]])]
    page = f"{shlex.quote(sys.executable)} -m lsgd_jax.report {shlex.quote(workdir)}"
    if FLAGS.live_report:
        page = (pathlib.Path(workdir) / "report.html").resolve().as_uri()
    lines.append(f"as a page for a browser: {page}")
    return "\n".join(lines)


def _default_workdir() -> str:
    """A name of its own for each run, also for those that a scheduler starts all at once."""
    from lsgd_jax.files.files import file_name

    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    data = pathlib.Path(FLAGS.text_file).stem if FLAGS.text_file else FLAGS.dataset.replace("/", "-")
    return str(pathlib.Path("runs") / file_name(f"{now}-{data}-{FLAGS.algorithm}"))


def _how_to_resume(program: str, workdir: str) -> str:
    flags = [
        f"--workdir={workdir}",
        "--resume",
        *(f"--{name}" for name in ("live_report", "wandb") if FLAGS[name].value),
    ]
    return f"to go on: {shlex.quote(sys.executable)} {program} {shlex.join(flags)}"


if __name__ == "__main__":
    sys.exit(main(["-m lsgd_jax.train", *sys.argv[1:]]))
