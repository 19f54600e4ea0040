"""A distributed optimizer as an optax transform, for a loop of one's own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lsgd_jax.collectives import GROUP, WORKER, check_bound, is_inexact
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    communications_of,
    scalar_like,
)
from lsgd_jax.optimizers.own import check_own_grads, check_own_params, check_own_value
from lsgd_jax.optimizers.window import Window, empty_window, record, window_mean


class PeriodicState(NamedTuple):
    """State of `periodic`, an ordinary pytree.

    Attributes:
      step: int32[], steps so far, the same on every worker.
      losses: the worker's last losses, or None if the method needs no score.
      inner: the distributed optimizer's state.
    """

    step: jax.Array
    losses: Window | None
    inner: Any


def periodic(
    method: DistributedOptimizer, *, group_axis: str | None = GROUP, worker_axis: str = WORKER
) -> optax.GradientTransformationExtraArgs:
    """Makes a drop-in optax transform that communicates when its time has come.

    Call `init` and `update(grads, state, params, value=loss)` inside whatever
    binds the axes: `jax.shard_map` over a mesh, `jax.pmap`, `jax.vmap`, or one in
    another. Communications sit in `lax.cond`: steps between them send nothing.

    Under a `vmap` of the single step the counter in the state is batched and the
    `cond` becomes a select: the trajectory is right, but every step communicates.
    Put the scan over steps inside the `vmap`, or keep the counter unbatched
    (`in_axes=PeriodicState(step=None, losses=0, inner=0)`).

    Each worker owns its parameters. Those that come into a `jax.shard_map` by P() are one copy
    for all, whose gradient JAX sums over the workers; they are refused until they are made
    one's own by `jax.lax.pcast(params, axis_names, to="varying")`. The gradient of complex
    parameters is what `jax.grad` gives, conjugated, as for all of optax.

    A communication leads to where the method says, but for the rounding of the addition that
    optax ends with: to within a unit in the last place of what the parameter was, or of where it
    goes, whichever is larger. In 16 bits that is much; keep the parameters in float32, and cast
    them in the loss.

    A worker whose parameters are no longer finite never leads, enters no mean and never
    spreads (except with `data_parallel`), but it stays lost: optax only adds updates, and
    NaN plus anything is NaN. The train step of `lsgd_jax.make_train_step` restarts it.

    Args:
      method: what `lsgd`, `data_parallel`, … return.
      group_axis: the name of the axis of groups; None for a flat set of workers.
      worker_axis: the name of the axis of workers in a group.

    Returns:
      An `optax.GradientTransformationExtraArgs`. It raises ValueError when it is traced
      with parameters, gradients or a loss that are the same for all workers, without
      `params`, without a scalar `value` where the method scores workers, where the axes
      are not bound, or when a global period is no multiple of the local one.

    Raises:
      ValueError: if the method is none.
    """
    if not isinstance(method, DistributedOptimizer):
        given = getattr(method, "__name__", type(method).__name__)
        raise ValueError(f"method is {given}: use a distributed optimizer, such as lsgd(optax.adam(1e-3))")
    axes = Axes(group=() if group_axis is None else (group_axis,), worker=(worker_axis,))

    def init(params: optax.Params) -> PeriodicState:
        losses = None if method.window is None else empty_window(scalar_like(params, axes), method.window)
        return PeriodicState(step=jnp.zeros([], jnp.int32), losses=losses, inner=method.init(params, axes))

    def update(
        grads: optax.Updates,
        state: PeriodicState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, PeriodicState]:
        if params is None:
            raise ValueError("a distributed optimizer needs the parameters: call update(grads, state, params, ...)")
        check_bound(axes.all)
        check_own_params(params, axes)
        check_own_grads(grads, axes)
        losses = state.losses
        if losses is not None:
            if value is None:
                raise ValueError(
                    "workers are scored by their loss: call update(grads, state, params, value=loss). Flax's "
                    "TrainState.apply_gradients does not pass it on: call its tx.update and optax.apply_updates"
                )
            check_own_value(value, axes)
            losses = record(losses, value)

        grads = method.reduce_gradients(grads, axes)
        updates, inner = method.update(grads, state.inner, params, value=value, **extra)
        step = state.step + 1
        for communication in communications_of(method, groups=lax.axis_size(axes.group)):
            updates, inner = lax.cond(
                communication.due(step),
                lambda updates, inner, due=communication: _communicate(due, updates, inner, params, losses, axes),
                lambda updates, inner: (updates, inner),
                updates,
                inner,
            )
        return updates, PeriodicState(step=step, losses=losses, inner=inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _communicate(
    due: Communication,
    updates: optax.Updates,
    inner: Any,
    params: optax.Params,
    losses: Window | None,
    axes: Axes,
) -> tuple[optax.Updates, Any]:
    """The updates that lead from `params` to where the communication leaves them."""
    worker_score = jnp.array(jnp.nan) if losses is None else window_mean(losses)
    stepped = optax.apply_updates(params, updates)
    outcome = due.apply(stepped, inner, worker_score, axes.names(due.axes))

    def led_to(new: jax.Array, before: jax.Array, old: jax.Array, update: jax.Array) -> jax.Array:
        if not is_inexact(old):
            return update
        # What has not moved, the leader for one, keeps its update without rounding. A lost worker stays lost, even
        # where the step that broke it could be undone: its losses are not renewed.
        kept = outcome.restarted | (new == before)
        return jnp.where(kept, update, (new - old).astype(update.dtype))

    moved = jax.tree.map(led_to, outcome.params, stepped, params, updates)

    def typed(new: jax.Array, old: jax.Array) -> jax.Array:
        # What a mean brings is the same on every device. Typed like what it replaces, it suits both branches of the
        # cond; of empty arrays `where` loses the type.
        return jnp.where(True, new, old) if old.size else old

    return moved, jax.tree.map(typed, outcome.state, inner)
