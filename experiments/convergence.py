"""Strongly convex functions: one step, the rate, a stochastic leader, and longer periods.

The bounds are those of Teng et al. 2019 for f with curvature from m to M and gradient noise σ; the derivations, with
explicit conditions, are in experiments/strongly_convex/.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import conclude, experiment

from lsgd_jax.commands.command_line import Flag, described

TABLE = (
    Flag("workdir", "path", "runs/convergence", "folder for the figures, the CSV files and claims.json"),
    Flag("seed", "integer", 0, "of problems, starts and noise"),
    Flag("pairs", "integer", 1000, "random pairs of a worker and its leader for each learning rate and pull"),
    Flag("steps", "integer", 4000, "of a descent, at least 1000"),
    Flag("repeats", "integer", 16, "descents over which a mean is taken, at least 4"),
)


def run(workdir: pathlib.Path, *, seed: int, pairs: int, steps: int, repeats: int) -> int:
    """Runs all parts, and returns the exit code."""
    import jax
    import numpy as np
    from strongly_convex import one_step, periods, rate, stochastic_leader
    from strongly_convex.problems import logistic, quadratic

    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        narrow, wide = quadratic(rng, 2, 2), quadratic(rng, 10, 10)
        other = logistic(rng, 10, 0.1)
        few = steps // 2
        return conclude(
            workdir,
            [
                *one_step.run((narrow, wide, other), pairs, rng, workdir),
                *rate.run((wide, other), steps, repeats, rng, workdir),
                *stochastic_leader.run(wide, few, repeats, rng, workdir),
                *periods.run(wide, few, repeats, rng, workdir),
            ],
        )


main = experiment(__file__, described(__doc__), TABLE, run, least={"seed": 0, "pairs": 1, "steps": 1000, "repeats": 4})

if __name__ == "__main__":
    sys.exit(main(sys.argv))
