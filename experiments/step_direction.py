"""Step direction: how many candidate leaders turn the step toward the Newton step, on convex quadratics.

A candidate z is drawn uniformly from {z : f(z) ≤ f(x)}, together with its mirror image about the minimum. It serves
where angle(d_N, -∇f(x) + λ(z - x)) ≤ angle(d_N, -∇f(x)), with the Newton step d_N. The theorem of Teng et al. 2019
says that at least half of all candidates do, where λ is small or θ = angle(d_N, -∇f(x)) is large. Made explicit, and
as an exact statement about pairs:

    of z and -z at least one serves where λ ≤ 2 m tan²θ, with m the least curvature.

Proof: let x be seen from the minimum, e and n orthonormal with d_N = ‖x‖e and -∇f(x) = ‖∇f(x)‖(e cos θ + n sin θ),
z⊥ = z - (z·e)e. The step is within the angle θ of d_N or of its opposite where

    2‖∇f(x)‖ sin θ (‖x‖ tan θ + z·(e tan θ - n)) ≥ λ(‖z⊥‖² - (‖x‖ + z·e)² tan²θ).

Of z and -z at least one has z·(e tan θ - n) ≥ 0. For it, with m‖z⊥‖² ≤ m‖z‖² ≤ zᵀAz ≤ xᵀAx = ‖x‖‖∇f(x)‖ cos θ,
λ ≤ 2 m tan²θ suffices. It is d_N, not its opposite: the latter needs a part of the step along e below 0, and then
z·(e tan θ - n) ≥ 0 makes its part along n too large.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import Claim, conclude, experiment, write_csv

from lsgd_jax.commands.command_line import Flag, described

TABLE = (
    Flag("workdir", "path", "runs/step_direction", "folder for the figure, the CSV file and claims.json"),
    Flag("seed", "integer", 0, "of points and candidates"),
    Flag("points", "integer", 50, "random points x for each quadratic"),
    Flag("candidates", "integer", 1000, "candidate leaders for each point, half of them mirror images"),
)

QUADRATICS = ((10, 2), (10, 20), (100, 10), (1000, 10), (1000, 100))  # (condition number, dimension); m is 1
PULLS = tuple(10.0**exponent for exponent in range(-4, 7))  # λ / m


class Share(NamedTuple):
    """A row of step_direction.csv: from x at an angle θ, who serves of the candidates.

    Attributes:
      condition: κ.
      dimension: of x.
      degrees: θ.
      pull: λ / m.
      share: of the candidates, those that serve.
      error: the standard error of the share.
      pairs: how many pairs z and -z there are.
      neither: how many of them have none that serves.
    """

    condition: int
    dimension: int
    degrees: float
    pull: float
    share: float
    error: float
    pairs: int
    neither: int

    @property
    def threshold(self) -> float:
        """The theorem's largest λ / m."""
        return float(2 * np.tan(np.radians(self.degrees)) ** 2)

    @property
    def at_least_half(self) -> bool:
        """Whether at least half of the candidates serve, within 3 standard errors."""
        return self.share >= 0.5 - 3 * self.error - 1e-12


def run(workdir: pathlib.Path, **sizes: Any) -> int:
    """Runs it, and returns its exit code."""
    shares = survey(**sizes)
    write_csv(workdir / "step_direction.csv", Share._fields, shares)
    draw(workdir / "step_direction.png", shares)
    code = conclude(workdir, conclusions(shares))
    print(f"\nresults in {workdir}: claims.json, step_direction.csv, step_direction.png")
    return code


