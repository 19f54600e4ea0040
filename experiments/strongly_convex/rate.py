"""Rate: learning rates η_k = Θ(1/k) give E f(x_k) - f* ≤ O(1/k), with stochastic gradients.

The rate is η_k = 2 / (m k), with k counted from 4κ so that the first is 1/(2M). Where a step is as good as the
one-step theorem says, E f(x_k) - f* ≤ ν / k follows by induction from the point x_1 after the first step, whose k is
4κ + 1: ν = max(2Mσ²/m², (4κ + 1)(E f(x_1) - f*)).

`lsgd` pulls after the step, the leader's included, and by a number: λ_k = pull / η_k grows. The theorem's bound holds
for it with any pull p in [0, 1], since f is convex: f(x₊) is at most 1 - p times f where the worker's own step has
led, plus p times f where the leader's has.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optax
from claims import Claim, write_csv

from lsgd_jax import DistributedOptimizer, independent, lsgd
from lsgd_jax.trainer.colours import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION
from strongly_convex.measure import Estimate, gaps_of_workers, slope
from strongly_convex.problems import Problem
from strongly_convex.schedules import scheduled_lgd

NOISE = 1.0  # σ
PULL = 0.1


class Setting(NamedTuple):
    """How workers descend.

    Attributes:
      name: for tables and figures.
      workers: their number.
      method: `(problem, η, first k) -> DistributedOptimizer`.
      score_noise: σ_f.
    """

    name: str
    workers: int
    method: Callable[[Problem, optax.Schedule, float], DistributedOptimizer]
    score_noise: float = 0.0


def alone(problem: Problem, rate: optax.Schedule, first: float) -> DistributedOptimizer:
    """SGD without leaders."""
    del problem, first
    return independent(optax.sgd(rate))


def led(period: int, problem: Problem, rate: optax.Schedule, first: float) -> DistributedOptimizer:
    """The library's `lsgd`."""
    del problem, first
    return lsgd(optax.sgd(rate), global_pull=PULL, global_period=period, window=1)


def constant_pull(problem: Problem, rate: optax.Schedule, first: float) -> DistributedOptimizer:
    """LGD with λ = m, so that at first Mη + κηλ = 1."""
    del first
    return scheduled_lgd(optax.sgd(rate), lambda step: rate(step) * problem.convexity)


def falling_pull(problem: Problem, rate: optax.Schedule, first: float) -> DistributedOptimizer:
    """LGD with λ = m at first, and λ = Θ(1/k)."""
    return scheduled_lgd(optax.sgd(rate), lambda step: rate(step) * problem.convexity * first / (step + first))


class Curve(NamedTuple):
    """f - f* of a setting, float[repeats, steps], over k."""

    problem: Problem
    setting: Setting
    k: np.ndarray
    gaps: np.ndarray

    @property
    def late(self) -> np.ndarray:
        """Which steps are past the start: k is ten times its first or more."""
        return self.k >= 10 * self.k[0]

    @property
    def slope(self) -> Estimate:
        """Of log E f - f* over log k, past the start."""
        return slope(self.k[self.late], self.gaps[:, self.late])

    @property
    def share_of_bound(self) -> float:
        """The largest k (E f - f*) past the start, as a share of ν; the first gap is that after the first step."""
        problem, mean = self.problem, self.gaps.mean(0)
        noise = 2 * problem.smoothness * NOISE**2 / problem.convexity**2
        return float((self.k * mean)[self.late].max() / max(noise, self.k[0] * mean[0]))


ALONE = Setting("SGD, no leader", 4, alone)
SETTINGS = (
    *(Setting(f"LSGD, {workers} workers, period 1", workers, functools.partial(led, 1)) for workers in (4, 8)),
    Setting("LSGD, 4 workers, period 16", 4, functools.partial(led, 16)),
    Setting("LGD, 4 workers, λ constant", 4, constant_pull),
    Setting("LGD, 4 workers, λ = Θ(1/k), noisy leader", 4, falling_pull, score_noise=1.0),  # far above the last f - f*
)


