"""Matrix completion: does pulling to a leader break symmetry, where an average does not? (Figure 1 of the paper.)

Workers minimize f(X) = 1/4 |M - X X'|^2 over X [dimension, rank], with M = U U', U and the starts drawn from N(0, 1).
f(X Q) = f(X) for every rotation Q, so minima are many, and the mean of two of them can be as bad as a point at random.
The gradients are exact and each method communicates in each iteration. What is found is a share of many draws, with its
95 % interval (Wilson's). Two sweeps with rank 1, where the minima are U and -U, show where elastic averaging and a pull
to the mean get through: by how many workers start on the side of U, and by the strength of the pull where half of the
workers start at the mirror images of the other half, so that their mean is zero.
"""

import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import Claim, conclude, experiment, interval, share, write_csv
from low_rank import CONVERGED, STUCK, WORKERS, Line, Problems, draw_problems, mirrored, on_sides, run

from lsgd_jax import DistributedOptimizer, dppf, easgd, independent, local_sgd, lsgd
from lsgd_jax.commands.command_line import Flag, described
from lsgd_jax.compare.palette import line_of
from lsgd_jax.errors import InputError

TABLE = (
    Flag("workdir", "path", "runs/matrix_completion", "folder for figures, CSV files and claims.json"),
    Flag("dimension", "integer", 1000, "rows of X; the learning rate is 0.5 / dimension"),
    Flag("ranks", "list", ["1", "10", "50", "100"], "columns of X, a panel each"),
    Flag("draws", "integer", 60, "of M and of the starts; of ranks above 10, which take longer, a fifteenth of them"),
    Flag("iterations", "integer", 100, "gradient steps of each worker"),
    Flag("seed", "integer", 0, "of the first draw; the others have the next ones"),
)

