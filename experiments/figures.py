"""Draws the paper's figures from finished runs: error over steps and seconds, and who led when and how often.

--runs names folders of runs, or folders of folders, as a comparison leaves them. Runs that differ in nothing but
their seed are one line: the mean, and the range. The error (of text: bits per byte) is that of the center, as in the
paper, where the settings do not say otherwise.
"""

import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from lsgd_jax.commands.command_line import Flag, command, define, described, parse, refuse, usage_of
from lsgd_jax.compare.palette import in_order, line_of
from lsgd_jax.trainer.colours import GREY

if TYPE_CHECKING:
    from lsgd_jax.tasks.metric import Metric
    from lsgd_jax.trainer.records import LeaderRow

TABLE = (
    Flag("runs", "paths", [], "folders of finished runs, or of folders of them"),
    Flag("workdir", "path", "runs/figures", "folder for the figures and their points"),
    Flag("model", "string", "center", "center, or leader: whose error is drawn"),
    Flag("split", "string", "test", "test or validation: of which split"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)

# What may differ between the runs of one line.
OF_A_SEED = ("seed", "workdir", "data_dir", "download", "checkpoint_every")


class DrawnRun(NamedTuple):
    """A finished run: its folder, settings, the name of what it is judged by, evaluations and elections."""

    folder: pathlib.Path
    config: dict[str, Any]
    metric: str
    metrics: list[dict[str, Any]]
    leaders: "list[LeaderRow]"


class Line(NamedTuple):
    """The runs of one setting, and what tells it from the others."""

    name: str
    runs: list[DrawnRun]


class Point(NamedTuple):
    """A row of error.csv, or what the metric is called: an evaluation, over the seeds of a setting.

    Seconds are of training, or simulated ones where workers have given speeds.
    """

    line: str
    step: int
    seconds: float
    mean: float
    lowest: float
    highest: float


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    for name, choices in (("model", ("center", "leader")), ("split", ("test", "validation"))):
        if FLAGS[name].value not in choices:
            return refuse(argv, f"unknown --{name}={FLAGS[name].value}: choose one of {', '.join(choices)}")
    if not FLAGS.runs:
        return refuse(argv, "--runs is empty: name folders of finished runs")
    runs: list[DrawnRun] = []
    for folder in FLAGS.runs:
        found = read_runs(pathlib.Path(folder))
        if not found:
            return refuse(argv, f"--runs: there is no finished run with evaluations on its way in {folder}")
        runs += found
    names = sorted({run.metric for run in runs})
    if len(names) > 1:
        return refuse(argv, f"--runs has runs that are judged by {' and by '.join(names)}: draw them apart")

    if len({simulated(run) for run in runs}) > 1:
        return refuse(
            argv, "--runs has runs with --worker_speeds, whose time is simulated, and others: draw them apart"
        )

    from lsgd_jax.config.kinds import metric_named  # only now: a mistyped flag is told without waiting for it

    metric = metric_named(names[0])
    workdir = pathlib.Path(str(FLAGS.workdir))
    lines = group(runs)
    points = [point for line in lines for point in curve(line, str(FLAGS.model), str(FLAGS.split), metric)]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        table, figure = workdir / f"{metric.name}.csv", workdir / f"{metric.name}.png"
        write(table, points)
        draw_curves(figure, lines, points, str(FLAGS.model), metric)
        files = [table, figure, *draw_leaders(workdir, lines)]
    except OSError as error:
        return refuse(argv, f"cannot write to --workdir={workdir} ({error.strerror}): choose another folder")
    for line in lines:
        last = [point for point in points if point.line == line.name][-1]
        value = f"{metric.shown(last.mean):>6} {metric.unit or metric.label}"
        print(f"{line.name:<40} {len(line.runs)} seeds: {value} after {last.seconds:,.0f} s")
    print(f"\nresults in {workdir}: {', '.join(file.name for file in files)}")
    return 0


def usage() -> str:
    """The text of --help."""
    return usage_of("figures.py", described(__doc__), TABLE, "--runs=FOLDER,FOLDER")


def read_runs(folder: pathlib.Path) -> list[DrawnRun]:
    """The finished runs in a folder and below; those that were evaluated only once, as in a search, are left out.

    Raises:
      InputError: if one cannot be read.
    """
    from lsgd_jax.config.kinds import metric_named
    from lsgd_jax.config.saved import read_config
    from lsgd_jax.config.summary import read_summary
    from lsgd_jax.trainer.records import read_leaders, read_metrics

    runs = []
    for path in sorted(folder.rglob("summary.json")):
        where, todo = path.parent, "leave this run out, or restore the file"
        summary = read_summary(where, todo)
        assert summary is not None
        metric = summary["metric"]
        metrics = read_metrics(where, metric_named(metric).columns)
        if len(metrics) > 1:
            runs.append(DrawnRun(where, read_config(where, todo), metric, metrics, read_leaders(where)))
    return runs


def simulated(run: DrawnRun) -> bool:
    """Whether its workers have given speeds, so that its time is simulated."""
    return "simulated_seconds" in run.metrics[0]


def group(runs: Sequence[DrawnRun]) -> list[Line]:
    """Runs that differ only in their seed, each named by its method and by what differs among those of the method."""
    by_setting: dict[str, list[DrawnRun]] = {}
    for run in runs:
        setting = {name: value for name, value in run.config.items() if name not in OF_A_SEED}
        by_setting.setdefault(json.dumps(setting, sort_keys=True), []).append(run)
    settings = {key: json.loads(key) for key in by_setting}
    lines = []
    for key, members in by_setting.items():
        method = settings[key]["algorithm"]
        rivals = [setting for setting in settings.values() if setting["algorithm"] == method]
        labels = [
            f"{name} {settings[key][name]}" for name in settings[key] if len({str(r.get(name)) for r in rivals}) > 1
        ]
        lines.append(Line(", ".join([method, *labels]), members))
    order = in_order(setting["algorithm"] for setting in settings.values())
    return sorted(lines, key=lambda line: order.index(line.runs[0].config["algorithm"]))


def curve(line: Line, model: str, split: str, metric: "Metric") -> list[Point]:
    """The metric at the steps at which all seeds were evaluated; its worst where it is not finite."""
    column = f"{'leader_' if model == 'leader' else ''}{split}"
    by_step: dict[int, list[dict[str, Any]]] = {}
    for run in line.runs:
        for row in run.metrics:
            by_step.setdefault(row["step"], []).append(row)
    points = []
    for step, rows in sorted(by_step.items()):
        if len(rows) == len(line.runs):
            errors = [metric.read(row, column) for row in rows]
            seconds = sum(row.get("simulated_seconds", row["seconds"]) for row in rows) / len(rows)
            points.append(Point(line.name, step, seconds, sum(errors) / len(errors), min(errors), max(errors)))
    return points


def write(path: pathlib.Path, points: Sequence[Point]) -> None:
    """Writes the points as CSV."""
    from lsgd_jax.files.files import write_csv

    write_csv(path, Point._fields, points)


def draw_curves(
    path: pathlib.Path, lines: Sequence[Line], points: Sequence[Point], model: str, metric: "Metric"
) -> None:
    """The metric over steps and over seconds, a line for each setting: the mean over its seeds, and the range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    time = "simulated time [s]" if simulated(lines[0].runs[0]) else "training time [s]"
    methods = [line.runs[0].config["algorithm"] for line in lines]
    for number, line in enumerate(lines):
        mine = [point for point in points if point.line == line.name]
        style = line_of(methods[number], methods[:number].count(methods[number]), methods) | {"label": line.name}
        means = [metric.scale * point.mean for point in mine]
        band = [metric.scale * point.lowest for point in mine], [metric.scale * point.highest for point in mine]
        for panel, over in zip(
            panels, ([point.step for point in mine], [point.seconds for point in mine]), strict=True
        ):
            panel.plot(over, means, markevery=max(1, len(mine) // 8), **style)
            panel.fill_between(over, *band, color=style["color"], alpha=0.12, linewidth=0)
    for panel, label in zip(panels, ("local steps of each worker", time), strict=True):
        panel.set_xlabel(label)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{metric.label} of the {model}{metric.in_brackets}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def draw_leaders(workdir: pathlib.Path, lines: Sequence[Line]) -> list[pathlib.Path]:
    """Who led at each global communication, and how often each worker did, of the first seed of each setting."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    paths = []
    for number, line in enumerate(lines):
        run = line.runs[0]
        elections = [row for row in run.leaders if row.level == "global"]
        if not elections:
            continue
        steps, leaders = [row.step for row in elections], [row.leader for row in elections]
        workers = max(run.config["groups"] * run.config["workers"], *(leader + 1 for leader in leaders))
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        when, often = figure.subplots(1, 2, width_ratios=(3, 1))
        when.step(steps, leaders, where="post", color=GREY, linewidth=0.8)
        when.plot(steps, leaders, "o", color="black", markersize=3.5)
        when.set_xlabel("local steps of each worker")
        when.set_ylabel("leader")
        often.bar(range(workers), [leaders.count(worker) for worker in range(workers)], color=GREY, edgecolor="black")
        often.set_xlabel("worker")
        often.set_ylabel(f"times of {len(leaders)} that it led")
        when.yaxis.set_major_locator(MaxNLocator(integer=True))
        often.xaxis.set_major_locator(MaxNLocator(integer=True))
        changes = sum(before != after for before, after in itertools.pairwise(leaders))
        figure.suptitle(f"{line.name}, seed {run.config['seed']}: {changes} changes", fontsize=10)
        path = workdir / ("leaders.png" if number == 0 else f"leaders_{number}.png")
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main(sys.argv))
