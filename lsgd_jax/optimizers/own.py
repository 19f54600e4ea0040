"""What each worker has to have for itself: its parameters, its gradients and its loss.

Inside `jax.shard_map` arrays have a type that says over which axes of the mesh they differ.
Parameters that do not differ between workers are one copy for all, whose gradients JAX sums over
the workers: no method could tell them from a worker's own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lsgd_jax.collectives import is_inexact, tracked_axes, varies_over
from lsgd_jax.optimizers.distributed_optimizer import Axes


def check_own_params(params: Any, axes: Axes) -> None:
    """Raises ValueError if parameters are known to be shared by workers, or split over other axes of a mesh."""
    tracked = tracked_axes()
    if not tracked:
        return
    leaves = [(path, leaf) for path, leaf in jax.tree.leaves_with_path(params) if is_inexact(leaf)]
    shared = [_shared(leaf, axes, tracked) for _, leaf in leaves]
    for (path, leaf), over in zip(leaves, shared, strict=True):
        name = f"params{jax.tree_util.keystr(path)}"
        if over:
            whole = "params" if len(set(shared)) == 1 else name
            raise ValueError(
                f"{name} is the same for all workers along {over}, and so JAX would sum its gradient: "
                f'first of all, write {whole} = jax.lax.pcast({whole}, {over}, to="varying")'
            )
        if beside := sorted(varies_over(leaf) - set(axes.all)):
            raise ValueError(
                f"{name} is split over {beside} besides the workers' axes: leave these to the compiler, by "
                f"jax.shard_map(..., axis_names={set(axes.all)})"
            )


def check_own_grads(grads: Any, axes: Axes) -> None:
    """Raises ValueError if gradients are known to be shared by workers."""
    for path, leaf in jax.tree.leaves_with_path(grads):
        if is_inexact(leaf) and (over := _shared(leaf, axes, tracked_axes())):
            raise ValueError(
                f"grads{jax.tree_util.keystr(path)} is the same for all workers along {over}: take it at the worker's "
                "own parameters and of its own loss; of what does not learn, let it be jnp.zeros_like(params)"
            )


def check_own_value(value: Any, axes: Axes) -> None:
    """Raises ValueError if a loss by which workers are scored is no scalar, or known to be shared by workers."""
    if not hasattr(value, "dtype") and not isinstance(value, int | float):
        given = type(value).__name__
        raise ValueError(f"value must be a scalar, one worker's mean loss: got a {given}; of (loss, aux) give the loss")
    if jnp.ndim(value):
        raise ValueError(f"value must be a scalar, one worker's mean loss: got one of shape {jnp.shape(value)}")
    if over := _shared(jnp.asarray(value), axes, tracked_axes()):
        raise ValueError(
            f"value is the same for all workers along {over}: give the worker's own loss, no average and no constant"
        )


def _shared(leaf: Any, axes: Axes, tracked: frozenset[str]) -> tuple[str, ...]:
    """The workers' axes over which a leaf is known not to differ."""
    return tuple(name for name in axes.all if name in tracked and name not in varies_over(jnp.asarray(leaf)))
