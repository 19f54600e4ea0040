"""A small problem to train, in JAX and in NumPy, and every way to map its workers.

Linear regression with a minibatch of its own for each worker and step. Faults
travel with the batches, so that one compiled program serves all of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from numpy_lsgd import Faults, LossAndGrad, Tree

from lsgd_jax import GROUP, WORKER
from lsgd_jax.optimizers.periodic import PeriodicState

GROUPS, WORKERS, STEPS = 2, 3, 60
LEAVES = ("b", "w")
QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: small programs compile in half the time."""
# Bit by bit programs are what they are in runs, not by the emitters that conftest.py asks jax 0.10 for.
AS_IN_RUNS = QUICK | ({"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {})


class Batch(NamedTuple):
    """A minibatch, and what is added to the loss and to the gradient of each leaf."""

    inputs: Any
    targets: Any
    loss_fault: Any
    leaf_faults: dict[str, Any]


class Problem(NamedTuple):
    """All workers' data: leaves have the shape [workers, steps, ...]."""

    initial: Tree
    batches: Batch

    @property
    def starts(self) -> list[Tree]:
        """The parameters at which each worker starts."""
        count = len(self.initial["b"])
        return [{name: leaf[rank] for name, leaf in self.initial.items()} for rank in range(count)]


def make_problem(
    *, count: int = GROUPS * WORKERS, steps: int = STEPS, batch: int = 4, seed: int = 0, same_start: bool = False
) -> Problem:
    """Noisy samples of one linear map; the workers start at points of their own."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(3, 2))
    inputs = rng.normal(size=(count, steps, batch, 3))
    targets = inputs @ teacher + 0.5 + rng.normal(size=(count, steps, batch, 2))
    initial = {"w": rng.normal(size=(count, 3, 2)), "b": rng.normal(size=(count, 2))}
    if same_start:
        initial = {name: np.broadcast_to(leaf[:1], leaf.shape) for name, leaf in initial.items()}
    healthy = np.zeros((count, steps), np.float32)
    batches = Batch(inputs.astype(np.float32), targets.astype(np.float32), healthy, dict.fromkeys(LEAVES, healthy))
    return Problem({name: leaf.astype(np.float32) for name, leaf in initial.items()}, batches)


def with_faults(problem: Problem, faults: Faults) -> Problem:
    """The problem in which losses, and gradients, break as told."""
    losses = problem.batches.loss_fault.copy()
    leaves = {name: fault.copy() for name, fault in problem.batches.leaf_faults.items()}
    for (step, rank), loss in faults.losses.items():
        losses[rank, step - 1] = loss
    for (step, rank), names in faults.leaves.items():
        for name in names:
            leaves[name][rank, step - 1] = np.nan
    return problem._replace(batches=problem.batches._replace(loss_fault=losses, leaf_faults=leaves))


def numpy_loss_and_grad(problem: Problem, workers: int) -> LossAndGrad:
    """The loss and its gradient by hand, without the faults."""
    inputs = problem.batches.inputs.astype(np.float64)
    targets = problem.batches.targets.astype(np.float64)

    def loss_and_grad(x: Tree, step: int, j: int, i: int) -> tuple[float, Tree]:
        rank = j * workers + i
        error = inputs[rank, step - 1] @ x["w"] + x["b"] - targets[rank, step - 1]
        slope = 2 * error / error.size
        return float((error**2).mean()), {"w": inputs[rank, step - 1].T @ slope, "b": slope.sum(axis=0)}

    return loss_and_grad


def loss_of(params: Any, batch: Batch) -> jax.Array:
    return jnp.mean((batch.inputs @ params["w"] + params["b"] - batch.targets) ** 2)


def local_step(
    transform: optax.GradientTransformationExtraArgs, params: Any, state: Any, batch: Batch
) -> tuple[Any, Any]:
    """The user's own loop: what optax's documentation shows, and `value=`."""
    loss, grads = jax.value_and_grad(loss_of)(params, batch)
    grads = {name: grad + batch.leaf_faults[name] for name, grad in grads.items()}
    updates, state = transform.update(grads, state, params, value=loss + batch.loss_fault)
    return optax.apply_updates(params, updates), state


def scanned(transform: optax.GradientTransformationExtraArgs, params: Any, batches: Batch) -> Any:
    """One worker's parameters after each step: the scan stands inside the mapping."""

    def step(carry: tuple[Any, Any], batch: Batch) -> tuple[tuple[Any, Any], Any]:
        carry = local_step(transform, *carry, batch)
        return carry, carry[0]

    _, trajectory = lax.scan(step, (params, transform.init(params)), batches)
    return trajectory


def mesh_of(groups: int, workers: int) -> Mesh:
    return Mesh(np.array(jax.devices()[: groups * workers]).reshape(groups, workers), (GROUP, WORKER))


def laid_out(tree: Any, groups: int) -> Any:
    """[n·l, ...] to [n, l, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(groups, len(leaf) // groups, *leaf.shape[1:]), tree)


def flattened(tree: Any) -> Any:
    """[n, l, ...] to [n·l, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), tree)


def on_mesh(run: Callable[..., Any], groups: int, workers: int) -> Callable[..., Any]:
    """`run`, of one worker, on a device each; no option of `shard_map` is set."""
    everywhere = PartitionSpec((GROUP, WORKER))

    def of_shard(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], run(*jax.tree.map(lambda leaf: leaf[0], args)))

    return jax.jit(jax.shard_map(of_shard, mesh=mesh_of(groups, workers), in_specs=everywhere, out_specs=everywhere))


