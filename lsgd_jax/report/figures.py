"""The figures of the page, for Plotly: hover tells numbers, and a drag zooms."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lsgd_jax.report.runs import ShownRun
from lsgd_jax.trainer.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)
# What a figure of metrics.jsonl begins with, how readers call it, and how it is drawn.
MODELS = (
    ("test_", "center, test", "solid"),
    ("validation_", "center, validation", "dot"),
    ("leader_test_", "leader, test", "dash"),
    ("leader_validation_", "leader, validation", "dashdot"),
)
OVER = (
    ("step", "local steps of each worker", 1),
    ("seconds", "training time [s]", 1),
    ("bytes_communicated", "sent by all workers [MB]", 1e6),
)
# Of more runs than these the center alone is drawn.
FEW = 6
LEVELS = (("local", GREEN, "circle", 5), ("global", ORANGE, "square", 9))
LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
    "height": 430,
    "font": {"family": "system-ui, sans-serif"},
}


def curves(runs: Sequence[ShownRun], figure: str, title: str, scale: float = 1.0) -> go.Figure:
    """A figure of metrics.jsonl, "error" say, of center and leader, over steps, seconds or bytes.

    Of several runs each has a colour, of one each model. What each worker has at the end of a run are single points.
    """
    drawn = go.Figure(layout=LAYOUT | {"yaxis_title": title, "xaxis_title": OVER[0][1], "hovermode": "closest"})
    axes: list[tuple[list[float], ...]] = []
    for number, run in enumerate(runs):
        for which, (prefix, label, dash) in enumerate(MODELS if len(runs) <= FEW else MODELS[:1]):
            rows = [row for row in run.metrics if row.get(f"{prefix}{figure}") is not None]
            if not rows:
                continue
            axes.append(tuple([row[column] / unit for row in rows] for column, _, unit in OVER))
            colour = COLOURS[(which if len(runs) == 1 else number) % len(COLOURS)]
            drawn.add_scatter(
                x=axes[-1][0],
                y=[scale * row[f"{prefix}{figure}"] for row in rows],
                name=label if len(runs) == 1 else f"{run.name}: {label}",
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                marker={"size": 4},
                visible=True if len(runs) == 1 or not which else "legendonly",
            )
        of_workers = [value for value in (run.summary or {}).get(f"worker_test_{figure}", []) if value is not None]
        if of_workers and len(runs) <= FEW:
            axes.append(tuple([run.metrics[-1][column] / unit] * len(of_workers) for column, _, unit in OVER))
            drawn.add_scatter(
                x=axes[-1][0],
                y=[scale * value for value in of_workers],
                name="each worker, test" if len(runs) == 1 else f"{run.name}: each worker, test",
                mode="markers",
                marker={"color": COLOURS[number % len(COLOURS)], "symbol": "line-ew-open", "size": 12},
                text=[f"worker {rank}" for rank in range(len(of_workers))],
                visible=True if len(runs) == 1 else "legendonly",
            )
    _choose_axis(drawn, axes)
    if len(runs) > 1:  # names may be long
        lines = len(axes) if len(runs) > FEW else len(runs)
        drawn.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top"}, height=460 + 22 * lines)
    return drawn


def scores(run: ShownRun) -> go.Figure:
    """The score by which each worker leads, over steps, seconds or bytes: by default its mean training loss."""
    places = {row["step"]: tuple(row[column] / unit for column, _, unit in OVER) for row in run.metrics}
    drawn = go.Figure(layout=LAYOUT | {"yaxis_title": "score", "xaxis_title": OVER[0][1], "hovermode": "closest"})
    axes: list[tuple[list[float], ...]] = []
    for rank in sorted({row.worker for row in run.workers}):
        rows = [row for row in run.workers if row.worker == rank and row.step in places]
        axes.append(tuple([places[row.step][i] for row in rows] for i in range(len(OVER))))
        drawn.add_scatter(
            x=axes[-1][0],
            y=[row.score if math.isfinite(row.score) else None for row in rows],
            name=f"worker {rank}",
            mode="lines",
            line={"color": COLOURS[rank % len(COLOURS)], "width": 1},
        )
    _choose_axis(drawn, axes)
    return drawn


def _choose_axis(drawn: go.Figure, axes: Sequence[tuple[list[float], ...]]) -> None:
    """A menu of what curves are drawn over; each has its places on every axis."""
    buttons = [
        {"label": label, "method": "update", "args": [{"x": [xs[i] for xs in axes]}, {"xaxis.title.text": label}]}
        for i, (_, label, _) in enumerate(OVER)
    ]
    drawn.update_layout(updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.18, "yanchor": "top"}])


def leaders(run: ShownRun) -> go.Figure:
    """Who led when, and how often each worker led."""
    drawn = make_subplots(
        1, 2, shared_yaxes=True, column_widths=[0.78, 0.22], subplot_titles=("elections", "how often each led")
    )
    everybody = range(max(row.leader for row in run.leaders) + 1)
    for level, colour, symbol, size in LEVELS:
        rows = [row for row in run.leaders if row.level == level]
        if not rows:
            continue
        drawn.add_scatter(
            x=[row.step for row in rows],
            y=[row.leader for row in rows],
            text=[f"score {row.score:.4g}" for row in rows],
            name=level,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": size, "opacity": 0.7},
            row=1,
            col=1,
        )
        drawn.add_bar(
            x=[sum(row.leader == rank for row in rows) for rank in everybody],
            y=list(everybody),
            orientation="h",
            marker_color=colour,
            name=level,
            showlegend=False,
            row=1,
            col=2,
        )
    drawn.update_layout(LAYOUT)
    drawn.update_yaxes(title="worker", dtick=max(1, len(everybody) // 16), row=1, col=1)
    drawn.update_xaxes(title="local steps of each worker", row=1, col=1)
    return drawn


def bytes_by_level(runs: Sequence[ShownRun]) -> go.Figure:
    """What all workers have sent, by level; "others" where a run had other numbers of workers before."""
    drawn = go.Figure(layout=LAYOUT | {"barmode": "stack", "xaxis_title": "sent by all workers [MB]"})
    names = [run.name for run in runs]
    sent = [levels_of(run) for run in runs]
    for number, level in enumerate(dict.fromkeys(level for levels in sent for level in levels)):
        values = [levels.get(level, 0) / 1e6 for levels in sent]
        drawn.add_bar(x=values, y=names, name=level, orientation="h", marker_color=COLOURS[number % len(COLOURS)])
    drawn.update_layout(height=140 + 40 * len(runs), yaxis={"autorange": "reversed", "automargin": True})
    return drawn


def levels_of(run: ShownRun) -> dict[str, float]:
    """Bytes that all workers have sent, by level where the run tells it."""
    total = run.metrics[-1]["bytes_communicated"]
    levels = dict((run.summary or {}).get("bytes_by_level", {}))
    rest = total - sum(levels.values())
    return levels | ({"others" if levels else "all levels": rest} if rest else {})
