"""One step: E f(x₊) - f* ≤ (1 - mη)(f(x) - f*) - ηλ(f(x) - f(z)) + η²Mσ²/2.

The step is x₊ = x - η(g + λ(x - z)) with E g = ∇f(x), E‖g - ∇f(x)‖² ≤ σ² and f(z) ≤ f(x); the pull of the
library is ηλ. The bound holds where

    Mη + κηλ ≤ 1, with κ = M / m.

Proof: with δ = x - z, smoothness gives

    E f(x₊) ≤ f(x) - η(1 - Mη/2)‖∇f‖² - ηλ(1 - Mη)⟨∇f, δ⟩ + M(ηλ)²/2 ‖δ‖² + η²Mσ²/2.

Strong convexity gives ‖∇f‖² ≥ 2m(f(x) - f*) and ⟨∇f, δ⟩ ≥ f(x) - f(z) + m/2 ‖δ‖². Under the condition
ηλM ≤ m(1 - Mη): so the terms in ‖δ‖² add up to at most 0, and what is missing of ηλ(f(x) - f(z)),
Mη·ηλ(f(x) - f(z)) ≤ ηm(1 - Mη)(f(x) - f*), is what ‖∇f‖² brings beyond mη(f(x) - f*).
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from claims import Claim, write_csv

from lsgd_jax import leader_pull
from strongly_convex.problems import Problem, scattered

M_ETAS = np.linspace(0.1, 2.1, 11)


class Cell(NamedTuple):
    """A row of one_step.csv: Mη, κηλ, and the share of pairs for which the bound does not hold."""

    problem: str
    m_eta: float
    kappa_pull: float
    pairs: int
    violated: float
    error: float

    @property
    def inside(self) -> bool:
        """Whether the theorem's condition is met."""
        return self.m_eta + self.kappa_pull <= 1


def run(problems: Sequence[Problem], pairs: int, rng: np.random.Generator, workdir: pathlib.Path) -> list[Claim]:
    """Measures, writes one_step.csv and one_step.png, and returns the claims."""
    cells = [cell for problem in problems for cell in survey(problem, pairs, rng)]
    write_csv(workdir / "one_step.csv", Cell._fields, cells)
    draw(workdir / "one_step.png", problems, cells)
    return conclusions(cells)


def survey(problem: Problem, pairs: int, rng: np.random.Generator) -> list[Cell]:
    """The share of pairs for which the bound does not hold, over Mη and κηλ, with fresh pairs for each."""
    curvatures, basis = np.linalg.eigh(jax.jit(jax.hessian(problem.gap))(problem.optimum))
    gaps = jax.jit(jax.vmap(problem.gap))
    excess_of_pairs = jax.jit(functools.partial(excess, problem))
    cells = []
    for m_eta in M_ETAS.tolist():
        # A pull of 1 makes a worker the leader: κηλ is κ.
        for kappa_pull in np.geomspace(0.02, problem.condition, 13).tolist():
            points = problem.optimum + sample_points(curvatures, pairs, rng) @ basis.T
            swapped = (gaps(points[0]) < gaps(points[1]))[:, None]
            x, leader = np.where(swapped, points[::-1], points)
            noise = sample_noise(pairs, len(curvatures), rng) @ basis.T
            above = excess_of_pairs(m_eta / problem.smoothness, kappa_pull / problem.condition, x, leader, noise)
            share = float(np.mean(above > 0))
            cells.append(Cell(problem.name, m_eta, kappa_pull, pairs, share, (share * (1 - share) / pairs) ** 0.5))
    return cells


