"""Matrix completion: does pulling to a leader break symmetry, where an average does not? (Figure 1 of the paper.)

Workers minimize f(X) = 1/4 |M - X X'|^2 over X [dimension, rank], with M = U U', U and the starts drawn from N(0, 1).
f(X Q) = f(X) for every rotation Q, so minima are many, and the mean of two of them can be as bad as a point at random.
The gradients are exact and each method communicates in each iteration. Two sweeps with rank 1, where the minima are U
and -U, show where elastic averaging and a pull to the mean get through: by how many workers start on the side of U,
and by the strength of the pull.
"""

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from claims import Claim, conclude, write_csv
from command_line import Flag, define, describe, parse, refuse
from descent import descend_with_noise
from palette import line_of

from lsgd_jax import DistributedOptimizer, dppf, easgd, independent, local_sgd, lsgd
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.workdir import make_writable

TABLE = (
    Flag("workdir", "path", "runs/matrix_completion", "folder for figures, CSV files and claims.json"),
    Flag("dimension", "integer", 1000, "rows of X; the learning rate is 0.5 / dimension"),
    Flag("ranks", "list", ["1", "10", "50", "100"], "columns of X, a panel each"),
    Flag("iterations", "integer", 100, "gradient steps of each worker"),
    Flag("seed", "integer", 0, "of M and of the starts"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)

WORKERS = 8
CONVERGED = 1e-6
STUCK = 1.0
STRENGTHS = (0.02, 0.1, 0.5)
NAMES = {"lsgd": "LGD, λ = 1/2", "easgd": "EAGD, β = 0.9", "local_sgd": "averaging", "none": "no communication"}
SHORT = {"lsgd": "LGD", "easgd": "EAGD", "dppf": "a pull to the mean"}


class Line(NamedTuple):
    """A method by its key in the palette, the best worker's values [iterations], and the center's last value."""

    method: str
    best: np.ndarray
    center: float

    @property
    def converged_at(self) -> int | None:
        """The first iteration with a value below `CONVERGED`."""
        below = np.flatnonzero(self.best < CONVERGED)
        return int(below[0]) if len(below) else None


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    dimension: Any = FLAGS.dimension
    iterations: Any = FLAGS.iterations
    seed: Any = FLAGS.seed
    texts: Any = FLAGS.ranks
    for name, value, least in (("dimension", dimension, 2), ("iterations", iterations, 2), ("seed", seed, 0)):
        if value < least:
            return refuse(argv, f"--{name}={value}: must be at least {least}")
    if not texts or not all(text.isdecimal() and 0 < int(text) <= dimension for text in texts):
        return refuse(argv, f"--ranks={','.join(texts)}: must be whole numbers from 1 to --dimension={dimension}")
    workdir = pathlib.Path(str(FLAGS.workdir))
    try:
        make_writable(workdir)
    except InputError as error:
        return refuse(argv, str(error))
    with jax.enable_x64(True):
        ranks = {rank: list(by_method(seed, dimension, rank, iterations)) for rank in map(int, texts)}
        sides = list(by_side(seed, dimension, iterations))
        strengths = list(by_strength(seed, dimension, iterations))
    write_csv(
        workdir / "matrix_completion.csv",
        ("rank", "method", "iteration", "best_value"),
        ((rank, line.method, n, float(v)) for rank in ranks for line in ranks[rank] for n, v in enumerate(line.best)),
    )
    for name, lines in (("sides", sides), ("strengths", strengths)):
        columns = (name.removesuffix("s"), "method", "best_value", "center_value", "converged_at")
        rows = ((at, line.method, float(line.best[-1]), line.center, line.converged_at) for at, line in lines)
        write_csv(workdir / f"{name}.csv", columns, rows)
    draw_ranks(workdir / "matrix_completion.png", ranks, dimension)
    draw_sweeps(workdir / "sweeps.png", sides, strengths, iterations)
    print(f"{'rank':>4}  {'method':<18}{'below 1e-6 at':>14}{'best worker':>14}{'center':>12}, after {iterations}")
    for rank, lines_of_rank in ranks.items():
        for line in lines_of_rank:
            at = "never" if line.converged_at is None else line.converged_at
            print(f"{rank:>4}  {NAMES[line.method]:<18}{at:>14}{line.best[-1]:>14.2g}{line.center:>12.2g}")
    print()
    return conclude(workdir, claims_of(ranks, sides, strengths, iterations))


def usage() -> str:
    """The text of --help."""
    lines = ["usage: python experiments/matrix_completion.py [--flag=value ...]", "", str(__doc__).strip(), ""]
    return "\n".join([*lines, *describe(TABLE)])


def draw_problem(seed: int, dimension: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """(R, starts): what is drawn, in coordinates in which U is R [rank, rank] over zeros.

    To rotate all of space changes neither f nor the distribution of the starts [WORKERS, dimension, rank], and what
    the methods do commutes with it.
    """
    rng = np.random.default_rng((seed, rank))
    triangle = np.linalg.qr(rng.normal(size=(dimension, rank)), mode="r")
    return jnp.asarray(triangle), jnp.asarray(rng.normal(size=(WORKERS, dimension, rank)))


def factorization(triangle: jax.Array) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """f and its gradient (X X' - U U') X, from matrices [rank, rank] alone.

    With A the first rows of X, P the others and E = A A' - R R', the blocks of X X' - U U' are E, A P', P A' and
    P P'. None is the small difference of large norms, so values are right far below 1e-7.
    """
    rank, target = len(triangle), triangle @ triangle.T

    def value_and_grad(x: jax.Array, noise: Any = None) -> tuple[jax.Array, jax.Array]:
        del noise
        a, p = x[:rank], x[rank:]
        e, a_gram, p_gram = a @ a.T - target, a.T @ a, p.T @ p
        value = ((e**2).sum() + 2 * (a_gram * p_gram).sum() + (p_gram**2).sum()) / 4
        return value, jnp.concatenate([e @ a + a @ p_gram, p @ (a_gram + p_gram)])

    return value_and_grad


def leader_descent(base: optax.GradientTransformation, pull: float) -> DistributedOptimizer:
    """LGD: LSGD with exact gradients that communicates in each iteration."""
    return lsgd(base, global_pull=pull, global_period=1, window=1)


def run(method: DistributedOptimizer, triangle: jax.Array, starts: jax.Array, steps: int) -> Any:
    """(the best worker's values [..., steps], the center's last) from starts [..., workers, dimension, rank]."""
    value_and_grad = factorization(triangle)

    def from_one(starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = descend_with_noise(method, value_and_grad, starts, np.zeros((WORKERS, steps)))
        return found.values.min(axis=1), value_and_grad(found.center)[0]

    return jax.device_get(jnp.vectorize(from_one, signature="(w,d,r)->(t),()")(starts))


def by_method(seed: int, dimension: int, rank: int, steps: int) -> Iterator[Line]:
    """Each method from the same starts."""
    triangle, starts = draw_problem(seed, dimension, rank)
    sgd = optax.sgd(0.5 / dimension)
    methods = {
        "lsgd": leader_descent(sgd, 0.5),
        "easgd": easgd(sgd, beta=0.9, period=1),
        "local_sgd": local_sgd(sgd, global_period=1),
        "none": independent(sgd),
    }
    for name, method in methods.items():
        best, center = run(method, triangle, starts, steps)
        yield Line(name, best, float(center))


def on_sides(starts: jax.Array, count: int) -> jax.Array:
    """Starts of rank 1, `count` of them nearer to U and the rest nearer to -U.

    Half of the workers start where the other half does, or in the mirror image of that place: with as many on each
    side, the mean is at zero.
    """
    half = WORKERS // 2
    near = starts[:half] * jnp.sign(starts[:half, :1, :1])
    return jnp.concatenate([near, near * jnp.where(jnp.arange(half) < count - half, 1, -1)[:, None, None]])


def by_side(seed: int, dimension: int, steps: int) -> Iterator[tuple[int, Line]]:
    """Rank 1: by how many of the workers start on the side of U."""
    triangle, starts = draw_problem(seed, dimension, 1)
    counts = range(WORKERS // 2, WORKERS + 1)
    mirrored = jnp.stack([on_sides(starts, count) for count in counts])
    sgd = optax.sgd(0.5 / dimension)
    for name, method in (("lsgd", leader_descent(sgd, 0.5)), ("easgd", easgd(sgd, beta=0.9, period=1))):
        together = run(method, triangle, mirrored, steps)
        for count, best, center in zip(counts, *together, strict=True):
            yield count, Line(name, best, float(center))


def by_strength(seed: int, dimension: int, steps: int) -> Iterator[tuple[float, Line]]:
    """Rank 1, half of the workers on each side: by the strength of the pull."""
    triangle, starts = draw_problem(seed, dimension, 1)
    even, sgd = on_sides(starts, WORKERS // 2), optax.sgd(0.5 / dimension)
    for strength in STRENGTHS:
        methods = {
            "lsgd": leader_descent(sgd, strength),
            "easgd": easgd(sgd, beta=strength, period=1),
            "dppf": dppf(sgd, pull=strength, push=0.0, period=1),
        }
        for name, method in methods.items():
            best, center = run(method, triangle, even, steps)
            yield strength, Line(name, best, float(center))


def claims_of(ranks: dict[int, list[Line]], sides: list[Any], strengths: list[Any], iterations: int) -> Iterator[Claim]:
    """The claims, and what became of them. Which draws of rank 1 hold EAGD back is left to the sweep by sides."""
    for rank, lines in ranks.items():
        lgd, eagd, mean, alone = lines
        within = 35 if rank == 1 else iterations
        at, alone_at = (iterations if line.converged_at is None else line.converged_at for line in (lgd, alone))
        later = f"not within {iterations}" if eagd.converged_at is None else f"at {eagd.converged_at}"
        name = f"rank {rank}: "
        yield Claim(f"{name}LGD is below 1e-6 within {within} iterations", f"at {at}", at <= within and at < iterations)
        then = float(eagd.best[min(at, iterations - 1)])
        told = f"{then:.2g}; below 1e-6 {later}"
        yield Claim(f"{name}EAGD is then above 1", told, then > STUCK, expected=rank > 1)
        stuck = mean.converged_at is None
        told = f"it does{' not' if stuck else f', at {mean.converged_at}'}"
        yield Claim(f"{name}plain averaging in each iteration does not get below 1e-6", told, stuck, expected=False)
        means = f"LGD {lgd.center:.2g}, else {alone.center:.2g}"
        good = lgd.center < CONVERGED < STUCK < alone.center
        yield Claim(f"{name}LGD's workers share a minimum: their mean is below 1e-6, else above 1", means, good)
        told = f"{at} against {alone_at} iterations"
        yield Claim(f"{name}LGD is sooner than the best without communication", told, at < alone_at, expected=False)
    name = f"rank 1, any number of {WORKERS} on one side: "
    when = [line.converged_at for _, line in sides if line.method == "lsgd"]
    held = all(at is not None and at <= 35 for at in when)
    yield Claim(f"{name}LGD is below 1e-6 within 35 iterations", f"at {', '.join(map(str, when))}", held)
    held_back = [count for count, line in sides if line.method == "easgd" and line.best.min() > STUCK]
    told = f"with {' or '.join(map(str, held_back)) or 'none'} of them"
    yield Claim(f"{name}EAGD stays above 1", told, len(held_back) > WORKERS // 2, expected=False)
    name = f"rank 1, {WORKERS // 2} on each side, mirror images: "
    yield Claim(f"{name}EAGD stays above 1", told, WORKERS // 2 in held_back)
    for method, expected in (("lsgd", True), ("easgd", False), ("dppf", False)):
        good_at = [f"{at:g}" for at, line in strengths if line.method == method and line.converged_at is not None]
        claim = f"{name}{SHORT[method]} gets below 1e-6 at every strength of {', '.join(map(str, STRENGTHS))}"
        yield Claim(claim, f"at {', '.join(good_at) or 'none'}", len(good_at) == len(STRENGTHS), expected)


def draw_ranks(path: pathlib.Path, ranks: dict[int, list[Line]], dimension: int) -> None:
    """The best worker's value over iterations, a panel for each rank."""
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
            panel.plot(line.best, markevery=max(1, len(line.best) // 10), **style)
        panel.set_yscale("log")
        panel.set_ylim(bottom=1e-12)
        panel.axhline(CONVERGED, color="0.6", linewidth=0.8)
        panel.set_title(f"rank {rank}, dimension {dimension:,}", fontsize=10)
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("iterations")
    for panel in panels[:, 0]:
        panel.set_ylabel("f of the best worker")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)


def draw_sweeps(path: pathlib.Path, sides: Any, strengths: Any, iterations: int) -> None:
    """Rank 1: the best worker's last value, by side and by strength."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, lines in zip(panels, (sides, strengths), strict=True):
        for method in dict.fromkeys(line.method for _, line in lines):
            points = [(at, max(line.best[-1], 1e-12)) for at, line in lines if line.method == method]
            panel.plot(*zip(*points, strict=True), **line_of(method) | {"label": SHORT[method]}, clip_on=False)
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=1e-12)
    panels[0].set_ylabel(f"f of the best worker after {iterations} iterations\n(1e-12: that or less)")
    panels[0].set_xlabel(f"workers of {WORKERS} that start on the side of U (λ = 1/2, β = 0.9)")
    panels[0].set_xticks(range(WORKERS // 2, WORKERS + 1))
    panels[1].set_xscale("log")
    panels[1].set_xticks(STRENGTHS, [f"{strength:g}" for strength in STRENGTHS])
    panels[1].minorticks_off()
    panels[1].set_xlabel(f"strength of the pull (λ, β), {WORKERS // 2} workers on each side")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
