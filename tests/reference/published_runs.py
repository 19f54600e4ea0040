"""The runs of a published comparison, from the CSV files that stand beside its report."""

import csv
from pathlib import Path

from lsgd_jax.compare.evaluations import Errors, EvaluatedTrial, Evaluation
from lsgd_jax.compare.grid import TYPES
from lsgd_jax.compare.tables import MethodResults, group_by_method
from lsgd_jax.compare.trials import Setting, Trial
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import METRICS
from lsgd_jax.tasks.metric import Metric

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = sorted(RESULTS.glob("comparison_*"))


def read_published(folder: Path) -> list[MethodResults]:
    """The methods of a report and their evaluations."""
    with (folder / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    flags = columns[columns.index("seed") + 1 : columns.index("workers")]
    metric = METRICS[columns[-1].removeprefix("deployed_test_")]
    by_trial: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        by_trial.setdefault((row["method"], row["phase"], row["seed"], *(row[flag] for flag in flags)), []).append(row)
    runs = [_run(of_trial, flags, metric) for of_trial in by_trial.values()]
    chosen: dict[str, Setting | None] = {
        run.trial.method: run.trial.varied for run in runs if run.trial.phase == "test"
    }
    return group_by_method(runs, chosen)


def _run(rows: list[dict[str, str]], flags: list[str], metric: Metric) -> EvaluatedTrial:
    first = rows[0]
    varied = tuple((flag, TYPES[flag](first[flag])) for flag in flags if first[flag])
    config = Config("", algorithm=first["method"], seed=int(first["seed"]))
    trial = Trial(first["method"], varied, int(first["seed"]), first["phase"], config)
    return EvaluatedTrial(trial, tuple(_evaluation(row, metric) for row in rows), metric)


def _evaluation(row: dict[str, str], metric: Metric) -> Evaluation:
    def errors(split: str) -> Errors:
        return Errors(*(float(row[f"{model}_{split}_{metric.name}"]) for model in Errors._fields))

    return Evaluation(
        step=int(row["step"]),
        samples=int(row["samples"]),
        bytes=int(row["bytes"]),
        predicted_seconds=float(row["predicted_seconds"]),
        seconds=float(row["seconds"]) if row["seconds"] else None,
        diverged=row["diverged"] == "True",
        deployed=row["deployed"],
        validation=errors("validation"),
        test=errors("test") if row["phase"] == "test" else None,
    )
