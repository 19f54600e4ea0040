"""The figures of one run."""

import pathlib
from typing import Any

from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lsgd_jax.tasks.metric import Metric
from lsgd_jax.trainer.colours import BLUE, GREEN, ORANGE
from lsgd_jax.trainer.records import LeaderRow

CURVES = (
    ("test", "center, test", BLUE, "-"),
    ("validation", "center, validation", BLUE, ":"),
    ("leader_test", "leader, test", ORANGE, "-"),
    ("leader_validation", "leader, validation", ORANGE, ":"),
)


def draw_figures(
    folder: pathlib.Path, metrics: list[dict[str, Any]], leaders: list[LeaderRow], workers: int, metric: Metric
) -> list[pathlib.Path]:
    """Draws error.png (or what the metric is called) and, where leaders were elected, leaders.png.

    Args:
      folder: where to put them.
      metrics: the rows of metrics.jsonl.
      leaders: the rows of leaders.csv.
      workers: of all groups.
      metric: of metrics.jsonl, what to draw.

    Returns:
      The paths of the figures.
    """
    folder.mkdir(exist_ok=True)
    paths = [_draw_metric(folder / f"{metric.name}.png", metrics, metric)]
    if leaders:
        paths.append(_draw_leaders(folder / "leaders.png", leaders, workers))
    return paths


def _draw_metric(path: pathlib.Path, metrics: list[dict[str, Any]], metric: Metric) -> pathlib.Path:
    """The metric over steps, over seconds, and over bytes communicated."""
    axes = (
        ("step", "local steps of each worker", 1.0),
        ("seconds", "training time [s]", 1.0),
        ("bytes_communicated", "sent by all workers [MB]", 1e6),
    )
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (column, label, unit) in zip(panels, axes, strict=True):
        for split, legend, colour, style in CURVES:
            if f"{split}_{metric.name}" not in metrics[-1]:
                continue
            x = [row[column] / unit for row in metrics]
            y = [metric.scale * metric.read(row, split) for row in metrics]
            panel.plot(x, y, style, color=colour, label=legend, marker="o", markersize=2.5)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(metric.title)
    panels[0].set_ylim(bottom=0)
    if panels[0].lines:
        panels[0].legend(fontsize=8)
    return _save(figure, path)


def _draw_leaders(path: pathlib.Path, leaders: list[LeaderRow], workers: int) -> pathlib.Path:
    """Who led when, and how often each worker led."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    when, often = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    levels = (("local", GREEN, "o", 3), ("global", ORANGE, "s", 6))
    offset = -0.2
    everybody = range(max(workers, *(row.leader + 1 for row in leaders)))  # there may have been more
    for level, colour, marker, size in levels:
        rows = [row for row in leaders if row.level == level]
        if not rows:
            continue
        when.plot([row.step for row in rows], [row.leader for row in rows], marker, color=colour, markersize=size,
                  label=f"{level} leader", linestyle="none", alpha=0.8)  # fmt: skip
        times = [sum(row.leader == worker for row in rows) for worker in everybody]
        often.barh([worker + offset for worker in everybody], times, 0.4, color=colour, label=f"{level} leader")
        offset += 0.4
    when.set_xlabel("local steps of each worker")
    when.set_ylabel("worker")
    often.set_xlabel("times elected")
    for panel in (when, often):
        _whole_numbers(panel)
    often.legend(fontsize=8)
    return _save(figure, path)


def _whole_numbers(panel: Panel) -> None:
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=150)
    return path
