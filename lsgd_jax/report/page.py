"""The page: one file of HTML, which loads nothing."""

import datetime
import html
from collections.abc import Iterator, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from lsgd_jax.report.figures import bytes_by_level, curves, leaders, scores
from lsgd_jax.report.runs import ShownRun

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1.5rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid #eee; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.differs td { background: #fff4d6; }
.note { color: #666; font-size: 0.85rem; }
"""
CONFIGURATION = {"responsive": True, "displaylogo": False}
# What is more than this has diverged.
LARGE = 1e6
# Elections of more runs than these would make a long page.
RUNS_WITH_LEADERS = 8


def page(runs: Sequence[ShownRun], *, refresh: float | None = None) -> str:
    """The page of some runs, as HTML.

    Args:
      runs: at least one.
      refresh: seconds after which a browser is to load it again; None for never.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    again = f'<meta http-equiv="refresh" content="{refresh:g}">' if refresh else ""
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    sections = "\n".join(f"<h2>{html.escape(head)}</h2>\n{body}" for head, body in _sections(runs))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{again}'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)} · lsgd_jax</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n<body><h1>{html.escape(title)}</h1>"
        f'<p class="note">{now}. A drag zooms, a double click zooms out, the legend hides and shows.</p>\n'
        f"{sections}\n</body></html>\n"
    )


def _sections(runs: Sequence[ShownRun]) -> Iterator[tuple[str, str]]:
    yield "Runs", _table(("run", "workers", "steps", "", "center", "leader", "seconds", "MB sent"), map(_row, runs))
    for metric in {run.metric.name: run.metric for run in runs}.values():
        of_metric = [run for run in runs if run.metric.name == metric.name]
        yield metric.label, _figure(curves(of_metric, metric.name, metric.title, metric.scale))
    if any("test_loss" in run.metrics[-1] or "validation_loss" in run.metrics[-1] for run in runs):
        yield "Loss", _figure(curves(runs, "loss", "loss"))
    scored = [run for run in runs if run.workers]
    for run in scored[:RUNS_WITH_LEADERS]:
        yield "Score of each worker" + (f": {run.name}" if len(runs) > 1 else ""), _figure(scores(run))
    led = [run for run in runs if run.leaders]
    for run in led[:RUNS_WITH_LEADERS]:
        yield "Who led when" + (f": {run.name}" if len(runs) > 1 else ""), _figure(leaders(run))
    if len(led) > RUNS_WITH_LEADERS:
        yield "Who led when: other runs", f'<p class="note">{len(led) - RUNS_WITH_LEADERS} more: name fewer runs.</p>'
    yield "Bytes by level", _figure(bytes_by_level(runs))
    yield "What happened", _table(("run", "step", "what"), (row for run in runs for row in _events(run)))
    yield "Settings", _side_by_side(runs, [run.settings for run in runs])
    yield "Environment", _side_by_side(runs, [run.environment for run in runs])


def _row(run: ShownRun) -> tuple[Any, ...]:
    last, metric = run.metrics[-1], run.metric
    split = "test" if f"test_{metric.name}" in last else "validation"

    def shown(prefix: str) -> str:
        name = f"{prefix}{split}_{metric.name}"
        if name not in last:
            return "–"
        figure = metric.bounded(last[name])
        return f"{figure:.3g}" if abs(figure) > LARGE else f"{metric.shown(figure)} {metric.unit}".rstrip()

    planned = f"of {run.settings['steps']:,}" if "steps" in run.settings else "not finished"
    state = "finished" if run.summary else planned
    workers = f"{last['groups']} × {last['workers']}" if "groups" in last else "–"
    return (
        *(run.name, workers, f"{last['step']:,}", state, shown(""), shown("leader_")),
        *(f"{last['seconds']:,.1f}", f"{last['bytes_communicated'] / 1e6:,.1f}"),
    )


def _events(run: ShownRun) -> Iterator[tuple[str, str, str]]:
    """Processes that were lost and came, what the run wrote down, and what evaluations tell; in order."""
    found: list[tuple[int, str]] = [(incident.step, incident.what) for incident in run.incidents]
    for generation in run.generations:
        step, shape = int(generation["step"]), f"{generation['groups']} × {generation['workers']} workers"
        for column, what in (("lost", "lost"), ("taken_in", "taken in")):
            if who := (generation.get(column) or "").split():
                found.append((step, f"process{'es' * (len(who) > 1)} {', '.join(who)} {what}: {shape}"))
    before = None
    for row in run.metrics:
        now = f"{row.get('groups')} × {row.get('workers')} workers"
        if before not in (None, now) and not run.generations:
            found.append((row["step"], f"{now}, where there were {before}"))
        before = now
        if row.get("train_loss", 0.0) is None:
            found.append((row["step"], "the training loss is not finite"))
    yield from ((run.name, f"{step:,}", what) for step, what in sorted(found, key=lambda each: each[0]))


def _side_by_side(runs: Sequence[ShownRun], values: Sequence[dict[str, Any]]) -> str:
    """A row for each name that any run has; those in which runs differ are marked, and come first."""
    names = list(dict.fromkeys(name for of_run in values for name in of_run))
    rows = [(name, *(_value(of_run.get(name)) for of_run in values)) for name in names]
    rows = [row for row in rows if any(cell != "–" for cell in row[1:])]
    differ = [row for row in rows if len(set(row[1:])) > 1]
    same = [row for row in rows if len(set(row[1:])) == 1]
    return _table(("", *(run.name for run in runs)), differ + same, marked=len(differ))


def _value(value: Any) -> str:
    return "–" if value is None else str(value)


def _table(head: Sequence[str], rows: Any, marked: int = 0) -> str:
    """HTML of one; the first rows may be marked."""
    lines = list(rows)
    if not lines:
        return '<p class="note">nothing</p>'
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "\n".join(
        f"<tr{' class=differs' if i < marked else ''}>{''.join(map(_cell, row))}</tr>" for i, row in enumerate(lines)
    )
    return f'<div class="scroll"><table><tr>{cells}</tr>\n{body}</table></div>'


def _cell(value: Any) -> str:
    number = str(value)[:1].isdigit() and str(value).replace(",", "").replace(".", "").isdigit()
    return f"<td{' class=number' if number else ''}>{html.escape(str(value))}</td>"


def _figure(figure: Any) -> str:
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIGURATION)
    return text
