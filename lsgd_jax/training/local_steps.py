"""What workers do between two communications."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax
from jax import lax

from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, keep_gradients
from lsgd_jax.optimizers.window import record
from lsgd_jax.training.communication import WorkerState
from lsgd_jax.training.schedules import Factor
from lsgd_jax.training.topology import Topology


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
        each worker seeing its own part, or are the same for all.
    """

    plan: Callable[[jax.Array, jax.Array, int], Any]
    draw: Callable[[Any, Any, jax.Array], Any]
    per_worker: bool


def make_local_steps(
    optimizer: DistributedOptimizer, topology: Topology, loss: Loss, batches: Batches, longest: int
) -> Callable[[WorkerState, jax.Array, jax.Array, jax.Array, Factor, Any], WorkerState]:
    """Makes the function that takes up to `longest` steps on all workers of a device.

    Returns:
      `(workers, keys, step, steps, factor, data) -> workers`, where leaves of the workers
      and `keys` have the shape (groups, workers, ...) of a device, `step` is that of
      the first and `steps` how many there are, both int32[] and the same for all, and
      `factor` is that of the learning rate.
    """
    data_axis = 0 if batches.per_worker else None

    def plan(step: jax.Array, key: jax.Array) -> Any:
        return batches.plan(jax.random.fold_in(key, 0), step, longest)

    def gradient(worker: WorkerState, key: jax.Array, planned: Any, step: jax.Array, data: Any) -> Any:
        draw_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), step))
        batch = batches.draw(data, planned, draw_key)
        return jax.value_and_grad(loss, has_aux=True)(worker.params, worker.model_state, batch, loss_key)

    def update(worker: WorkerState, value: jax.Array, model_state: Any, grads: Any, rate: jax.Array) -> WorkerState:
        updates, opt_state = optimizer.update(grads, worker.opt_state, worker.params, value=value, rate_factor=rate)
        params, losses = optax.apply_updates(worker.params, updates), record(worker.losses, value)
        return WorkerState(params, model_state, opt_state, losses)

    def apart(
        workers: WorkerState, keys: Any, to_draw: Any, step: jax.Array, steps: jax.Array, factor: Factor, data: Any
    ) -> WorkerState:
        """All steps of a worker, then all of the next: only one gradient at a time takes memory."""

        def all_steps(worker: WorkerState, key: jax.Array, to_draw: Any, data: Any) -> WorkerState:
            def local_step(i: jax.Array, worker: WorkerState) -> WorkerState:
                planned = jax.tree.map(lambda x: x[i], to_draw)
                (value, model_state), grads = gradient(worker, key, planned, step + i, data)
                return update(worker, value, model_state, grads, factor(step + i))

            return lax.fori_loop(0, steps, local_step, worker)

        return topology.update_lanes(all_steps, in_axes=(0, 0, data_axis))(workers, keys, to_draw, data)

    def in_step(
        workers: WorkerState, keys: Any, to_draw: Any, step: jax.Array, steps: jax.Array, factor: Factor, data: Any
    ) -> WorkerState:
        """A step of all workers, then the next: their gradients meet in each."""
        gradients = topology.each_lane(gradient, in_axes=(0, 0, 0, None, data_axis))

        def reduce_and_update(
            worker: WorkerState, value: jax.Array, model_state: Any, grads: Any, rate: jax.Array
        ) -> WorkerState:
            return update(worker, value, model_state, optimizer.reduce_gradients(grads, topology.axes), rate)

        def local_step(i: jax.Array, workers: WorkerState) -> WorkerState:
            planned = jax.tree.map(lambda x: x[:, :, i], to_draw)
            (values, model_state), grads = gradients(workers, keys, planned, step + i, data)
            together = topology.over_lanes(reduce_and_update, in_axes=(0, 0, 0, 0, None))
            return together(workers, values, model_state, grads, factor(step + i))

        return lax.fori_loop(0, steps, local_step, workers)

    def local_steps(
        workers: WorkerState, keys: jax.Array, step: jax.Array, steps: jax.Array, factor: Factor, data: Any
    ) -> WorkerState:
        to_draw = topology.over_lanes(plan, in_axes=(None, 0))(step, keys)
        take_all = apart if optimizer.reduce_gradients is keep_gradients else in_step
        return take_all(workers, keys, to_draw, step, steps, factor, data)

    return local_steps
