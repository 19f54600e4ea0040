"""Stationary points: is the leader at one of f where the LSGD objective is stationary? (Theorem 1 of the paper.)

LSGD:  sum of f(x_i) + ρ/2 |x_i - x_leader|², differentiated with the leader held fixed, as in the updates.
EASGD: sum of f(x_i) + ρ/2 |x_i - c|², with c the mean.

Both are stationary where a step of the library's method, with exact gradients, moves no worker. Such points are sought
from many starts, by descent and by Newton's method, and ∇f is measured there. A leader is not pulled, so its step is
-∇f, and where that is zero f is stationary: no place could refute the theorem. What is measured of it tests that the
library's step is so, at random places and where workers rest. What could turn out either way stands beside it: EASGD,
the other workers, and the LSGD objective differentiated through the leader as well. ρ is in units of f's curvature.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import Claim, conclude, experiment, write_csv
from rest_points import LANDSCAPES, SEARCHES, STRENGTHS, Row, search

from lsgd_jax.commands.command_line import Flag, described
from lsgd_jax.compare.palette import STYLES, line_of

TABLE = (
    Flag("workdir", "path", "runs/stationary_points", "folder for stationary_points.png, .csv and claims.json"),
    Flag("starts", "integer", 40, "groups of workers that start, for each function, strength and search"),
    Flag("iterations", "integer", 8000, "gradient steps of a descent"),
    Flag("seed", "integer", 0, "of the starts"),
)

SHOWN = 0.02  # the strength of the places that are drawn


def run(workdir: pathlib.Path, **sizes: Any) -> int:
    """Runs it, and returns its exit code."""
    with jax.enable_x64(True):
        found = list(search(**sizes))
    rows = [row for row, _ in found]
    write_csv(workdir / "stationary_points.csv", Row._fields, rows)
    draw(workdir / "stationary_points.png", found)
    print(
        "stationary points of the objective: how many have a unique leader, and at how many leaders f is not stationary"
    )
    print(f"{'function':<20}{'objective':<10}{'search':<9}" + "".join(f"{f'ρ = {s:g}':>14}" for s in STRENGTHS))
    for row in rows:
        if row.strength == STRENGTHS[0]:
            mine = [other for other in rows if other[:3] == row[:3]]
            cells = "".join(f"{f'{other.unique}, {other.leader_moving} of {other.found}':>14}" for other in mine)
            print(f"{row.landscape:<20}{row.objective:<10}{row.search:<9}{cells}")
    print()
    return conclude(workdir, claims_of(rows))


def claims_of(rows: Sequence[Row]) -> Iterator[Claim]:
    """The claims, and what became of them."""
    by_objective = {name: [row for row in rows if row.objective == name] for name in SEARCHES}

    def total(objective: str, field: str) -> int:
        return sum(getattr(row, field) for row in by_objective[objective])

    def share(objective: str, field: str) -> str:
        return f"{total(objective, field):,} of {total(objective, 'found'):,} are not"

    largest = {name: max(row.leader_off for row in some) for name, some in by_objective.items()}
    yield Claim(
        "Theorem 1, a test of the library: the leader's step is -∇f, the gradient of the LSGD objective there",
        f"at random places it differs by {largest['lsgd']:.1g} at most; EASGD's by up to {largest['easgd']:.1g}",
        largest["lsgd"] < 1e-12 < largest["easgd"],
    )
    tried, unique = total("lsgd", "starts"), total("lsgd", "unique")
    yield Claim(
        "Theorem 1, which follows: where the LSGD objective is stationary, f is so at the leader",
        f"{share('lsgd', 'leader_moving')}, from {tried:,} starts; {unique:,} have a unique leader; "
        f"‖∇f‖ at most {max(row.leader_gradient for row in by_objective['lsgd']):.1g}",
        total("lsgd", "leader_moving") == 0 < unique,
    )
    for field, name in (("leader_moving", "best worker"), ("center_moving", "center")):
        text = f"where the EASGD objective is stationary, f need not be so at the {name}"
        yield Claim(
            text, f"{share('easgd', field)}, from {total('easgd', 'starts'):,} starts", total("easgd", field) > 0
        )
    settled = [row for row in by_objective["easgd"] if row.search == "descent"]
    bad = {strength: sum(row.leader_moving for row in settled if row.strength == strength) for strength in STRENGTHS}
    yield Claim(
        "EASGD also comes to rest at such points, with pulls of every strength",
        ", ".join(f"{count} of {len(LANDSCAPES) * settled[0].starts} starts (ρ = {s:g})" for s, count in bad.items()),
        all(bad.values()),
        expected=False,
    )
    text = "where the LSGD objective is stationary, f is so at all workers"
    yield Claim(text, share("lsgd", "others_moving"), not total("lsgd", "others_moving"), expected=False)
    text = "Theorem 1 also holds for the LSGD objective differentiated through the leader"
    yield Claim(text, share("through", "leader_moving"), not total("through", "leader_moving"), expected=False)


def draw(path: pathlib.Path, found: Sequence[tuple[Row, np.ndarray]]) -> None:
    """Above, where best workers rest, over f; below, how often f is not stationary there, over ρ."""
    from matplotlib.figure import Figure

    names = {
        "lsgd": "LSGD, leader",
        "easgd": "EASGD, best worker",
        "through": "LSGD, differentiated through the leader",
    }
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    panels = figure.subplots(3, len(LANDSCAPES), height_ratios=(1.7, 1, 1), squeeze=False)
    for (above, *below), (name, landscape) in zip(panels.T, LANDSCAPES.items(), strict=True):
        axis = np.linspace(-landscape.side, landscape.side, 121)
        heights = jax.vmap(jax.vmap(landscape.function))(jnp.stack(jnp.meshgrid(axis, axis), axis=-1))
        depth = np.sqrt(np.asarray(heights - heights.min()))  # so that flat minima show too
        above.contourf(axis, axis, depth, 9, cmap="Greys", vmax=3 * depth.max())
        for row, places in found:
            if row.landscape == name and row.search == "descent" and row.strength == SHOWN:
                colour, marker, _ = STYLES[row.objective]
                style = {"color": colour, "marker": marker, "markerfacecolor": "none", "markersize": 7}
                above.plot(*places.T, linestyle="", **style)
        above.set_title(f"{name}, rest at ρ = {SHOWN:g}", fontsize=10)
        above.set_xlabel("x₁")
        above.set_aspect("equal")
        for panel, way in zip(below, ("descent", "Newton"), strict=True):
            for objective, label in names.items():
                mine = [row for row, _ in found if row[:3] == (name, objective, way)]
                style = line_of("none" if objective == "through" else objective) | {"label": label}
                panel.plot(
                    [row.strength for row in mine],
                    [100 * row.leader_moving / max(1, row.found) for row in mine],
                    **style,
                )
            panel.set_xscale("log")
            panel.set_xticks(STRENGTHS, [f"{strength:g}" for strength in STRENGTHS])
            panel.minorticks_off()
            panel.set_ylim(-5, 105)
            panel.grid(alpha=0.3)
        below[-1].set_xlabel("strength ρ [curvature of f]")
    panels[0, 0].set_ylabel("x₂")
    for panel, way in zip(panels[1:, 0], ("where it rests", "by Newton's method"), strict=True):
        panel.set_ylabel(f"{way}:\nf not stationary [%]")
    handles, labels = panels[2, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=90)


main = experiment(__file__, described(__doc__), TABLE, run, least={"starts": 1, "iterations": 1, "seed": 0})

if __name__ == "__main__":
    sys.exit(main(sys.argv))