def sample_points(curvatures: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """float[2, pairs, dimension], along the axes of the curvature: many near few of them, from near to far."""
    points = scattered(rng, (2, pairs, len(curvatures)))
    lengths = np.linalg.norm(points * curvatures**0.5, axis=-1, keepdims=True)
    return points / lengths * 10 ** rng.uniform(-1, 1, lengths.shape)


def sample_noise(pairs: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """float[pairs, dimension], of length 1: half of it along the steepest axis, where it costs most."""
    noise = scattered(rng, (pairs, dimension))
    noise[::2] = np.eye(dimension)[-1]
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def excess(
    problem: Problem, rate: jax.Array, pull: jax.Array, x: jax.Array, leader: jax.Array, noise: jax.Array
) -> jax.Array:
    """float[pairs]: by how much E f(x₊) - f* is above the bound, beyond rounding.

    The gradient's noise is one vector of length σ or its opposite, equally likely: so the mean of two steps is the
    expectation. Of quadratics, noise along the steepest direction attains the bound's last term.
    """
    optimizer = optax.chain(optax.sgd(rate), leader_pull(lambda step: pull))

    def of_pair(x: jax.Array, leader: jax.Array, noise: jax.Array) -> jax.Array:
        def after(noise: jax.Array) -> jax.Array:
            grads = jax.grad(problem.gap)(x) + noise
            updates, _ = optimizer.update(grads, optimizer.init(x), x, local_leader=leader)
            return problem.gap(optax.apply_updates(x, updates))

        before, expected = problem.gap(x), (after(noise) + after(-noise)) / 2
        last = rate**2 * problem.smoothness / 2 * noise @ noise
        bound = (1 - problem.convexity * rate) * before - pull * (before - problem.gap(leader)) + last
        return expected - bound - 1e-11 * (1 + before + last)

    return jax.vmap(of_pair)(x, leader, noise)


def conclusions(cells: Sequence[Cell]) -> list[Claim]:
    """That the bound holds inside the condition; and where it stops."""
    inside = [cell for cell in cells if cell.inside]
    tried = sum(cell.pairs for cell in inside)
    violations = round(sum(cell.violated * cell.pairs for cell in inside))
    share = f"less than {3 / tried:.1g} at 95 %" if violations == 0 else f"{violations / tried:.2g}"
    first = min((cell.m_eta + cell.kappa_pull for cell in cells if cell.violated), default=float("inf"))
    outside = [cell.violated for cell in cells if not cell.inside]
    text = "One step: E f(x₊) − f* ≤ (1 − mη)(f(x) − f*) − ηλ(f(x) − f(z)) + η²Mσ²/2"
    return [
        Claim(
            f"{text}, where Mη + κηλ ≤ 1",
            f"violated for {violations:,} of {tried:,} random pairs (x, z) and steps: a share of {share}",
            violations == 0,
        ),
        Claim(
            f"{text}, for any step beyond",
            f"violated from Mη + κηλ = {first:.2f} on; for {100 * np.mean(outside):.0f} % of the pairs beyond 1",
            not any(outside),
            expected=False,
        ),
    ]


def draw(path: pathlib.Path, problems: Sequence[Problem], cells: Sequence[Cell]) -> None:
    """The share of pairs for which the bound does not hold, over Mη and κηλ, with the theorem's condition."""
    from matplotlib.figure import Figure

    from lsgd_jax.compare.palette import BLUE

    figure = Figure(figsize=(4.0 * len(problems), 4.2), layout="constrained")
    panels = figure.subplots(1, len(problems), squeeze=False)[0]
    for panel, problem in zip(panels, problems, strict=True):
        mine = [cell for cell in cells if cell.problem == problem.name]
        pulls = sorted({cell.kappa_pull for cell in mine})
        share = np.array([cell.violated for cell in mine]).reshape(len(M_ETAS), len(pulls)).T
        shown = panel.pcolormesh(M_ETAS, pulls, np.where(share > 0, share, np.nan), cmap="Oranges", vmin=0, vmax=1)
        edge = np.linspace(M_ETAS[0], 0.98, 100)
        panel.plot(edge, 1 - edge, color=BLUE, linewidth=2, label="Mη + κηλ = 1: the theorem holds below")
        panel.set_yscale("log")
        panel.set_ylim(pulls[0], pulls[-1])
        panel.set_xlabel("Mη [1]")
        panel.set_title(problem.name, fontsize=10)
    panels[0].set_ylabel("κηλ [1]; at the top the pull ηλ is 1")
    figure.colorbar(shown, ax=panels, label="share of pairs that violate the bound (white: none)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", frameon=False)
    figure.savefig(path, dpi=100)
