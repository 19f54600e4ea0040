"""How good a worker is, and whether it is lost.

The score of a worker is its mean training loss over the last `window` batches
(10 on CIFAR-10 and 64 on ImageNet in the paper). It is a ring of losses rather
than a running sum, so that a NaN is forgotten once it leaves the window.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class LossWindow(NamedTuple):
    """The last losses of one worker.

    Attributes:
      losses: float[window], oldest first; the last `filled` of them are real.
      filled: int32[], how many losses have been recorded, at most `window`.
    """

    losses: jax.Array
    filled: jax.Array


def empty_window(params: Any, window: int) -> LossWindow:
    """A window without losses, varying over the same mapped axes as `params`."""
    leaf = jax.tree.leaves(params)[0]
    return LossWindow(
        losses=jnp.full_like(leaf, 0, shape=(window,), dtype=jnp.result_type(float)),
        filled=jnp.full_like(leaf, 0, shape=(), dtype=jnp.int32),
    )


def record_loss(window: LossWindow, loss: ArrayLike) -> LossWindow:
    """Adds one minibatch loss and forgets the oldest."""
    size = window.losses.shape[0]
    newest = jnp.asarray(loss, window.losses.dtype)[None]
    return LossWindow(
        losses=jnp.concatenate([window.losses[1:], newest]),
        filled=jnp.minimum(window.filled + 1, size),
    )


def score(window: LossWindow) -> jax.Array:
    """float[]: the mean of the recorded losses; NaN while there are none."""
    size = window.losses.shape[0]
    recorded = jnp.arange(size) >= size - window.filled
    total = jnp.where(recorded, window.losses, 0).sum()
    return total / window.filled.astype(total.dtype)


def all_finite(tree: Any) -> jax.Array:
    """bool[]: whether every number in the tree is finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(finite).all()
