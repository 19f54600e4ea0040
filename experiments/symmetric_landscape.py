"""A symmetric landscape: workers on opposite sides of a peak, whose average is the peak.

f(x, y) = sin(π r) / (π r) with r² = x² + y² has a peak of 1 at r = 0 and, around it, rings of minima: f = -0.217 at
r = 1.43, the lowest. Workers start on a circle around the peak, each with an offset of its own; without offsets their
mean is the peak. Whether and when they arrive in the ring is swept over the strength of the pull (λ of LGD, β of
EAGD) and the size of the offsets, over many draws of them. Both methods communicate in each iteration, with exact
gradients. A share of the draws has its 95 % interval (Wilson's).
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import Claim, conclude, experiment, share, write_csv
from descent import descend

from lsgd_jax import DistributedOptimizer, easgd, lsgd
from lsgd_jax.commands.command_line import Flag, described
from lsgd_jax.compare.palette import line_of
from lsgd_jax.trainer.colours import BLACK, BLUE, GREEN, VERMILLION

TABLE = (
    Flag("workdir", "path", "runs/symmetric_landscape", "folder for figures, CSV files and claims.json"),
    Flag("iterations", "integer", 400, "gradient steps of each worker"),
    Flag("draws", "integer", 60, "of the directions of the offsets"),
    Flag("seed", "integer", 0, "of the draws"),
)

WORKERS = 4
RATE = 0.02
RADIUS = 0.5
OFFSETS = (0.0, 0.001, 0.05)  # their standard deviation in each coordinate
STRENGTHS = (0.01, 0.05, 0.1, 0.5, 0.9)
WEAK = 0.03  # what is weaker has no share in the claims that should hold
SHOWN = 0.5  # the strength of the trajectories that are drawn, with the smallest offsets
ARRIVED = -0.21  # a worker below is in the lowest ring of minima, where f is -0.217
NAMES = {"lsgd": "LGD", "easgd": "EAGD"}


class Trajectories(NamedTuple):
    """What a method did from each draw of the offsets; from one where there are none.

    Attributes:
      method: its key in the palette.
      strength: λ of LGD, β of EAGD.
      offset: the standard deviation of the offsets.
      values: float[draws, iterations, workers], f where the gradients were taken.
      places: float[draws, iterations + 1, workers, 2], the workers, from their starts on.
      center: float[draws], f at the center in the end.
    """

    method: str
    strength: float
    offset: float
    values: np.ndarray
    places: np.ndarray
    center: np.ndarray

    @property
    def arrival(self) -> np.ndarray:
        """int[draws], the first iteration from which on all workers are in the lowest ring; their number for never."""
        inside = np.asarray((self.values <= ARRIVED).all(axis=2))[:, ::-1]  # from the last one on
        return inside.shape[1] - np.where(inside.all(axis=1), inside.shape[1], (~inside).argmax(axis=1))

    @property
    def never(self) -> int:
        """What stands for never in `arrival`."""
        return int(self.values.shape[1])


def run(workdir: pathlib.Path, **sizes: Any) -> int:
    """Runs it, and returns its exit code."""
    with jax.enable_x64(True):
        runs = list(sweep(**sizes))
    columns = ("method", "strength", "offset", "draws", "arrived", "earliest", "median", "latest",
               "lowest_value", "highest_value", "lowest_center", "highest_center")  # fmt: skip
    write_csv(workdir / "symmetric_landscape.csv", columns, map(row_of, runs))
    draw_trajectories(workdir / "trajectories.png", runs)
    draw_sweep(workdir / "arrivals.png", runs, sizes["iterations"])
    return conclude(workdir, claims_of(runs))


def row_of(run: Trajectories) -> tuple[Any, ...]:
    """Of symmetric_landscape.csv: over the draws; when they arrive, of all, with nothing for never."""
    arrivals = [None if at == run.never else at for at in np.quantile(run.arrival, (0, 0.5, 1), method="higher")]
    last = run.values[:, -1]
    extremes = map(float, (last.min(), last.max(), run.center.min(), run.center.max()))
    return (*run[:3], len(last), int((run.arrival < run.never).sum()), *arrivals, *extremes)


def sinc(x: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """f and its gradient, which is f'(r) / r times x; near the peak by its Taylor series in r²."""
    del key
    squared = (x**2).sum()
    near = squared < 1e-4
    safe = jnp.where(near, 1.0, squared)  # no division by zero on the way that is not taken
    r = jnp.sqrt(safe)
    value = jnp.where(near, 1 - jnp.pi**2 * squared / 6 + jnp.pi**4 * squared**2 / 120, jnp.sinc(r))
    series = -(jnp.pi**2) / 3 + jnp.pi**4 * squared / 30 - jnp.pi**6 * squared**2 / 840
    slope = jnp.where(near, series, (jnp.cos(jnp.pi * r) - jnp.sinc(r)) / safe)
    return value, slope * x