def run(
    problems: Sequence[Problem], steps: int, repeats: int, rng: np.random.Generator, workdir: pathlib.Path
) -> list[Claim]:
    """Measures, writes rate.csv and rate.png, and returns the claims."""
    curves = [
        descend_as(problem, setting, steps, repeats, rng)
        for problem, setting in itertools.product(problems, (ALONE, *SETTINGS))
    ]
    columns = ("problem", "setting", "slope", "slope_error", "largest_share_of_bound", "last_gap")
    rows = [(c.problem.name, c.setting.name, *c.slope, c.share_of_bound, float(c.gaps[:, -1].mean())) for c in curves]
    write_csv(workdir / "rate.csv", columns, rows)
    draw(workdir / "rate.png", problems, curves)
    return conclusions([curve for curve in curves if curve.setting is not ALONE])


def descend_as(problem: Problem, setting: Setting, steps: int, repeats: int, rng: np.random.Generator) -> Curve:
    """One curve."""
    first = 4 * problem.condition
    gaps = gaps_of_workers(
        setting.method(problem, lambda step: 2 / (problem.convexity * (step + first)), first),
        problem,
        rng,
        workers=setting.workers,
        steps=steps,
        repeats=repeats,
        deviation=NOISE,
        score_deviation=setting.score_noise,
    )
    return Curve(problem, setting, first + 1 + np.arange(steps), gaps)


def conclusions(curves: Sequence[Curve]) -> list[Claim]:
    """That no curve falls more slowly than 1/k, and that all stay under the bound."""
    slopes = [curve.slope for curve in curves]
    slowest = max(slopes)
    largest = max(curve.share_of_bound for curve in curves)
    within = f"in {len(curves)} settings of problem, workers, period and λ"
    return [
        Claim(
            "Rate: η_k = Θ(1/k) gives E f(x_k) − f* ≤ O(1/k), with exact scores and, where λ_k = Θ(1/k), noisy ones",
            f"slopes of log(E f − f*) over log k from {min(slopes).value:.3f} to {slowest.value:.3f} "
            f"± {slowest.error:.3f} {within}",
            all(slope.value <= -1 + 3 * slope.error for slope in slopes),
        ),
        Claim(
            "Rate: E f(x_k) − f* ≤ ν / k, ν = max(2Mσ²/m², (4κ + 1)(E f(x_1) − f*)), x_1 after the first step",
            f"at most {largest:.3f} of the bound {within}",
            largest <= 1,
        ),
    ]


def draw(path: pathlib.Path, problems: Sequence[Problem], curves: Sequence[Curve]) -> None:
    """f - f* over k, a panel for each problem."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(problems), 5.2), layout="constrained")
    panels = figure.subplots(1, len(problems), squeeze=False)[0]
    styles = [(GREY, "-."), (BLACK, "-"), (GREEN, "-"), (BLUE, "-"), (ORANGE, "--"), (VERMILLION, ":")]
    for panel, problem in zip(panels, problems, strict=True):
        mine = [curve for curve in curves if curve.problem is problem]
        shown = np.unique(np.geomspace(1, len(mine[0].k), 60).astype(int)) - 1
        for curve, (colour, line) in zip(mine, styles, strict=True):
            panel.loglog(
                curve.k[shown], curve.gaps.mean(0)[shown], line, color=colour, linewidth=1.7, label=curve.setting.name
            )
        k, last = mine[0].k, mine[0].gaps[:, -1].mean()
        panel.loglog(k, 2 * last * k[-1] / k, color="0.75", linewidth=4, zorder=1, label="1/k")
        panel.set_title(problem.name, fontsize=10)
        panel.set_xlabel("k [steps of a worker, counted from 4κ]")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("E f − f*, mean of the workers [unit of f]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)
