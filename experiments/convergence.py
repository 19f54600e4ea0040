"""Strongly convex functions: one step, the rate, a stochastic leader, and longer periods.

The bounds are those of Teng et al. 2019 for f with curvature from m to M and gradient noise σ; the derivations, with
explicit conditions, are in experiments/strongly_convex/.
"""

import pathlib
import sys
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import conclude
from command_line import Flag, command, define, describe, described, parse, refuse

TABLE = (
    Flag("workdir", "path", "runs/convergence", "folder for the figures, the CSV files and claims.json"),
    Flag("seed", "integer", 0, "of problems, starts and noise"),
    Flag("pairs", "integer", 1000, "random pairs of a worker and its leader for each learning rate and pull"),
    Flag("steps", "integer", 4000, "of a descent, at least 1000"),
    Flag("repeats", "integer", 16, "descents over which a mean is taken, at least 4"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    sizes: dict[str, Any] = {name: FLAGS[name].value for name in ("seed", "pairs", "steps", "repeats")}
    for name, least in (("seed", 0), ("pairs", 1), ("steps", 1000), ("repeats", 4)):
        if sizes[name] < least:
            return refuse(argv, f"--{name}={sizes[name]}: must be at least {least}")
    workdir = pathlib.Path(str(FLAGS.workdir))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        code = run(workdir, **sizes)
    except OSError as error:
        return refuse(argv, f"cannot write to --workdir={FLAGS.workdir} ({error.strerror}): choose another folder")
    print(f"\nresults in {workdir}: claims.json, and a .png and a .csv of each part")
    return code


def usage() -> str:
    """The text of --help."""
    lines = ["usage: python experiments/convergence.py [--flag=value ...]", "", described(__doc__), ""]
    return "\n".join([*lines, *describe(TABLE)])


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


if __name__ == "__main__":
    sys.exit(main(sys.argv))