def method_of(name: str, strength: float) -> DistributedOptimizer:
    """LGD or EAGD: LSGD or EASGD with exact gradients that communicates in each iteration."""
    sgd = optax.sgd(RATE)
    if name == "easgd":
        return easgd(sgd, beta=strength, period=1)
    return lsgd(sgd, global_pull=strength, global_period=1, window=1)


def sweep(iterations: int, draws: int, seed: int) -> Iterator[Trajectories]:
    """Both methods, by strength and by the size of the offsets."""
    directions = jnp.asarray(np.random.default_rng(seed).normal(size=(draws, WORKERS, 2)))
    half = WORKERS // 2
    angles = 0.3 + jnp.pi * jnp.arange(half) / half
    circle = RADIUS * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    circle = jnp.concatenate([circle, -circle])  # exact mirror images, so that the mean is the peak itself
    starts = jnp.stack([circle + offset * directions for offset in OFFSETS])
    for strength in STRENGTHS:
        for name in NAMES:
            method = method_of(name, strength)

            def from_one(start: jax.Array, method: DistributedOptimizer = method) -> tuple[jax.Array, ...]:
                found = descend(method, sinc, start, iterations, jax.random.key(0), watch=lambda x: x)
                return found.values, jnp.concatenate([start[None], found.seen]), sinc(found.center)[0]

            for offset, *found in zip(OFFSETS, *jax.device_get(jax.vmap(jax.vmap(from_one))(starts)), strict=True):
                yield Trajectories(name, strength, offset, *(of[: draws if offset else 1] for of in found))


def claims_of(runs: list[Trajectories]) -> Iterator[Claim]:
    """The claims, and what became of them."""
    for strong in (True, False):
        chosen = [run for run in runs if (run.strength > WEAK) == strong]
        if chosen:
            strengths = f"strength {', '.join(f'{s:g}' for s in dict.fromkeys(run.strength for run in chosen))}: "
            yield from _claims_of(strengths, strong, chosen)


def _claims_of(strengths: str, strong: bool, runs: list[Trajectories]) -> Iterator[Claim]:
    """About weak pulls, or stronger ones."""
    even = {name: [run for run in runs if (run.method, run.offset) == (name, 0)] for name in NAMES}
    lgd, eagd = ([run for run in runs if run.method == name and run.offset > 0] for name in NAMES)
    arrivals = np.stack([run.arrival for run in lgd])
    in_time, straight = np.asarray((arrivals <= 100).all(axis=0)), all(run.arrival[0] <= 100 for run in even["lsgd"])
    text = f"{strengths}all of LGD's workers are in the lowest ring within 100 iterations"
    shown = f"in {share(in_time)} of offsets; without offsets they are{'' if straight else ' not'}"
    yield Claim(text, shown, straight and bool(in_time.all()), expected=strong)
    text = f"{strengths}without offsets EAGD holds all its workers away from it"
    lowest = min(run.values[:, -1].min() for run in even["easgd"])
    yield Claim(text, f"the lowest is at {lowest:.3f}", bool(lowest > ARRIVED), expected=strong)
    center = min(run.center[0] for run in even["easgd"])
    yield Claim(f"{strengths}without offsets EAGD's center stays on the peak", f"f = {center:.3f}", center > 0.99)
    text = f"{strengths}with offsets EAGD's workers do not arrive"
    out = [(run, (run.arrival < run.never).sum()) for run in eagd]
    of_draws = "; ".join(f"{count} (strength {run.strength:g}, offsets {run.offset:g})" for run, count in out)
    shown = f"of {arrivals.shape[1]} draws they do in {of_draws}"
    yield Claim(text, shown, not any(count for _, count in out), expected=False)
    text = f"{strengths}with offsets LGD's workers arrive sooner than EAGD's"
    others = np.stack([run.arrival for run in eagd])
    sooner = np.asarray((arrivals < others).all(axis=0))
    shown = f"in {share(sooner)}; {_when(arrivals, lgd[0].never)} against {_when(others, lgd[0].never)}"
    yield Claim(text, shown, bool(sooner.all()), expected=strong)


