"""How often test runs are evaluated: often enough for a figure at equal bytes and at equal predicted time."""

import bisect
from collections.abc import Callable, Sequence

from lsgd_jax.compare.budgets import most
from lsgd_jax.compare.evaluations import Cost
from lsgd_jax.compare.trials import Setting, Trial
from lsgd_jax.config.config import Config

DENSEST = 4  # times as many evaluations as asked for, at most


def evaluation_periods(trials: Sequence[Trial], cost_of: Callable[[Config], Cost]) -> dict[tuple[str, Setting], int]:
    """The evaluation period of each method with each of its settings.

    It is that of the trial, or a part of it where the bytes or the predicted seconds
    that another method needs for its whole run are spent before: a half, a third or a
    quarter, whichever is whole and the first to have an evaluation within them.

    Args:
      trials: a test run of every method with each of its settings, any of which may be chosen.
      cost_of: what the steps of a run with these settings take.
    """
    costs = [(trial, cost_of(trial.config)) for trial in trials]
    periods = {(trial.method, trial.varied): trial.config.evaluation_period for trial in trials}
    for spent in (Cost.bytes, Cost.predicted_seconds):
        ends: dict[str, list[float]] = {}
        for trial, cost in costs:
            if end := spent(cost, trial.config.steps):
                ends.setdefault(trial.method, []).append(end)
        if not ends:
            continue
        budgets = [min(map(of_method, ends.values())) for of_method in (min, max)]  # by what will be chosen
        for trial, cost in costs:
            asked, steps = trial.config.evaluation_period, range(1, trial.config.steps + 1)
            within = [
                bisect.bisect_right(steps, most(budget), key=lambda step: spent(cost, step)) for budget in budgets
            ]
            setting = trial.method, trial.varied
            periods[setting] = min(periods[setting], _dense_enough(asked, *within))
    return periods


def _dense_enough(asked: int, first: int, last: int) -> int:
    """The longest part of the period that is asked for, and no longer than `first`.

    If there is none, the shortest, unless that is longer than `last`, so useless too.
    """
    parts = [asked // number for number in range(1, DENSEST + 1) if asked % number == 0]
    if parts[-1] > last:
        return asked
    return next((part for part in parts if part <= first), parts[-1])
