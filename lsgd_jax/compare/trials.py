"""One run of a comparison, and what came of it."""

import pathlib
from typing import Any, NamedTuple

from lsgd_jax.config.config import Config
from lsgd_jax.config.summary import read_summary
from lsgd_jax.errors import InputError
from lsgd_jax.files.files import is_there
from lsgd_jax.tasks.metric import Metric
from lsgd_jax.trainer.records import read_metrics

# Why a run ended without a summary. It is finished: more of it would diverge again.
DIVERGED = "diverged.json"

# Flags that a grid varies, with values, in the grid's order.
Setting = tuple[tuple[str, Any], ...]


class Trial(NamedTuple):
    """One run of a comparison.

    Attributes:
      method: as in --algorithm.
      varied: the flags that the grid varies for this method, with this run's values, in the grid's order.
      seed: of the run.
      phase: "search" (settings are chosen by its validation error) or "test" (chosen settings, fresh seeds).
      config: all settings of the run.
    """

    method: str
    varied: Setting
    seed: int
    phase: str
    config: Config

    @property
    def workdir(self) -> pathlib.Path:
        """The run's folder."""
        return pathlib.Path(self.config.workdir)

    @property
    def how_to_begin_again(self) -> str:
        """What to do where something in that folder cannot be used."""
        return f"restore it, or move {self.workdir} away, and the same command trains this run again"


class TrialOutcome(NamedTuple):
    """What came of a trial.

    Attributes:
      trial: the run.
      curve: the rows of its metrics.jsonl.
      summary: its summary.json, or None if all its workers were lost (it diverged).
    """

    trial: Trial
    curve: list[dict[str, Any]]
    summary: dict[str, Any] | None


def finished(trial: Trial, metric: Metric) -> TrialOutcome | None:
    """What came of a trial, if it has been run to its end.

    Args:
      trial: the run.
      metric: by which it is judged.

    Raises:
      InputError: if that cannot be read.
    """
    workdir, todo = trial.workdir, trial.how_to_begin_again
    summary = read_summary(workdir, todo)
    if summary is None and not is_there(workdir / DIVERGED):
        return None
    curve = read_metrics(workdir, metric.columns)
    if summary is not None and (not curve or curve[-1]["step"] != summary["step"]):
        raise InputError(f"{workdir / 'metrics.jsonl'} is damaged (its last evaluation cannot be read): {todo}")
    return TrialOutcome(trial, curve, summary)