def _when(arrivals: np.ndarray, never: int) -> str:
    first, last = ("never" if at == never else f"{at}" for at in (arrivals.min(), arrivals.max()))
    return f"at iteration {first}{'' if first == last else f' to {last}'}"


def draw_trajectories(path: pathlib.Path, runs: list[Trajectories]) -> None:
    """Trajectories over contours of f, and f of each worker over iterations, side by side: of the first draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.4), layout="constrained")
    panels = figure.subplots(2, 2, height_ratios=(1.6, 1))
    axis = np.linspace(-2, 2, 161)
    landscape = np.sinc(np.hypot(*np.meshgrid(axis, axis)))
    for (above, below), name in zip(panels.T, NAMES, strict=True):
        (run,) = [run for run in runs if run[:3] == (name, SHOWN, OFFSETS[1])]
        filled = above.contourf(axis, axis, landscape, np.linspace(-0.25, 1, 26), cmap="Greys")
        for worker, colour in enumerate((BLUE, VERMILLION, GREEN, BLACK)):
            x, y = run.places[0, :, worker].T
            width = 7 - 2 * worker  # narrow over wide, since lines coincide
            above.plot(x, y, color=colour, linewidth=width)
            above.plot(x[0], y[0], "o", color=colour, markeredgecolor="white", markersize=7)
            above.plot(x[-1], y[-1], "*", color=colour, markeredgecolor="white", markersize=15)
            below.plot(run.values[0, :, worker], color=colour, linewidth=width, label=f"worker {worker}")
        above.set_aspect("equal")
        above.set_title(f"{NAMES[name]}, strength {SHOWN:g}, offsets {OFFSETS[1]:g}; ● start, ★ end", fontsize=10)
        above.set_xlabel("x")
        below.axhline(-0.2172, color="0.6", linewidth=0.8)
        below.set_xlabel("iterations")
        below.set_ylim(-0.3, 1.05)
        below.grid(alpha=0.3)
    panels[0, 0].set_ylabel("y")
    panels[1, 0].set_ylabel("f of each worker")
    panels[1, 0].legend(frameon=False)
    figure.colorbar(filled, ax=panels[0], label="f", ticks=np.linspace(-0.2, 1, 7))
    figure.savefig(path, dpi=100)


def draw_sweep(path: pathlib.Path, runs: list[Trajectories], iterations: int) -> None:
    """Iterations until all workers are in the lowest ring, over strength, the median of the draws and their range.

    A panel for each size of the offsets.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    panels = figure.subplots(1, len(OFFSETS), sharey=True)
    never = 1.6 * iterations
    for panel, offset in zip(panels, OFFSETS, strict=True):
        for name in NAMES:
            mine = [run for run in runs if (run.method, run.offset) == (name, offset)]
            arrivals = np.stack([np.where(run.arrival == run.never, never, run.arrival) for run in mine], axis=1)
            at, style = [run.strength for run in mine], line_of(name) | {"label": NAMES[name]}
            panel.plot(at, np.quantile(arrivals, 0.5, axis=0, method="higher"), **style)
            panel.fill_between(at, arrivals.min(axis=0), arrivals.max(axis=0), color=style["color"], alpha=0.2)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(STRENGTHS, [f"{strength:g}" for strength in STRENGTHS])
        ticks = [tick for tick in (25, 50, 100, 200, 400, 800, 1600) if tick <= iterations]
        panel.set_yticks([*ticks, never], [*map(str, ticks), "never"])
        panel.minorticks_off()
        panel.axhline(iterations, color="0.6", linewidth=0.8, linestyle="--")
        panel.set_title(f"offsets {offset:g}, {len(mine[0].center)} draws" if offset else "no offsets", fontsize=10)
        panel.set_xlabel("strength of the pull (λ, β)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("iterations until all workers\nare in the lowest ring")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


main = experiment(__file__, described(__doc__), TABLE, run, least={"iterations": 2, "draws": 1, "seed": 0})

if __name__ == "__main__":
    sys.exit(main(sys.argv))
