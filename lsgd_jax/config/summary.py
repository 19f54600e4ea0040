"""summary.json: what came of a run that is finished."""

import pathlib
from typing import Any

from lsgd_jax.config.kinds import metric_named
from lsgd_jax.config.saved import has_own_task
from lsgd_jax.files.fields import Fields, check_file
from lsgd_jax.files.files import is_there, read_json
from lsgd_jax.tasks.classification import ERROR
from lsgd_jax.tasks.metric import SPLITS, Metric
from lsgd_jax.trainer.provenance import PACKAGES
from lsgd_jax.trainer.records import ROW

ALWAYS: dict[str, Any] = {
    **dict.fromkeys(("algorithm", "dataset", "model"), str),
    **dict.fromkeys(("parameters", "groups", "workers", "batch_size", "leader"), int),
    "figures": list[str],
}
# What runs of earlier versions have not told.
LATER: dict[str, Any] = {
    **{"metric": str, "unit": str, "units_per_batch": int, "device": str},
    **dict.fromkeys(("commit", "python", *PACKAGES), str | None),
}


def read_summary(workdir: pathlib.Path, todo: str) -> dict[str, Any] | None:
    """The summary of a run, which names its `metric`; None of a run that has none yet.

    Args:
      workdir: the run's folder.
      todo: what to do if it cannot be read.

    Raises:
      InputError: if it cannot be read.
    """
    path = workdir / "summary.json"
    if not is_there(path):
        return None
    summary = {"metric": ERROR.name, **read_json(path, todo)}
    check_file(path, summary, Fields({"metric": str}, others=object), todo)
    check_file(path, summary, _fields(metric_named(summary["metric"]), has_own_task(workdir, todo)), todo)
    return summary


def finished(workdir: pathlib.Path, steps: int) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do in so many steps.

    Raises:
      InputError: if it cannot be read.
    """
    summary = read_summary(workdir, "remove it, and --resume writes it again")
    return summary if summary is not None and summary["step"] >= steps else None


def _fields(metric: Metric, own_task: bool) -> Fields:
    """What those who read a summary use: the last row of metrics.jsonl, the settings, and figures of each worker."""
    of_workers = dict.fromkeys((f"worker_{name}" for name in metric.columns_of("", SPLITS)), list[float | None])
    figures = dict.fromkeys(metric.columns, float | None)
    kinds = ROW | figures | ALWAYS | LATER | of_workers
    own = (*figures, *of_workers) if own_task else ()  # it may have no test data, say
    return Fields(kinds, optional=(*LATER, *own), others=object)
