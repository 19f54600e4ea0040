"""`lsgd` and its simulation with the same settings, side by side."""

from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax
from numpy_lsgd import Run, Settings, Sgd, Tree, simulate
from regression import GROUPS, STEPS, WORKERS, Problem, in_lanes, numpy_loss_and_grad, scanned

from lsgd_jax import lsgd, periodic
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer

SGD = Sgd(learning_rate=0.02, momentum=0.9, nesterov=True, weight_decay=0.01)
PLAIN = Settings(GROUPS, WORKERS, local_pull=0.3, global_pull=0.2, local_period=3, global_period=6, window=4)
STALE = replace(PLAIN, stale_local_pull=0.05, stale_global_pull=0.03)


def optax_sgd() -> optax.GradientTransformation:
    """What `SGD` is, in optax."""
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.02, momentum=0.9, nesterov=True))


def method(
    settings: Settings, base: optax.GradientTransformation | None = None, **arguments: Any
) -> DistributedOptimizer:
    """`lsgd` with these settings."""
    options = {name: value for name, value in asdict(settings).items() if name not in ("groups", "workers")}
    return lsgd(base or optax_sgd(), **options, **arguments)


@cache
def compiled(settings: Settings, wire_dtype: str | None = None) -> Any:
    """Workers in lanes of one device; `test_periodic.py` has the other ways to map them."""
    transform = periodic(method(settings, wire_dtype=wire_dtype))
    return in_lanes(partial(scanned, transform), settings.groups)


def train(problem: Problem, settings: Settings, wire_dtype: str | None = None) -> Tree:
    """The trajectory, [workers, steps, ...]."""
    return jax.device_get(compiled(settings, wire_dtype)(problem.initial, problem.batches))


def expected(problem: Problem, settings: Settings, **options: Any) -> Run:
    """What the simulation does; options are those of `simulate`."""
    gradient = numpy_loss_and_grad(problem, settings.workers)
    return simulate(problem.starts, gradient, settings, SGD, STEPS, **options)


def assert_same(trajectory: Tree, run: Run, tolerance: float = 1e-5) -> None:
    """Workers that the simulation did not lose are where it has them, at every step."""
    healthy = np.isfinite(run.trajectory["w"]).all(axis=(2, 3)) & np.isfinite(run.trajectory["b"]).all(axis=2)
    assert healthy.any()
    for name, reference in run.trajectory.items():
        ours = np.swapaxes(trajectory[name], 0, 1)
        np.testing.assert_allclose(ours[healthy], reference[healthy], rtol=0, atol=tolerance, err_msg=name)
