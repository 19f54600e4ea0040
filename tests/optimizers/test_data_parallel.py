"""`data_parallel`: N workers with batch B take the steps of one worker with batch N·B."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from regression import GROUPS, STEPS, WORKERS, in_lanes, loss_of, make_problem, on_mesh, run_scanned

from lsgd_jax import data_parallel, periodic


def one_worker(base: optax.GradientTransformation, params: Any, batches: Any) -> Any:
    """Plain optax on the minibatches of all workers together."""

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        updates, state = base.update(jax.grad(loss_of)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda: jax.lax.scan(step, (params, base.init(params)), batches)[1])()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lanes", "mesh"])
@pytest.mark.parametrize(
    "base", [optax.sgd(0.05, momentum=0.9, nesterov=True), optax.adamw(0.01)], ids=["sgd", "adamw"]
)
def test_many_workers_take_the_steps_of_one_with_all_their_batches(how: str, base: Any) -> None:
    problem = make_problem(same_start=True)
    mapped = partial(in_lanes, groups=GROUPS) if how == "lanes" else partial(on_mesh, groups=GROUPS, workers=WORKERS)
    trajectory = run_scanned(mapped, periodic(data_parallel(base)), problem)

    together = jax.tree.map(lambda leaf: np.swapaxes(leaf, 0, 1).reshape(STEPS, -1, *leaf.shape[3:]), problem.batches)
    reference = one_worker(base, problem.starts[0], together)
    for name, leaf in trajectory.items():
        np.testing.assert_allclose(leaf, np.broadcast_to(reference[name], leaf.shape), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_no_loss_is_needed() -> None:
    transform = periodic(data_parallel(optax.sgd(1.0)))

    def update(x: jax.Array) -> jax.Array:
        return transform.update(x, transform.init(x), x)[0]

    updates = in_lanes(update, GROUPS)(jnp.arange(6.0))
    np.testing.assert_allclose(updates, np.full(6, -2.5))


def test_nothing_happens_periodically() -> None:
    optimizer = data_parallel(optax.sgd(0.1))
    assert optimizer.communications == ()
    assert optimizer.window is None