def survey(seed: int, points: int, candidates: int) -> list[Share]:
    """The share of candidates that serve, for each quadratic, x and λ."""
    import jax
    from strongly_convex.problems import scattered

    rng = np.random.default_rng(seed)
    shares = []
    with jax.enable_x64(True):
        for condition, dimension in QUADRATICS:
            curvatures = np.geomspace(1, condition, dimension)  # turning the axes would change no angle
            x = scattered(rng, (points, dimension)) / curvatures**0.5  # many near the largest angle there is
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            leaders = sample_leaders(curvatures, x, candidates // 2, rng)
            angles, serves = serving(curvatures, x, leaders, np.array(PULLS))
            of_pairs = serves.reshape(len(PULLS), points, 2, -1).sum(2)  # 0, 1 or 2 of each
            pairs, neither = of_pairs.shape[-1], (of_pairs == 0).sum(-1)
            share, error = of_pairs.mean(-1) / 2, of_pairs.std(-1) / 2 / pairs**0.5
            shares += [
                Share(
                    *(condition, dimension, float(angles[i]), pull),
                    *(float(share[j, i]), float(error[j, i]), pairs, int(neither[j, i])),
                )
                for i in range(points)
                for j, pull in enumerate(PULLS)
            ]
    return shares


def sample_leaders(curvatures: np.ndarray, x: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """float[points, 2 pairs, dimension], uniform in {z : f(z) ≤ f(x)}; the second half mirrors the first."""
    points, dimension = x.shape
    ball = rng.normal(size=(points, pairs, dimension))
    ball *= rng.uniform(size=(points, pairs, 1)) ** (1 / dimension) / np.linalg.norm(ball, axis=-1, keepdims=True)
    leaders = ball / curvatures**0.5 * (x**2 @ curvatures)[:, None, None] ** 0.5
    return np.concatenate([leaders, -leaders], axis=1)


def serving(
    curvatures: np.ndarray, x: np.ndarray, leaders: np.ndarray, pulls: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(float[points] degrees between gradient and Newton step, bool[pulls, points, candidates] who serves).

    Args:
      curvatures: float[dimension]; the minimum is at 0.
      x: float[points, dimension].
      leaders: float[points, candidates, dimension].
      pulls: float[pulls], λ.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from lsgd_jax import leader_pull

    hessian = jnp.asarray(curvatures)  # its diagonal

    def angle(newton: jax.Array, step: jax.Array) -> jax.Array:
        # By its tangent: exact where the angle is small.
        along = step @ newton / jnp.linalg.norm(newton)
        across = jnp.linalg.norm(step - along * newton / jnp.linalg.norm(newton))
        return jnp.arctan2(across, along)

    def serves(x: jax.Array, leader: jax.Array, pull: jax.Array) -> jax.Array:
        rate = 1 / (hessian[-1] + pull)  # any: it changes no angle
        optimizer = optax.chain(optax.sgd(rate), leader_pull(lambda step: rate * pull))
        gradient = hessian * x
        step, _ = optimizer.update(gradient, optimizer.init(x), x, local_leader=leader)
        return angle(-x, step) <= angle(-x, -gradient)

    over_leaders = jax.vmap(serves, (None, 0, None))
    over_points = jax.vmap(over_leaders, (0, 0, None))
    found = jax.jit(over_points)
    angles = jax.vmap(lambda x: angle(-x, -hessian * x))(jnp.asarray(x))
    return np.degrees(angles), np.stack([found(x, leaders, pull) for pull in pulls])


def conclusions(shares: Sequence[Share]) -> list[Claim]:
    """That at least half serve where the theorem says so, and where that ends."""
    inside = [share for share in shares if share.pull <= share.threshold]
    beyond = [share for share in shares if share.pull > share.threshold]
    low = [share for share in beyond if not share.at_least_half]
    lowest = min((share for share in inside), key=lambda share: share.share)
    ends = f"fewer than half in {len(low):,} of {len(beyond):,} cases, "
    if low:
        first = min(low, key=lambda share: share.pull / share.threshold)
        widest = max(low, key=lambda share: share.degrees)
        ends += f"from λ = {first.pull / first.threshold:.1f} times 2m tan²θ on, up to θ = {widest.degrees:.0f}°"
    pairs, neither = (sum(of) for of in zip(*(share[-2:] for share in inside), strict=True))
    return [
        Claim(
            "Step direction: of z and −z with f(z) ≤ f(x) at least one turns the step toward the Newton step, "
            "where λ is small or the angle θ large: λ ≤ 2m tan²θ",
            f"neither does in {neither:,} of {pairs:,} pairs, in {len(inside):,} cases of x and λ, "
            f"θ from {min(s.degrees for s in inside):.2g}° to {max(s.degrees for s in inside):.0f}°; "
            f"so at least {lowest.share:.3f} of all z do",
            neither == 0,
        ),
        Claim(
            "Step direction: at least half of {z : f(z) ≤ f(x)} turn the step toward the Newton step, "
            "for any λ and θ beyond",
            ends,
            not low,
            expected=False,
        ),
    ]


def draw(path: pathlib.Path, shares: Sequence[Share]) -> None:
    """Where at least half serve, over λ and θ, a panel for each quadratic."""
    from matplotlib.figure import Figure

    from lsgd_jax.compare.palette import BLACK, BLUE, VERMILLION

    rows, columns = -(-len(QUADRATICS) // 3), min(3, len(QUADRATICS))
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in panels.flat[len(QUADRATICS) :]:
        panel.set_axis_off()
    for panel, quadratic in zip(panels.flat, QUADRATICS, strict=False):
        mine = [share for share in shares if (share.condition, share.dimension) == quadratic]
        for half, colour, marker, name in (
            (True, BLUE, ".", "at least half serve"),
            (False, VERMILLION, "x", "fewer than half serve"),
        ):
            chosen = [share for share in mine if share.at_least_half == half]
            panel.plot([s.degrees for s in chosen], [s.pull for s in chosen], marker, color=colour, markersize=4,
                       linestyle="", label=name)  # fmt: skip
        degrees = np.linspace(0.3, 89, 300)
        panel.plot(degrees, 2 * np.tan(np.radians(degrees)) ** 2, color=BLACK, linewidth=2,
                   label="λ = 2m tan²θ: the theorem holds below")  # fmt: skip
        panel.set_yscale("log")
        panel.set_ylim(PULLS[0] / 2, PULLS[-1] * 2)
        panel.set_xlim(0, 90)
        panel.set_xticks(range(0, 91, 30))
        panel.set_title(f"κ = {quadratic[0]}, d = {quadratic[1]}", fontsize=10)
        panel.set_xlabel("θ, gradient to Newton step [degrees]")
    for panel in panels[:, 0]:
        panel.set_ylabel("λ / m [1]")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


main = experiment(__file__, described(__doc__), TABLE, run, least={"seed": 0, "points": 1, "candidates": 10})

if __name__ == "__main__":
    sys.exit(main(sys.argv))
