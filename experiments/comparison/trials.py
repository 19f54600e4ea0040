"""One run of a comparison, and what came of it."""

from typing import Any, NamedTuple

from lsgd_jax.training.config import Config

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


class Outcome(NamedTuple):
    """What came of a trial.

    Attributes:
      trial: the run.
      curve: the rows of its metrics.jsonl.
      summary: its summary.json, or None if all its workers were lost (it diverged).
    """

    trial: Trial
    curve: list[dict[str, Any]]
    summary: dict[str, Any] | None
