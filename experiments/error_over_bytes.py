"""Error over bytes: methods whose messages are compressed, cut into parts, and late, each beside itself in full.

Settings are chosen as by compare.py, on validation data, of the methods in full, and kept for all ways of sending: so
compression is not tuned for, unless --choose_for_each is given. Flags are those of compare.py. Each way is a comparison
of its own in a folder of --workdir, all with the same test seeds and samples; data_parallel, in full, sends at every
step, and what others send is told as a share of it. The same command goes on where it was stopped; what is finished is
not run again.
"""

import itertools
import math
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.commands.command_line import Flag, define, describe, described, parse, program_name, stoppable
from lsgd_jax.commands.compilation_cache import use_compilation_cache
from lsgd_jax.commands.cpu_devices import make_cpu_devices
from lsgd_jax.commands.settings import given_settings
from lsgd_jax.compare.command import PLAN, PROCESS, RUNS, help_of_runs
from lsgd_jax.compare.palette import line_of
from lsgd_jax.errors import ExitCode

if TYPE_CHECKING:
    from lsgd_jax.compare.evaluations import Spread
    from lsgd_jax.compare.plan import Comparison
    from lsgd_jax.compare.trials import Setting

WAYS = Flag(
    "ways", "multi_string", [], "of sending, beside that in full, as the table names them (repeat it; default: all)"
)
EACH = Flag("choose_for_each", "boolean", False, "choose settings for each way by itself, among the same")
DEFAULTS = {"methods": "lsgd,local_sgd,diloco,data_parallel", "workdir": "runs/error_over_bytes"}
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(
    FLAGS,
    (
        f._replace(default=DEFAULTS.get(f.name, f.default))
        for f in itertools.chain([WAYS, EACH], PLAN, PROCESS, *RUNS.values())
    ),
)

FULL, REFERENCE = "32 bits", "data_parallel"
FEW_BITS: dict[str, dict[str, Any]] = {
    FULL: {},
    "8 bits": {"compress": 8},
    "4 bits": {"compress": 4},
    "10 % in 8 bits": {"compress": 8, "compress_top_k": 0.1},
    "2 % in 4 bits": {"compress": 4, "compress_top_k": 0.02},
}
# These once more in two parts, each of which takes effect half a period after it has begun.
SENT_LATE, LATE, PARTS = (FULL, "4 bits", "2 % in 4 bits"), ", in 2 parts, late", 2


class Point(NamedTuple):
    """A line of error_over_bytes.csv: a run's end."""

    method: str
    sent_as: str
    seed: int
    setting: str
    steps: int
    samples: int
    bytes: int
    times_fewer: float
    validation: float
    test: float
    deployed: str
    diverged: bool


@stoppable
def main(argv: list[str], stop: StopRequest) -> int:
    """Runs the command line and returns its exit code."""
    stop.exit_code = ExitCode.STOPPED
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    from lsgd_jax.compare.running import StoppedError, forecast
    from lsgd_jax.errors import InputError, on_full_disk
    from lsgd_jax.files.lock import locked
    from lsgd_jax.files.writable import make_writable

    logging.set_verbosity(logging.FATAL)  # what libraries log would stand between our lines
    workdir, methods = pathlib.Path(str(FLAGS.workdir)), list(FLAGS.methods)
    if REFERENCE not in methods or len(methods) < 2:
        raise InputError(f"--methods={','.join(methods)}: name {REFERENCE}, to compare bytes with, and others")
    given: dict[str, Any] = given_settings(FLAGS)
    if taken := sorted(given.keys() & {"compress", "compress_top_k", "fragments", "overlap"}):
        raise InputError(f"--{taken[0]}: the ways of sending are this experiment's own: leave it out")
    make_cpu_devices()
    plans = Plans(workdir, given, {name: FLAGS[name].value for name, *_ in PLAN})
    if unknown := [way for way in FLAGS.ways if way not in plans.ways]:
        raise InputError(f"--ways={unknown[0]}: choose from {'; '.join(plans.ways)}")
    if FLAGS.ways:
        plans.ways = {way: how for way, how in plans.ways.items() if way == FULL or way in FLAGS.ways}
    full = plans.full
    for way in plans.ways:  # what one of them refuses is told before anything is run
        plans.of(way, None if FLAGS.choose_for_each else {m: full.settings[m][0] for m in methods if m != REFERENCE})
    use_compilation_cache(bool(FLAGS.compilation_cache))
    if FLAGS.dry_run:
        print(f"{len(plans.ways)} ways of sending, of which the first is\n{forecast(full)}")
        return 0
    make_writable(workdir)
    command = f"python {argv[0]} {shlex.join(argv[1:])}".rstrip()
    try:
        with locked(workdir), on_full_disk(workdir):
            points = run_all(plans, command, stop, for_each=bool(FLAGS.choose_for_each))
            write(workdir, points, full, command)
    except (StoppedError, KeyboardInterrupt) as ended:
        print(f"{program_name(argv)}: stopped; the same command goes on from here", file=sys.stderr)
        return ExitCode.STOPPED if isinstance(ended, StoppedError) else ExitCode.INTERRUPTED
    print(table(points, full))
    print(f"\nresults in {workdir}: error_over_bytes.csv, error_over_bytes.md, error_over_bytes.png")
    return 0