def in_lanes(run: Callable[..., Any], groups: int) -> Callable[..., Any]:
    """`run`, of one worker, in nested lanes of one device."""
    lanes = jax.vmap(jax.vmap(run, axis_name=WORKER), axis_name=GROUP)
    return jax.jit(lambda *args: flattened(lanes(*(laid_out(arg, groups) for arg in args))), compiler_options=QUICK)


def on_mesh_of_lanes(run: Callable[..., Any], groups: int) -> Callable[..., Any]:
    """Groups on devices, workers in lanes of them: what a `Topology` with too few devices does."""
    mesh = Mesh(np.array(jax.devices()[:groups]), (GROUP,))
    split = PartitionSpec(GROUP)
    lanes = jax.vmap(run, axis_name=WORKER)
    return jax.jit(jax.shard_map(lanes, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))


def on_pmap_of_lanes(run: Callable[..., Any], groups: int) -> Callable[..., Any]:
    mapped = jax.pmap(jax.vmap(run, axis_name=WORKER), axis_name=GROUP)
    return lambda *args: flattened(mapped(*(laid_out(arg, groups) for arg in args)))


def run_scanned(how: Callable[..., Any], transform: optax.GradientTransformationExtraArgs, problem: Problem) -> Tree:
    """The trajectory, [workers, steps, ...], of `scanned` mapped by one of the above."""
    return jax.device_get(how(partial(scanned, transform))(problem.initial, problem.batches))


class Steps(NamedTuple):
    """`init` and `local_step` of all workers, mapped one call at a time; params are [workers, ...]."""

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]


def steps_on_mesh(transform: optax.GradientTransformationExtraArgs) -> Steps:
    """The counter is one number for all devices, and the rest of the state is sharded."""
    split = PartitionSpec((GROUP, WORKER))
    state_spec = PeriodicState(step=PartitionSpec(), losses=split, inner=split)
    shard = partial(jax.shard_map, mesh=mesh_of(GROUPS, WORKERS))

    def inside(state: PeriodicState) -> PeriodicState:
        return jax.tree.map(lambda leaf: leaf[0], state._replace(step=state.step[None]))

    def outside(state: PeriodicState) -> PeriodicState:
        return jax.tree.map(lambda leaf: leaf[None], state)._replace(step=state.step)

    def init(params: Any) -> Any:
        return outside(transform.init(jax.tree.map(lambda leaf: leaf[0], params)))

    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        params, batch = jax.tree.map(lambda leaf: leaf[0], (params, batch))
        params, state = local_step(transform, params, inside(state), batch)
        return jax.tree.map(lambda leaf: leaf[None], params), outside(state)

    return Steps(
        jax.jit(shard(init, in_specs=split, out_specs=state_spec)),
        jax.jit(shard(step, in_specs=(split, state_spec, split), out_specs=(split, state_spec))),
    )


def steps_in_lanes(transform: optax.GradientTransformationExtraArgs) -> Steps:
    """One unbatched counter, as the docstring of `periodic` advises."""
    state_axes = PeriodicState(step=None, losses=0, inner=0)

    def nested(run: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
        axes = {"in_axes": in_axes, "out_axes": out_axes}
        return jax.vmap(jax.vmap(run, axis_name=WORKER, **axes), axis_name=GROUP, **axes)

    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        mapped = nested(partial(local_step, transform), (0, state_axes, 0), (0, state_axes))
        params, state = mapped(laid_out(params, GROUPS), state, laid_out(batch, GROUPS))
        return flattened(params), state

    return Steps(jax.jit(lambda params: nested(transform.init, 0, state_axes)(laid_out(params, GROUPS))), jax.jit(step))


def steps_with_a_counter_each(how: Callable[..., Any], transform: optax.GradientTransformationExtraArgs) -> Steps:
    """No special care: the counter is mapped like everything else."""
    return Steps(how(transform.init), how(partial(local_step, transform)))


def advance(steps: Steps, params: Any, state: Any, batches: Batch, first: int, last: int) -> tuple[Any, Any, Tree]:
    """Parameters and state after some calls, and the trajectory, [workers, steps, ...]."""
    trajectory = []
    for t in range(first, last):
        params, state = steps.step(params, state, jax.tree.map(lambda leaf, t=t: leaf[:, t], batches))
        trajectory.append(jax.device_get(params))
    return params, state, jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *trajectory)
