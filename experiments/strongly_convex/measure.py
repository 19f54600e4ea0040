"""What is measured of descents: f - f* over steps, its limit, and its rate."""

import itertools
from typing import NamedTuple

import jax
import numpy as np
from descent import descend_with_noise

from lsgd_jax import DistributedOptimizer
from strongly_convex.problems import Problem


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


class Noise(NamedTuple):
    """What is added to each gradient, [..., dimension], and to each score, [...]."""

    grads: np.ndarray
    scores: np.ndarray


def gaps_of_workers(
    method: DistributedOptimizer,
    problem: Problem,
    rng: np.random.Generator,
    *,
    workers: int,
    steps: int,
    repeats: int,
    deviation: float,
    score_deviation: float | np.ndarray = 0.0,
) -> np.ndarray:
    """float[repeats, steps]: f - f* after each step, mean over the workers, which start apart from each other.

    Args:
      method: of one group.
      problem: the function.
      rng: of the starts and the noise.
      workers: their number.
      steps: of each worker.
      repeats: with starts and noise of their own.
      deviation: σ, E‖noise‖² = σ² for the noise of a gradient.
      score_deviation: σ_f of the noise of a score, or one for each repeat. It is independent of the gradient's.
    """
    dimension = problem.optimum.size
    starts = problem.optimum + rng.normal(size=(repeats, workers, dimension))
    draws = rng.normal(size=(repeats, workers, steps, dimension + 1))
    score_deviations = np.broadcast_to(score_deviation, (repeats,))[:, None, None]
    noise = Noise(deviation / dimension**0.5 * draws[..., 1:], score_deviations * draws[..., 0])

    def value_and_grad(x: jax.Array, noise: Noise) -> tuple[jax.Array, jax.Array]:
        value, grad = jax.value_and_grad(problem.gap)(x)
        return value + noise.scores, grad + noise.grads

    def repeat(starts: jax.Array, noise: Noise) -> jax.Array:
        return descend_with_noise(method, value_and_grad, starts, noise, watch=problem.gap).seen.mean(1)

    return np.asarray(jax.vmap(repeat)(starts, noise))


def limit(gaps: np.ndarray) -> Estimate:
    """Mean over the last half of the steps; the error is that between repeats."""
    of_repeats = gaps[:, gaps.shape[1] // 2 :].mean(1)
    return Estimate(float(of_repeats.mean()), float(of_repeats.std(ddof=1) / len(of_repeats) ** 0.5))


def slope(steps: np.ndarray, gaps: np.ndarray) -> Estimate:
    """The slope of log(mean of the repeats) over log(steps), of means over 12 bins; the error is the jackknife's.

    Args:
      steps: float[steps], ascending.
      gaps: float[repeats, steps].
    """
    edges = np.geomspace(steps[0], steps[-1] * (1 + 1e-9), 13)
    bins = [(low <= steps) & (steps < high) for low, high in itertools.pairwise(edges)]
    log_steps = np.array([np.log(steps[inside]).mean() for inside in bins])
    binned = np.stack([gaps[:, inside].mean(1) for inside in bins], axis=1)
    repeats = len(binned)

    def fitted(of_repeats: np.ndarray) -> float:
        return float(np.polyfit(log_steps, np.log(of_repeats.mean(0)), 1)[0])

    without_one = np.array([fitted(np.delete(binned, left_out, axis=0)) for left_out in range(repeats)])
    return Estimate(fitted(binned), float(without_one.std() * (repeats - 1) ** 0.5))