SOON = 50  # iterations
STRENGTHS = (0.02, 0.1, 0.5)
SIDES = tuple(range(WORKERS // 2, WORKERS + 1))
NAMES = {"lsgd": "LGD, λ = 1/2", "easgd": "EAGD, β = 0.9", "local_sgd": "averaging", "none": "no communication"}
SHORT = {"lsgd": "LGD", "easgd": "EAGD", "dppf": "a pull to the mean"}

Sweep = list[tuple[float, Line]]
"""Lines, each with what is swept over: a number of workers on a side, or a strength."""


def check(ranks: list[str], dimension: int, **_: Any) -> None:
    """Raises InputError for ranks that no matrix has."""
    if not ranks or not all(text.isdecimal() and 0 < int(text) <= dimension for text in ranks):
        raise InputError(f"--ranks={','.join(ranks)}: must be whole numbers from 1 to --dimension={dimension}")


def run_all(
    workdir: pathlib.Path, *, ranks: Sequence[str], dimension: int, draws: int, iterations: int, seed: int
) -> int:
    """Runs all of it, leaves its files, and returns the exit code."""
    with jax.enable_x64(True):
        sgd = optax.sgd(0.5 / dimension)
        found = {
            rank: by_method(
                draw_problems(seed, draws if rank <= 10 else -(-draws // 15), dimension, rank), sgd, iterations
            )
            for rank in map(int, ranks)
        }
        first = draw_problems(seed, draws, dimension, 1)
        sides = list(by_side(first, sgd, iterations))
        strengths = list(by_strength(mirrored(first), sgd, iterations))
    write(workdir, found, sides, strengths, seed)
    draw_ranks(workdir / "matrix_completion.png", found, dimension)
    draw_sweeps(workdir / "sweeps.png", sides, strengths, iterations)
    return conclude(workdir, claims_of(found, sides, strengths, first.sides, iterations))


def leader_descent(base: optax.GradientTransformation, pull: float) -> DistributedOptimizer:
    """LGD: LSGD with exact gradients that communicates in each iteration."""
    return lsgd(base, global_pull=pull, global_period=1, window=1)


def by_method(problems: Problems, sgd: optax.GradientTransformation, steps: int) -> list[Line]:
    """Each method from the same starts."""
    methods = {
        "lsgd": leader_descent(sgd, 0.5),
        "easgd": easgd(sgd, beta=0.9, period=1),
        "local_sgd": local_sgd(sgd, global_period=1),
        "none": independent(sgd),
    }
    return [run(name, method, problems, steps) for name, method in methods.items()]


def by_side(problems: Problems, sgd: optax.GradientTransformation, steps: int) -> Iterator[tuple[float, Line]]:
    """Rank 1: by how many of the workers start on the side of U."""
    together = Problems(*map(np.concatenate, zip(*(on_sides(problems, count) for count in SIDES), strict=True)))
    for name, method in (("lsgd", leader_descent(sgd, 0.5)), ("easgd", easgd(sgd, beta=0.9, period=1))):
        line = run(name, method, together, steps)
        best, center = (np.split(values, len(SIDES)) for values in (line.best, line.center))
        yield from ((count, Line(name, *of_count)) for count, *of_count in zip(SIDES, best, center, strict=True))


def by_strength(even: Problems, sgd: optax.GradientTransformation, steps: int) -> Iterator[tuple[float, Line]]:
    """By the strength of the pull."""
    for strength in STRENGTHS:
        methods = {
            "lsgd": leader_descent(sgd, strength),
            "easgd": easgd(sgd, beta=strength, period=1),
            "dppf": dppf(sgd, pull=strength, push=0.0, period=1),
        }
        for name, method in methods.items():
            yield strength, run(name, method, even, steps)


def claims_of(
    ranks: dict[int, list[Line]], sides: Sweep, strengths: Sweep, drawn_sides: np.ndarray, iterations: int
) -> Iterator[Claim]:
    """The claims, and what became of them in all draws."""
    for rank, lines in ranks.items():
        yield from _claims_of_rank(rank, lines, drawn_sides, iterations)
    name = f"rank 1, any number of {WORKERS} on one side: "
    lgd = np.stack([line.converged_at for _, line in sides if line.method == "lsgd"])
    yield _all(f"{name}LGD is below 1e-6 within {SOON} iterations", np.asarray((lgd <= SOON).all(axis=0)))
    eagd = [(count, line) for count, line in sides if line.method == "easgd"]
    shown = "; ".join(f"with {count} of them in {share(line.stuck)}" for count, line in eagd)
    yield Claim(f"{name}EAGD stays above 1", shown, all(line.stuck.all() for _, line in eagd), expected=False)
    yield from claims_of_strengths(strengths)


def claims_of_strengths(strengths: Sweep) -> Iterator[Claim]:
    """Whether a method gets through at every strength, from starts whose mean is zero."""
    for method, expected in (("lsgd", True), ("easgd", False), ("dppf", False)):
        good = [(at, line.converged) for at, line in strengths if line.method == method]
        text = f"rank 1, {WORKERS // 2} on each side, mirror images: {SHORT[method]} gets below 1e-6 at every strength"
        shown = "; ".join(f"at {at:g} in {share(converged)}" for at, converged in good)
        yield Claim(text, shown, all(converged.all() for _, converged in good), expected)


def _claims_of_rank(rank: int, lines: list[Line], drawn_sides: np.ndarray, iterations: int) -> Iterator[Claim]:
    """Which draws of rank 1 hold EAGD back is told by the sides on which their workers start."""
    lgd, eagd, mean, alone = lines
    within, name = SOON if rank == 1 else iterations - 1, f"rank {rank}: "
    text = f"{name}LGD is below 1e-6 within {within} iterations"
    yield _all(text, lgd.converged_at <= within, f"at {_range(lgd.converged_at)}")
    then = np.take_along_axis(eagd.best, np.minimum(lgd.converged_at, iterations - 1)[:, None], axis=1)[:, 0] > STUCK
    yield _all(f"{name}EAGD is then above 1", then, f"{_range(eagd.best[:, -1], '.2g')} in the end", expected=rank > 1)
    shown = (
        f"of them with workers on both sides: {(eagd.converged & (drawn_sides < WORKERS)).sum()}" if rank == 1 else ""
    )
    yield _all(f"{name}EAGD gets below 1e-6 within {iterations} iterations", eagd.converged, shown, expected=False)
    shown = f"it does, at {_range(mean.converged_at[mean.converged])}" if mean.converged.any() else ""
    text = f"{name}plain averaging in each iteration does not get below 1e-6"
    yield _all(text, ~mean.converged, shown, expected=False)
    text = f"{name}LGD's workers share a minimum: their mean is below 1e-6"
    yield _all(text, lgd.center < CONVERGED, f"it is at most {lgd.center.max():.2g}")
    text = f"{name}without communication they do not: their mean is above 1"
    shown = f"it is {_range(alone.center, '.2g')}"
    yield _all(text, alone.center > STUCK, shown, expected=rank > 1)  # all may start on one side
    sooner, shown = lgd.converged_at < alone.converged_at, f"at {_range(alone.converged_at)} without"
    yield _all(f"{name}LGD is sooner than the best without communication", sooner, shown, expected=False)


def _all(text: str, held: np.ndarray, more: str = "", expected: bool = True) -> Claim:
    """A claim about all draws, which is told by the share of those for which it holds."""
    return Claim(text, f"in {share(held)}{f'; {more}' if more else ''}", bool(held.all()), expected)


def _range(values: np.ndarray, form: str = "d") -> str:
    return f"{values.min():{form}} to {values.max():{form}}"


def write(workdir: pathlib.Path, ranks: dict[int, list[Line]], sides: Sweep, strengths: Sweep, seed: int) -> None:
    """The CSV files: curves and sweeps over the draws, and each draw."""
    curves = ((rank, line, *_over_draws(line.best)) for rank, lines in ranks.items() for line in lines)
    write_csv(
        workdir / "matrix_completion.csv",
        ("rank", "method", "iteration", "draws", "lowest", "median", "highest"),
        (
            (rank, line.method, n, len(line.best), *map(float, values))
            for rank, line, *over in curves
            for n, values in enumerate(zip(*over, strict=True))
        ),
    )
    write_csv(
        workdir / "draws.csv",
        ("rank", "seed", "method", "converged_at", "best_value", "center_value"),
        (
            (rank, seed + i, line.method, at if good else None, float(best), float(center))
            for rank, lines in ranks.items()
            for line in lines
            for i, (at, good, best, center) in enumerate(
                zip(line.converged_at, line.converged, line.best[:, -1], line.center, strict=True)
            )
        ),
    )
    for name, lines in (("sides", sides), ("strengths", strengths)):
        rows = (
            (at, line.method, len(line.best), line.converged.sum(), line.stuck.sum(), *map(float, over))
            for at, line in lines
            for over in [_over_draws(line.best[:, -1])]
        )
        columns = (name.removesuffix("s"), "method", "draws", "converged", "stuck", "lowest", "median", "highest")
        write_csv(workdir / f"{name}.csv", columns, rows)


def _over_draws(values: np.ndarray) -> np.ndarray:
    """Lowest, median and highest."""
    return np.quantile(values, (0, 0.5, 1), axis=0)


def draw_ranks(path: pathlib.Path, ranks: dict[int, list[Line]], dimension: int) -> None:
    """The best worker's value over iterations, a panel for each rank: each draw, and their median."""
    from matplotlib.figure import Figure

    rows, columns = -(-len(ranks) // 2), min(2, len(ranks))
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.1 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(ranks) :]:
        panel.set_axis_off()
    for panel, (rank, lines) in zip(panels.flat, ranks.items(), strict=False):
        for line in lines:
            style = line_of(line.method) | {"label": NAMES[line.method]}
            if line.method == "local_sgd":
                style |= {"zorder": 4, "markersize": 3}  # on top of LGD, with which it may coincide
            panel.plot(line.best.T, color=style["color"], linewidth=0.5, alpha=0.35, zorder=1)
            panel.plot(np.median(line.best, axis=0), markevery=max(1, line.best.shape[1] // 10), **style)
        panel.set_yscale("log")
        panel.set_ylim(bottom=1e-12)
        panel.axhline(CONVERGED, color="0.6", linewidth=0.8)
        panel.set_title(f"rank {rank}, dimension {dimension:,}, {len(lines[0].best)} draws", fontsize=10)
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("iterations")
    for panel in panels[:, 0]:
        panel.set_ylabel("f of the best worker\n(draws, and their median)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)


def draw_sweeps(path: pathlib.Path, sides: Sweep, strengths: Sweep, iterations: int) -> None:
    """Rank 1: the share of draws in which the best worker gets below 1e-6, by side and by strength."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, lines in zip(panels, (sides, strengths), strict=True):
        for method in dict.fromkeys(line.method for _, line in lines):
            _draw_shares(panel, method, [(at, line.converged) for at, line in lines if line.method == method])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"draws with f below 1e-6 of the best\nworker within {iterations} iterations [%], 95 %")
    panels[0].set_xlabel(f"workers of {WORKERS} that start on the side of U\n(λ = 1/2, β = 0.9)")
    panels[0].set_xticks(SIDES)
    panels[1].set_xscale("log")
    panels[1].set_xticks(STRENGTHS, [f"{strength:g}" for strength in STRENGTHS])
    panels[1].minorticks_off()
    panels[1].set_xlabel(f"strength of the pull (λ, β)\n({WORKERS // 2} workers at mirror images of the others)")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


def _draw_shares(panel: Any, method: str, points: Iterable[tuple[float, np.ndarray]]) -> None:
    places, shares = zip(*points, strict=True)
    means = np.array([100 * converged.mean() for converged in shares])
    low, high = 100 * np.array([interval(int(of.sum()), len(of)) for of in shares]).T
    style = line_of(method) | {"label": SHORT[method]}
    panel.errorbar(places, means, np.maximum(0, [means - low, high - means]), capsize=3, **style)


main = experiment(
    __file__,
    described(__doc__),
    TABLE,
    run_all,
    least={"dimension": 2, "draws": 1, "iterations": 2, "seed": 0},
    check=check,
)

if __name__ == "__main__":
    sys.exit(main(sys.argv))
