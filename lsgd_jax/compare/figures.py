"""The figures of a comparison's report."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes as Panel
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from lsgd_jax.compare.evaluations import Evaluation
from lsgd_jax.compare.palette import line_of
from lsgd_jax.compare.tables import MethodResults, time_unit
from lsgd_jax.tasks.metric import Metric

Styles = dict[str, dict[str, Any]]
"""How each method is drawn, the same in all figures of a comparison."""

LEAST = 0.05  # what is less is drawn there, an error of zero for one: a logarithmic axis has no zero


class Level(NamedTuple):
    """The test errors of a method's seeds at one evaluation, in the metric's unit."""

    evaluation: Evaluation
    mean: float
    lowest: float
    highest: float


def draw_figures(workdir: pathlib.Path, methods: Sequence[MethodResults], network: str) -> list[pathlib.Path]:
    """Draws curves.png where there are test runs, and learning_rate.png and period.png where the grid varies them.

    Args:
      workdir: where to put them.
      methods: the methods and their runs.
      network: what the predicted seconds are for.

    Returns:
      The paths of the figures.
    """
    names = [method.name for method in methods]
    styles = {name: line_of(name, among=names) for name in names}
    paths = []
    if any(method.test for method in methods):
        paths.append(_draw_curves(workdir / "curves.png", methods, styles, network))
    for name, flag, label in (
        ("learning_rate.png", "learning_rate", "learning rate"),
        ("period.png", "global_period", "global period [local steps]"),
    ):
        lines = {method.name: line for method in methods if len(line := sensitivity(method, flag)) > 1}
        chosen = {
            method.name: dict(method.chosen)[flag] for method in methods if method.chosen and method.name in lines
        }
        if lines:
            paths.append(_draw_sensitivity(workdir / name, lines, styles, chosen, label, methods[0].metric))
    return paths


def levels(method: MethodResults) -> list[Level]:
    """The deployed model's test error at each evaluation that all seeds have: some may have been run with others."""
    by_step: dict[int, list[Evaluation]] = {}
    for run in method.test:
        for evaluation in run.evaluations:
            by_step.setdefault(evaluation.step, []).append(evaluation)
    found = []
    for _, same in sorted(by_step.items()):
        if len(same) < len(method.test):
            continue
        errors = [method.metric.scale * evaluation.test.deployed for evaluation in same if evaluation.test]
        found.append(Level(same[0], sum(errors) / len(errors), min(errors), max(errors)))
    return found


def sensitivity(method: MethodResults, flag: str) -> dict[Any, float]:
    """The validation error at each value of a flag, with the other flags at their best for it, by rising value."""
    best: dict[Any, float] = {}
    for setting, error in method.search_errors.items():
        if flag in dict(setting):
            value = dict(setting)[flag]
            best[value] = min(error, best.get(value, error))
    return dict(sorted(best.items()))


def _draw_curves(path: pathlib.Path, methods: Sequence[MethodResults], styles: Styles, network: str) -> pathlib.Path:
    """Test error over samples, over bytes and over predicted time: mean over seeds, and the range."""
    curves = {method.name: levels(method) for method in methods if method.test}
    time, in_time = time_unit(level.evaluation.predicted_seconds for curve in curves.values() for level in curve)
    axes: tuple[tuple[Callable[[Evaluation], float], str], ...] = (
        (lambda evaluation: evaluation.samples / 1e3, "samples of all workers [thousands]"),
        (lambda evaluation: evaluation.bytes / 1e6, "sent by all workers [MB]"),
        (lambda evaluation: evaluation.predicted_seconds / in_time, f"predicted time on {network} [{time}]"),
    )
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True)
    for panel, (x_of, label) in zip(panels, axes, strict=True):
        for name, curve in curves.items():
            _draw_curve(panel, styles[name], [(x_of(level.evaluation), level) for level in curve])
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    for panel in panels[1:]:
        panel.set_xscale("log")
        _plain_numbers(panel.xaxis)
    if any(not curve[-1].evaluation.bytes for curve in curves.values()):
        panels[1].set_title("level lines: send nothing, error at their end", fontsize=9)
    _error_axis(panels[0], "test", methods[0].metric)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
    return _save(figure, path)


def _draw_curve(panel: Panel, style: dict[str, Any], curve: list[tuple[float, Level]]) -> None:
    if not curve[-1][0]:  # sends nothing
        line = {key: value for key, value in style.items() if key not in ("marker", "markersize")}
        panel.axhline(max(LEAST, curve[-1][1].mean), **line)
        return
    curve = [(x, level) for x, level in curve if x]  # a logarithmic axis has no zero
    x = [x for x, _ in curve]
    panel.plot(x, [max(LEAST, level.mean) for _, level in curve], markevery=max(1, len(x) // 8), **style)
    lowest = [max(LEAST, level.lowest) for _, level in curve]
    highest = [max(LEAST, level.highest) for _, level in curve]
    panel.fill_between(x, lowest, highest, color=style["color"], alpha=0.12, linewidth=0)


def _draw_sensitivity(
    path: pathlib.Path,
    lines: dict[str, dict[Any, float]],
    styles: Styles,
    chosen: dict[str, Any],
    label: str,
    metric: Metric,
) -> pathlib.Path:
    """Validation error over the values of a flag, a line for each method, a ring around what was chosen."""
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    panel = figure.subplots()
    for name, line in lines.items():
        panel.plot(list(line), [max(LEAST, metric.scale * error) for error in line.values()], **styles[name])
        if name in chosen:
            y = max(LEAST, metric.scale * line[chosen[name]])
            panel.plot(chosen[name], y, "o", markersize=13, markerfacecolor="none",
                       markeredgecolor=styles[name]["color"], markeredgewidth=1.2)  # fmt: skip
    values = sorted({value for line in lines.values() for value in line})
    panel.set_xscale("log")
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    _error_axis(panel, "validation", metric)
    panel.grid(alpha=0.3)
    panel.set_xlabel(label)
    figure.legend(loc="outside right upper", frameon=False, title="ring: chosen")
    return _save(figure, path)


def _error_axis(panel: Panel, split: str, metric: Metric) -> None:
    panel.set_yscale("log")
    _plain_numbers(panel.yaxis)
    panel.set_ylabel(f"{split} {metric.label} of the deployed model{metric.in_brackets}")


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10 along a logarithmic axis, without powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=150)
    return path
