"""A symmetric landscape: workers on opposite sides of a peak, whose average is the peak.

f(x, y) = sin(π r) / (π r) with r² = x² + y² has a peak of 1 at r = 0 and, around it, rings of minima: f = -0.217 at
r = 1.43, the lowest. Workers start on a circle around the peak, each with an offset of its own; without offsets their
mean is the peak. Whether and when they arrive in the ring is swept over the strength of the pull (λ of LGD, β of
EAGD) and the size of the offsets. Both methods communicate in each iteration, with exact gradients.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from claims import Claim, conclude, write_csv
from command_line import Flag, define, describe, parse, refuse
from descent import descend
from palette import BLACK, BLUE, GREEN, VERMILLION, line_of

from lsgd_jax import DistributedOptimizer, easgd, lsgd
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.workdir import make_writable

TABLE = (
    Flag("workdir", "path", "runs/symmetric_landscape", "folder for figures, CSV files and claims.json"),
    Flag("iterations", "integer", 400, "gradient steps of each worker"),
    Flag("seed", "integer", 0, "of the directions of the offsets"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)

WORKERS = 4
RATE = 0.02
RADIUS = 0.5
OFFSETS = (0.0, 0.001, 0.05)  # their standard deviation in each coordinate
STRENGTHS = (0.01, 0.05, 0.1, 0.5, 0.9)
WEAK = 0.03  # what is weaker has no share in the claims that should hold
SHOWN = 0.5  # the strength of the trajectories that are drawn, with the smallest offsets
ARRIVED = -0.21  # a worker below is in the lowest ring of minima, where f is -0.217
NAMES = {"lsgd": "LGD", "easgd": "EAGD"}


class Run(NamedTuple):
    """What a method did.

    Attributes:
      method: its key in the palette.
      strength: λ of LGD, β of EAGD.
      offset: the standard deviation of the offsets.
      values: float[iterations, workers], f where the gradients were taken.
      places: float[iterations + 1, workers, 2], the workers, from their starts on.
      center: f at the center in the end.
    """

    method: str
    strength: float
    offset: float
    values: np.ndarray
    places: np.ndarray
    center: float

    @property
    def arrival(self) -> int | None:
        """The first iteration from which on all workers are in the lowest ring."""
        outside = np.flatnonzero((self.values > ARRIVED).any(axis=1))
        at = int(outside[-1]) + 1 if len(outside) else 0
        return at if at < len(self.values) else None


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    iterations: Any = FLAGS.iterations
    seed: Any = FLAGS.seed
    for name, value, least in (("iterations", iterations, 2), ("seed", seed, 0)):
        if value < least:
            return refuse(argv, f"--{name}={value}: must be at least {least}")
    workdir = pathlib.Path(str(FLAGS.workdir))
    try:
        make_writable(workdir)
    except InputError as error:
        return refuse(argv, str(error))
    with jax.enable_x64(True):
        runs = list(sweep(iterations, seed))
    columns = ("method", "strength", "offset", "arrival", "lowest_value", "highest_value", "center_value")
    rows = [
        (*run[:3], run.arrival, float(run.values[-1].min()), float(run.values[-1].max()), run.center) for run in runs
    ]
    write_csv(workdir / "symmetric_landscape.csv", columns, rows)
    draw_trajectories(workdir / "trajectories.png", runs)
    draw_sweep(workdir / "arrivals.png", runs, iterations)
    print(f"f after {iterations} iterations: of the workers, from the best to the worst, and of the center")
    print("".join(f"{name:>10}" for name in ("method", "strength", "offset", "arrival", "best", "worst", "center")))
    for method, strength, offset, arrival, *values in rows:
        at = "never" if arrival is None else arrival
        print(f"{NAMES[method]:>10}{strength:>10g}{offset:>10g}{at:>10}" + "".join(f"{v:>10.3f}" for v in values))
    print()
    return conclude(workdir, claims_of(runs))


def usage() -> str:
    """The text of --help."""
    lines = ["usage: python experiments/symmetric_landscape.py [--flag=value ...]", "", str(__doc__).strip(), ""]
    return "\n".join([*lines, *describe(TABLE)])


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


def sweep(iterations: int, seed: int) -> Iterator[Run]:
    """Both methods, by strength and by the size of the offsets."""
    directions = jnp.asarray(np.random.default_rng(seed).normal(size=(WORKERS, 2)))
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

            for offset, *found in zip(OFFSETS, *jax.device_get(jax.vmap(from_one)(starts)), strict=True):
                values, places, center = found
                yield Run(name, strength, offset, values, places, float(center))


def claims_of(runs: list[Run]) -> Iterator[Claim]:
    """The claims, and what became of them."""
    arrivals = {run[:3]: run.arrival for run in runs}
    for strong in (True, False):
        chosen = [run for run in runs if (run.strength > WEAK) == strong]
        if not chosen:
            continue
        strengths = f"strength {', '.join(f'{s:g}' for s in dict.fromkeys(run.strength for run in chosen))}: "
        lgd = [run for run in chosen if run.method == "lsgd"]
        late = [run for run in lgd if run.arrival is None or run.arrival > 100]
        text = f"{strengths}all of LGD's workers are in the lowest ring within 100 iterations"
        yield Claim(text, f"{len(lgd) - len(late)} of {len(lgd)} runs", not late, expected=strong)
        even = [run for run in chosen if run.method == "easgd" and run.offset == 0]
        text = f"{strengths}without offsets EAGD holds all its workers away from it"
        lowest = min(run.values[-1].min() for run in even)
        yield Claim(text, f"the lowest is at {lowest:.3f}", lowest > ARRIVED, expected=strong)
        center = min(run.center for run in even)
        yield Claim(f"{strengths}without offsets EAGD's center stays on the peak", f"f = {center:.3f}", center > 0.99)
        offset = [run for run in chosen if run.method == "easgd" and run.offset > 0]
        out = [run for run in offset if run.arrival is not None]
        text = f"{strengths}with offsets EAGD's workers do not arrive"
        yield Claim(text, f"{len(out)} of {len(offset)} runs do", not out, expected=False)
        never = len(runs[0].values)
        pairs = [(arrivals["lsgd", *run[1:3]] or never, run.arrival or never) for run in offset]
        text = f"{strengths}with offsets LGD's workers arrive sooner than EAGD's"
        told = "; ".join(f"{a if a < never else 'never'} and {b if b < never else 'never'}" for a, b in pairs)
        told = f"at iteration {told}"
        yield Claim(text, told, all(a < b for a, b in pairs), expected=strong)


def draw_trajectories(path: pathlib.Path, runs: list[Run]) -> None:
    """Trajectories over contours of f, and f of each worker over iterations, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.4), layout="constrained")
    panels = figure.subplots(2, 2, height_ratios=(1.6, 1))
    axis = np.linspace(-2, 2, 161)
    landscape = np.sinc(np.hypot(*np.meshgrid(axis, axis)))
    for (above, below), name in zip(panels.T, NAMES, strict=True):
        (run,) = [run for run in runs if run[:3] == (name, SHOWN, OFFSETS[1])]
        filled = above.contourf(axis, axis, landscape, np.linspace(-0.25, 1, 26), cmap="Greys")
        for worker, colour in enumerate((BLUE, VERMILLION, GREEN, BLACK)):
            x, y = run.places[:, worker].T
            width = 7 - 2 * worker  # narrow over wide, since lines coincide
            above.plot(x, y, color=colour, linewidth=width)
            above.plot(x[0], y[0], "o", color=colour, markeredgecolor="white", markersize=7)
            above.plot(x[-1], y[-1], "*", color=colour, markeredgecolor="white", markersize=15)
            below.plot(run.values[:, worker], color=colour, linewidth=width, label=f"worker {worker}")
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


def draw_sweep(path: pathlib.Path, runs: list[Run], iterations: int) -> None:
    """Iterations until all workers are in the lowest ring, over strength; a panel for each size of the offsets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    panels = figure.subplots(1, len(OFFSETS), sharey=True)
    never = 1.6 * iterations
    for panel, offset in zip(panels, OFFSETS, strict=True):
        for name in NAMES:
            mine = [run for run in runs if (run.method, run.offset) == (name, offset)]
            heights = [never if run.arrival is None else run.arrival for run in mine]
            style = line_of(name) | {"label": NAMES[name]}
            panel.plot([run.strength for run in mine], heights, **style)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(STRENGTHS, [f"{strength:g}" for strength in STRENGTHS])
        ticks = [tick for tick in (25, 50, 100, 200, 400, 800, 1600) if tick <= iterations]
        panel.set_yticks([*ticks, never], [*map(str, ticks), "never"])
        panel.minorticks_off()
        panel.axhline(iterations, color="0.6", linewidth=0.8, linestyle="--")
        panel.set_title(f"offsets {offset:g}" if offset else "no offsets", fontsize=10)
        panel.set_xlabel("strength of the pull (λ, β)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("iterations until all workers\nare in the lowest ring")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