def usage() -> str:
    """The text of --help."""
    lines = ["usage: error_over_bytes.py [--flag=value ...]", "", described(__doc__), "", "comparison:"]
    lines += [*describe([WAYS, EACH]), *describe(PLAN), *describe(PROCESS)]
    return "\n".join([*lines, *help_of_runs()])


class Plans:
    """The comparison of each way of sending."""

    def __init__(self, workdir: pathlib.Path, given: dict[str, Any], options: dict[str, Any]) -> None:
        self.workdir, self.given, self.options, self.ways = workdir, given, options, FEW_BITS
        self.full = self.of(FULL)
        base = self.full.base
        period = base.local_period if base.groups > 1 else base.global_period
        late = {"fragments": PARTS, "overlap": max(1, period // 2)}
        self.ways = FEW_BITS | {name + LATE: FEW_BITS[name] | late for name in SENT_LATE}

    def of(self, way: str, chosen: "dict[str, Setting] | None" = None) -> "Comparison":
        """That of a way, with the methods and settings that have been chosen, or to choose among.

        Raises:
          InputError: if anything is wrong with it.
        """
        from lsgd_jax.compare.plan import make_plan

        options = dict(self.options)
        if chosen is not None:
            options["methods"] = list(chosen)
            varied = [(m, flag, value) for m, setting in chosen.items() for flag, value in setting]
            shown = {True: "true", False: "false"}
            options["vary"] = [f"{m}.{flag}={shown.get(v, v) if isinstance(v, bool) else v}" for m, flag, v in varied]
        elif way != FULL:
            options["methods"] = [method for method in options["methods"] if method != REFERENCE]
            options["vary"] = [text for text in options["vary"] if not text.startswith(f"{REFERENCE}.")]
        folder = self.workdir / way.replace(", ", "_").replace(" ", "_").replace("%", "percent")
        return make_plan(self.given | self.ways[way] | {"workdir": str(folder)}, **options)


def run_all(plans: Plans, command: str, stop: StopRequest, *, for_each: bool) -> list[Point]:
    """Runs what has not been run, and returns the ends of all test runs."""
    from lsgd_jax.compare.running import compare
    from lsgd_jax.errors import InputError

    compare(plans.full, [command], stop)
    chosen = _chosen(plans.full)
    if diverged := [method for method in plans.full.settings if method not in chosen]:
        raise InputError(f"every setting of {diverged[0]} diverged: vary others")
    points = list(_ends(FULL, plans.full, chosen))
    sent_by_reference = next(point.bytes for point in points if point.method == REFERENCE)
    others = {method: setting for method, setting in chosen.items() if method != REFERENCE}
    for way in list(plans.ways)[1:]:
        print(f"\n# {way}", flush=True)
        plan = plans.of(way, None if for_each else others)
        compare(plan, [command], stop)
        points += _ends(way, plan, _chosen(plan))  # of a method that diverges with every setting none
    return [
        point._replace(times_fewer=sent_by_reference / point.bytes if point.bytes else math.inf) for point in points
    ]


def _chosen(plan: "Comparison") -> "dict[str, Setting]":
    from lsgd_jax.compare.running import chosen_so_far

    return {method: setting for method, setting in chosen_so_far(plan).items() if setting is not None}


def _ends(way: str, plan: "Comparison", chosen: "dict[str, Setting]") -> Iterator[Point]:
    from lsgd_jax.accounting.network import NETWORKS
    from lsgd_jax.compare.evaluations import evaluate_all
    from lsgd_jax.compare.trials import finished

    outcomes = [outcome for trial in plan.test(chosen) if (outcome := finished(trial, plan.metric))]
    for trial, evaluations, _ in evaluate_all(outcomes, NETWORKS[plan.network], plan.compute_seconds or 1.0):
        end = evaluations[-1]
        assert end.test is not None
        setting = " ".join(f"{flag}={value}" for flag, value in trial.varied)
        run = trial.method, way, trial.seed, setting, end.step, end.samples, end.bytes
        errors = end.validation.deployed, end.test.deployed
        yield Point(
            *run, times_fewer=0.0, validation=errors[0], test=errors[1], deployed=end.deployed, diverged=end.diverged
        )


def write(workdir: pathlib.Path, points: Sequence[Point], full: "Comparison", command: str) -> None:
    """Writes the points, the table and the figure."""
    import jax

    from lsgd_jax.files.files import write_csv, write_whole
    from lsgd_jax.trainer.provenance import commit

    write_csv(workdir / "error_over_bytes.csv", Point._fields, points, digits=6)
    seeds, device = ", ".join(map(str, full.test_seeds)), f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    about = f"`{command}`, test seeds {seeds}; commit {commit()}, jax {jax.__version__}, {device}."
    write_whole(workdir / "error_over_bytes.md", f"{about}\n\n{table(points, full)}\n")
    draw(workdir / "error_over_bytes.png", points, full)


def table(points: Sequence[Point], full: "Comparison") -> str:
    """Markdown: a line for each method and way, with the distance to itself in full in its standard deviations."""
    from lsgd_jax.compare.evaluations import spread

    metric = full.metric

    def shown(errors: "Spread") -> str:
        return f"{metric.shown(errors.mean)} ± {metric.shown(errors.deviation)}"

    lines = [
        f"| method | sent as | MB | times fewer than {REFERENCE} | test {metric.title} | in full | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    grouped = _grouped(points)
    for (method, way), here in grouped.items():
        errors, of_full = (spread([p.test for p in group]) for group in (here, grouped[method, FULL]))
        first = here[0]
        away = (errors.mean - of_full.mean) / of_full.deviation if of_full.deviation else float("nan")
        lines.append(
            f"| {method} | {way} | {first.bytes / 1e6:.3g} | {first.times_fewer:,.0f} | {shown(errors)} "
            f"| {shown(of_full)} | {away:+.1f} standard deviations |"
        )
    return "\n".join(lines)


def _grouped(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    grouped: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.method, point.sent_as), []).append(point)
    return grouped


def draw(path: pathlib.Path, points: Sequence[Point], full: "Comparison") -> None:
    """Draws test error over bytes: a line for each method, at once and late."""
    from matplotlib.figure import Figure

    from lsgd_jax.compare.evaluations import spread

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    grouped = _grouped(points)
    for method in dict.fromkeys(point.method for point in points):
        for number, ending in enumerate(("", LATE)):
            ways = [w for (m, w) in grouped if m == method and w.endswith(LATE) == bool(ending)]
            spreads = [spread([point.test for point in grouped[method, way]]) for way in ways]
            sent = [grouped[method, way][0].bytes / 1e6 for way in ways]
            if ways:
                style = line_of(method, number) | {"label": method + ending}
                scale = full.metric.scale
                axes.errorbar(
                    sent, [scale * s.mean for s in spreads], [scale * s.deviation for s in spreads], capsize=2, **style
                )
    axes.set_xscale("log")
    axes.set_xlabel("sent by all workers together [MB]")
    axes.set_ylabel(f"test {full.metric.title}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
