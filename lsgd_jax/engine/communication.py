"""What one worker does in a communication of the train step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.collectives import Leader, broadcast_from_leader, elect_leader
from lsgd_jax.collectives.axes import summed_axes
from lsgd_jax.optimizers.distributed_optimizer import Communication, DistributedOptimizer
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.window import Window, emptied, window_mean


class WorkerState(NamedTuple):
    """What a communication may change of a worker.

    Attributes:
      params: the parameters.
      model_state: what else the model keeps (batch statistics); may be empty.
      opt_state: the distributed optimizer's state.
      losses: the last losses.
    """

    params: Any
    model_state: Any
    opt_state: Any
    losses: Window


def communicate(
    communication: Communication, method: DistributedOptimizer, axis_name: tuple[str, ...], worker: WorkerState
) -> tuple[WorkerState, Leader | None, jax.Array]:
    """Communicates, and starts a worker whose parameters are not finite again.

    Such a worker gets the parameters that the method gives it and the model state of
    the leader, or of the best worker where the method elects none, a fresh optimizer
    state and no losses.

    Args:
      communication: the one that is due.
      method: the method it belongs to.
      axis_name: the bound names of its axes.
      worker: the worker after its local steps.

    Returns:
      The worker after it; who was elected, or None for a method without leaders;
      bool[], whether the worker started again.
    """
    score = window_mean(worker.losses)
    outcome = communication.apply(worker.params, worker.opt_state, score, axis_name)
    restarted_state = worker.model_state
    if jax.tree.leaves(restarted_state) and not communication.ahead:
        best = outcome.leader or elect_leader(jnp.where(all_finite(worker.params), score, jnp.inf), axis_name)
        restarted_state = broadcast_from_leader(restarted_state, best, axis_name)
    fresh = begin_again(method, WorkerState(outcome.params, restarted_state, outcome.state, worker.losses))
    kept = WorkerState(outcome.params, worker.model_state, outcome.state, worker.losses)
    worker = jax.tree.map(lambda new, old: jnp.where(outcome.restarted, new, old), fresh, kept)
    return worker, outcome.leader, outcome.restarted


def somebody_lost(axis_name: tuple[str, ...], params: Any) -> jax.Array:
    """bool[], the same for all: whether any worker of these axes has parameters that are not finite."""
    return lax.psum((~all_finite(params)).astype(jnp.int32), summed_axes(axis_name)) > 0


def begin_again(method: DistributedOptimizer, worker: WorkerState) -> WorkerState:
    """A worker that starts again from the parameters that it has: with a fresh optimizer state and no losses."""
    return worker._replace(
        opt_state=method.restart(worker.params, worker.opt_state),
        losses=emptied(worker.losses),
    )
