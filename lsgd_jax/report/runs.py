"""What runs have left in their folders, finished or not."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from lsgd_jax.config.kinds import metric_named
from lsgd_jax.config.saved import read_settings
from lsgd_jax.config.summary import read_summary
from lsgd_jax.errors import InputError
from lsgd_jax.files.files import is_there, read_json
from lsgd_jax.tasks.metric import SPLITS, Metric
from lsgd_jax.trainer.conditions import FILE as CONDITIONS
from lsgd_jax.trainer.live import GENERATIONS
from lsgd_jax.trainer.provenance import FILE as COMPUTED_WITH
from lsgd_jax.trainer.provenance import PACKAGES
from lsgd_jax.trainer.records import (
    Incident,
    LeaderRow,
    WorkerRow,
    read_incidents,
    read_leaders,
    read_metrics,
    read_workers,
)

METRICS = "metrics.jsonl"
REMEDY = "leave this run out, or restore it"
# Of a summary, what a run was computed with.
ENVIRONMENT = ("device", "processes", "commit", "python", *PACKAGES)
# Settings that say where a run lies, not what it is.
PLACES = ("workdir", "data_dir", "download")


class ShownRun(NamedTuple):
    """A run.

    Attributes:
      name: what tells it from the others.
      folder: where it lies.
      metric: by which its models are judged.
      settings: those it was started with.
      environment: what it was computed with; what is known before it is finished.
      summary: what came of it; None until it is finished.
      metrics: its evaluations, the rows of metrics.jsonl.
      leaders: its elections.
      workers: their scores at evaluations.
      incidents: what happened that does not in every run.
      generations: who was there, by the rows of generations.csv; none where no process may die.
    """

    name: str
    folder: pathlib.Path
    metric: Metric
    settings: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    leaders: list[LeaderRow]
    workers: list[WorkerRow]
    incidents: list[Incident]
    generations: list[dict[str, str]]


def read_runs(paths: Sequence[pathlib.Path]) -> list[ShownRun]:
    """The runs in folders, or in folders of these, in order; without those that have no evaluation yet.

    Raises:
      InputError: if there is none, or one cannot be read.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _folders(path)))
    evaluated = {folder: rows for folder in folders if (rows := read_metrics(folder))}
    if not evaluated:
        raise InputError(f"{folders[0]} has no evaluation yet: wait for its first")
    names = _names(list(evaluated))
    return [_read(folder, name, rows) for name, (folder, rows) in zip(names, evaluated.items(), strict=True)]


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    path = path.resolve()
    found = [path] if is_there(path / METRICS) else sorted(file.parent for file in path.rglob(METRICS))
    if not found:
        raise InputError(f"{path} has no {METRICS}: give the --workdir of a run, or a folder of runs")
    return found


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Their paths, without what is the same in all."""
    if len(folders) == 1:
        return [folders[0].name]
    depth = 0
    while len({folder.parts[: depth + 1] for folder in folders}) == 1:
        depth += 1
    return ["/".join(folder.parts[depth:]) for folder in folders]


def _read(folder: pathlib.Path, name: str, metrics: list[dict[str, Any]]) -> ShownRun:
    summary = read_summary(folder, REMEDY)
    settings = read_settings(folder, REMEDY) if is_there(folder / "config.json") else {}
    metric = metric_named(summary["metric"]) if summary else _metric_in(metrics[-1])
    known = read_json(folder / COMPUTED_WITH, REMEDY) if is_there(folder / COMPUTED_WITH) else {}
    environment = {key: (summary or known).get(key) for key in ENVIRONMENT}
    if is_there(folder / CONDITIONS):
        environment |= read_json(folder / CONDITIONS, REMEDY)
    leaders = read_leaders(folder) if is_there(folder / "leaders.csv") else []
    arguments = settings.pop("arguments", {})  # a Trainer's method has been given them
    settings = {key: value for key, value in settings.items() if key not in PLACES} | arguments
    happened = read_incidents(folder), _generations(folder)
    return ShownRun(
        name, folder, metric, settings, environment, summary, metrics, leaders, read_workers(folder), *happened
    )


def _metric_in(row: dict[str, Any]) -> Metric:
    """The metric that a row begins with, after what each has."""
    names = [name.partition("_")[2] for name in row if name.startswith(tuple(f"{split}_" for split in SPLITS))]
    return metric_named(names[0] if names else "loss")


def _generations(folder: pathlib.Path) -> list[dict[str, str]]:
    path = folder / GENERATIONS
    if not is_there(path):
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
