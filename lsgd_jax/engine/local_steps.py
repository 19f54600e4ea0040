"""What workers do between two communications."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER, is_inexact
from lsgd_jax.collectives.partition import split_samples
from lsgd_jax.engine.communication import WorkerState
from lsgd_jax.engine.schedules import Factor
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, keep_gradients
from lsgd_jax.optimizers.window import record


class Loss(Protocol):
    """`loss(params, model_state, batch, key) -> (loss, model_state)` of one worker."""

    def __call__(self, params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]: ...


class Batches(NamedTuple):
    """Where a worker's minibatches come from.

    Attributes:
      plan: `(key, first_step, steps) -> pytree` with a leading axis of `steps`:
        what each of the steps is to draw; `steps` is a Python integer.
      draw: `(data, planned, key) -> batch`, for one step.
      per_worker: whether the leaves of `data` have the shape (groups, workers, ...),
        each worker seeing its own part, or are the same for all; a bool, or a pytree
        of them that `data` begins with.
    """

    plan: Callable[[jax.Array, jax.Array, int], Any]
    draw: Callable[[Any, Any, jax.Array], Any]
    per_worker: Any

    @property
    def specs(self) -> Any:
        """How `shard_map` splits `data`."""
        return jax.tree.map(lambda own: PartitionSpec(GROUP, WORKER) if own else PartitionSpec(), self.per_worker)


class Draws(NamedTuple):
    """What a worker draws in a call.

    Attributes:
      key: of the worker.
      first: int32[], steps it has taken before: what it draws follows its own count.
      planned: of `Batches.plan`, from there on.
    """

    key: jax.Array
    first: jax.Array
    planned: Any


def make_local_steps(
    method: DistributedOptimizer, topology: Topology, loss: Loss, batches: Batches, longest: int
) -> Callable[[WorkerState, jax.Array, jax.Array, jax.Array, Factor, Any], WorkerState]:
    """Makes the function that takes up to `longest` steps on all workers of a device.

    Returns:
      `(workers, keys, own_steps, steps, factor, data) -> workers`, where leaves of the
      workers, `keys` and `own_steps` have the shape (groups, workers, ...) of a device.
      `own_steps`, int32, is how many each has taken before. `steps` is how many to take:
      int32[], the same for all, or int32 of each worker, for methods that keep gradients.
      `factor` is that of the learning rate, from the index of a step in the call.
    """
    data_axis = jax.tree.map(lambda own: 0 if own else None, batches.per_worker)

    def plan(key: jax.Array, first: jax.Array) -> Draws:
        return Draws(key, first, batches.plan(jax.random.fold_in(key, 0), first, longest))

    def gradient(worker: WorkerState, draws: Draws, i: jax.Array, data: Any) -> Any:
        step_key = jax.random.fold_in(jax.random.fold_in(draws.key, 1), draws.first + i)
        draw_key, loss_key = jax.random.split(step_key)
        batch = split_samples(batches.draw(data, jax.tree.map(lambda x: x[i], draws.planned), draw_key))
        differentiate = jax.value_and_grad(loss, has_aux=True, allow_int=True)
        found, grads = differentiate(worker.params, worker.model_state, batch, loss_key)
        return found, topology.split(jax.tree.map(_uphill, grads, worker.params))

    def update(worker: WorkerState, value: jax.Array, model_state: Any, grads: Any, rate: jax.Array) -> WorkerState:
        updates, opt_state = method.update(grads, worker.opt_state, worker.params, value=value, rate_factor=rate)
        params, losses = optax.apply_updates(worker.params, updates), record(worker.losses, value)
        return topology.split(WorkerState(params, model_state, opt_state, losses))

    def worker_by_worker(
        workers: WorkerState, draws: Draws, steps: jax.Array, factor: Factor, data: Any
    ) -> WorkerState:
        """All steps of a worker, then all of the next: only one gradient at a time takes memory."""

        def all_steps(worker: WorkerState, draws: Draws, steps: jax.Array, data: Any) -> WorkerState:
            def local_step(i: jax.Array, worker: WorkerState) -> WorkerState:
                (value, model_state), grads = gradient(worker, draws, i, data)
                return update(worker, value, model_state, grads, factor(i))

            return lax.fori_loop(0, steps, local_step, worker)

        in_axes = (0, 0 if steps.ndim else None, data_axis)
        return topology.update_lanes(all_steps, in_axes)(workers, draws, steps, data)

    def in_step(workers: WorkerState, draws: Draws, steps: jax.Array, factor: Factor, data: Any) -> WorkerState:
        """A step of all workers, then the next: their gradients meet in each."""
        gradients = topology.each_lane(gradient, in_axes=(0, 0, None, data_axis))

        def reduce_and_update(
            worker: WorkerState, value: jax.Array, model_state: Any, grads: Any, rate: jax.Array
        ) -> WorkerState:
            with jax.named_scope("gradient"):
                grads = method.reduce_gradients(grads, topology.axes)
            return update(worker, value, model_state, grads, rate)

        def local_step(i: jax.Array, workers: WorkerState) -> WorkerState:
            (values, model_state), grads = gradients(workers, draws, i, data)
            together = topology.over_lanes(reduce_and_update, in_axes=(0, 0, 0, 0, None))
            return together(workers, values, model_state, grads, factor(i))

        return lax.fori_loop(0, steps, local_step, workers)

    def local_steps(
        workers: WorkerState, keys: jax.Array, own_steps: jax.Array, steps: jax.Array, factor: Factor, data: Any
    ) -> WorkerState:
        draws = topology.over_lanes(plan)(keys, own_steps)
        take_all = worker_by_worker if keeps_gradients(method) else in_step
        return take_all(workers, draws, steps, factor, data)

    return local_steps


def _uphill(grad: jax.Array, param: jax.Array) -> jax.Array:
    """The gradient as optax takes it: of complex parameters what JAX gives, conjugated; of integers zero."""
    return jnp.conj(grad) if is_inexact(param) else jnp.zeros_like(param)


def keeps_gradients(method: DistributedOptimizer) -> bool:
    """Whether workers step independently, so that each may take as many steps as it likes."""
    return method.reduce_gradients is keep_gradients
