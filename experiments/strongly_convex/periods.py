"""Periods: the limit of E f - f* as leaders are followed less often; the theorems of the paper have τ = 1."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optax
from claims import Claim, write_csv

from lsgd_jax import independent, lsgd
from lsgd_jax.trainer.colours import BLACK, GREY
from strongly_convex.measure import Estimate, gaps_of_workers, limit
from strongly_convex.problems import Problem

NOISE = 1.0  # σ
M_ETA = 0.2
PULL = 0.1
WORKERS = 8
PERIODS = (1, 4, 16, 64)


class Limit(NamedTuple):
    """A row of periods.csv: the limit of E f - f* with a period; 0 is SGD alone."""

    period: int
    gap: float
    error: float


def run(problem: Problem, steps: int, repeats: int, rng: np.random.Generator, workdir: pathlib.Path) -> list[Claim]:
    """Measures, writes periods.csv and periods.png, and returns the claims."""
    base = optax.sgd(M_ETA / problem.smoothness)
    limits = []
    for period in (0, *PERIODS):
        method = lsgd(base, global_pull=PULL, global_period=period, window=1) if period else independent(base)
        gaps = gaps_of_workers(method, problem, rng, workers=WORKERS, steps=steps, repeats=repeats, deviation=NOISE)
        limits.append(Limit(period, *limit(gaps)))
    write_csv(workdir / "periods.csv", Limit._fields, limits)
    draw(workdir / "periods.png", problem, limits)
    alone, *led = limits
    return conclusions(led, Estimate(alone.gap, alone.error))


def conclusions(led: Sequence[Limit], alone: Estimate) -> list[Claim]:
    """That what leaders bring shrinks with the period, and never turns into a loss."""
    shares = ", ".join(f"{row.gap / alone.value:.2f} (τ = {row.period})" for row in led)
    rises = all(
        after.gap >= before.gap - 3 * float(np.hypot(before.error, after.error))
        for before, after in itertools.pairwise(led)
    )
    below = all(row.gap <= alone.value + 3 * float(np.hypot(row.error, alone.error)) for row in led)
    return [
        Claim(
            "Periods (no theorem): the limit rises with the period τ toward that of SGD alone, and not above it",
            f"as shares of SGD's: {shares}",
            rises and below,
        )
    ]


def draw(path: pathlib.Path, problem: Problem, limits: Sequence[Limit]) -> None:
    """The limit over the period."""
    from matplotlib.figure import Figure

    alone, *led = limits
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    panel = figure.subplots()
    panel.errorbar([row.period for row in led], [row.gap for row in led], [3 * row.error for row in led],
                   color=BLACK, marker="o", label=f"LSGD, {WORKERS} workers, pull {PULL}")  # fmt: skip
    panel.axhline(alone.gap, color=GREY, linestyle="-.", label="SGD alone")
    panel.set_xscale("log", base=2)
    panel.set_xticks(PERIODS, [str(period) for period in PERIODS])
    panel.set_ylim(bottom=0)
    panel.set_title(problem.name, fontsize=10)
    panel.set_xlabel("period τ [steps]")
    panel.set_ylabel("limit of E f − f*, ± 3 errors [unit of f]")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)
