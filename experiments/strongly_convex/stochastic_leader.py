"""Stochastic leader: lim sup E f(x_k) - f* ≤ ½ηκσ² + (4/m) λ√p σ_f, for a constant learning rate η.

The leader is the worker of p with the lowest estimate of f; estimates are unbiased, with variance σ_f². The estimates
are the `value` that the library's method is given, with noise that is independent of the gradient's.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optax
from claims import Claim, write_csv

from lsgd_jax import independent, lsgd
from lsgd_jax.trainer.colours import BLACK, BLUE, GREY
from strongly_convex.measure import Estimate, gaps_of_workers, limit
from strongly_convex.problems import Problem

NOISE = 1.0  # σ
M_ETA = 0.2
KAPPA_PULLS = (0.2, 0.8)  # κηλ: the one-step theorem's condition ends at 1 - Mη = 0.8
WORKERS = (2, 8)
# σ_f, as multiples of the first term of the bound.
SCORE_NOISES = (0.0, 0.1, 1.0, 10.0, 100.0)


class Limit(NamedTuple):
    """A row of stochastic_leader.csv: the limit of E f - f*, and the bound's terms."""

    workers: int
    kappa_pull: float
    score_noise: float
    gap: float
    error: float
    first_term: float
    second_term: float


def run(problem: Problem, steps: int, repeats: int, rng: np.random.Generator, workdir: pathlib.Path) -> list[Claim]:
    """Measures, writes stochastic_leader.csv and stochastic_leader.png, and returns the claims."""
    rate = M_ETA / problem.smoothness
    sizes = {"steps": steps, "repeats": repeats}
    alone = limit(
        gaps_of_workers(independent(optax.sgd(rate)), problem, rng, workers=WORKERS[-1], deviation=NOISE, **sizes)
    )
    limits = [
        row for setting in itertools.product(WORKERS, KAPPA_PULLS) for row in limits_of(problem, *setting, rng, **sizes)
    ]
    write_csv(workdir / "stochastic_leader.csv", Limit._fields, limits)
    draw(workdir / "stochastic_leader.png", problem, limits, alone)
    return conclusions(limits, alone)


def limits_of(
    problem: Problem, workers: int, kappa_pull: float, rng: np.random.Generator, *, steps: int, repeats: int
) -> list[Limit]:
    """The limit for each σ_f."""
    rate, pull = M_ETA / problem.smoothness, kappa_pull / problem.condition
    method = lsgd(optax.sgd(rate), global_pull=pull, global_period=1, window=1)
    first_term = rate * problem.condition * NOISE**2 / 2
    score_noises = first_term * np.array(SCORE_NOISES)
    gaps = gaps_of_workers(
        method,
        problem,
        rng,
        workers=workers,
        steps=steps,
        repeats=repeats * len(score_noises),
        deviation=NOISE,
        score_deviation=np.repeat(score_noises, repeats),
    )
    rows = []
    for score_noise, of_noise in zip(score_noises.tolist(), gaps.reshape(-1, repeats, steps), strict=True):
        second_term = 4 / problem.convexity * pull / rate * workers**0.5 * score_noise
        rows.append(Limit(workers, kappa_pull, score_noise, *limit(of_noise), first_term, second_term))
    return rows


def conclusions(limits: Sequence[Limit], alone: Estimate) -> list[Claim]:
    """That limits stay under the bound and grow no faster than it; and what the leader brings."""
    exact = {(row.workers, row.kappa_pull): row for row in limits if row.score_noise == 0}

    def growth(row: Limit) -> tuple[float, float]:
        """By how much the limit is above that of exact scores, as a share of the second term; and its error."""
        base = exact[row.workers, row.kappa_pull]
        return (row.gap - base.gap) / row.second_term, float(np.hypot(row.error, base.error)) / row.second_term

    shares = [row.gap / (row.first_term + row.second_term) for row in limits]
    growths = [growth(row) for row in limits if row.score_noise]
    worst = max(limits, key=lambda row: row.gap)
    highest_exact = max(exact.values(), key=lambda row: row.gap)
    return [
        Claim(
            "Stochastic leader: lim sup E f − f* ≤ ½ηκσ² + (4/m)λ√p·σ_f",
            f"{min(shares):.1g} to {max(shares):.2g} of the bound, over {len(limits)} settings of λ, p and σ_f",
            max(shares) <= 1,
        ),
        Claim(
            "Stochastic leader: the limit grows no faster than (4/m)λ√p·σ_f",
            f"by at most {max(growths)[0]:.2g} ± {max(growths)[1]:.1g} of it",
            all(grown <= 1 + 3 * error for grown, error in growths),
        ),
        Claim(
            "One step: the pull is a gain. With exact scores the limit is below that of SGD alone",
            f"{highest_exact.gap / alone.value:.2f} of it at most; with noisy scores {worst.gap / alone.value:.2f} "
            f"± {worst.error / alone.value:.1g} at most, so the bound's second term is not reached",
            all(row.gap + 3 * float(np.hypot(row.error, alone.error)) < alone.value for row in exact.values()),
        ),
    ]


def draw(path: pathlib.Path, problem: Problem, limits: Sequence[Limit], alone: Estimate) -> None:
    """The limit over σ_f for each λ and p, with the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(WORKERS), 4.8), layout="constrained")
    panels = figure.subplots(1, len(WORKERS), sharey=True, squeeze=False)[0]
    for panel, workers in zip(panels, WORKERS, strict=True):
        for kappa_pull, colour, marker in zip(KAPPA_PULLS, (BLUE, BLACK), "os", strict=False):
            mine = [row for row in limits if (row.workers, row.kappa_pull) == (workers, kappa_pull)]
            noises = [row.score_noise for row in mine]
            panel.errorbar(noises, [row.gap for row in mine], [3 * row.error for row in mine], color=colour,
                           marker=marker, label=f"LGD, κηλ = {kappa_pull:g}")  # fmt: skip
            panel.plot(noises, [row.first_term + row.second_term for row in mine], ":", color=colour,
                       label=f"bound, κηλ = {kappa_pull:g}")  # fmt: skip
        panel.axhline(alone.value, color=GREY, linestyle="-.", label="SGD alone")
        panel.set_xscale("symlog", linthresh=min(noise for noise in noises if noise))
        panel.set_yscale("log")
        panel.set_xlim(left=0)
        panel.set_title(f"p = {workers} workers; {problem.name}", fontsize=10)
        panel.set_xlabel("σ_f, deviation of a score [unit of f]")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("limit of E f − f*, ± 3 errors [unit of f]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)
