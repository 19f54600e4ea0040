"""The last few numbers of a worker, and their mean.

Of losses the mean is the worker's score: over the last `window` minibatches, 10
on CIFAR-10 and 64 on ImageNet in the paper. It is a ring of numbers rather than a
running sum, so that a NaN is forgotten once it leaves the window.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lsgd_jax.collectives import power_share


class Window(NamedTuple):
    """The last numbers of one worker.

    Attributes:
      values: float[window], oldest first; the last `filled` of them are real.
      filled: int32[], how many have been recorded, at most `window`.
    """

    values: jax.Array
    filled: jax.Array


def empty_window(like: jax.Array, window: int) -> Window:
    """A window without numbers, varying over the same mapped axes as `like`."""
    return Window(
        values=jnp.full_like(like, 0, shape=(window,), dtype=jnp.result_type(float)),
        filled=jnp.full_like(like, 0, shape=(), dtype=jnp.int32),
    )


def emptied(window: Window) -> Window:
    """The window without its numbers."""
    return empty_window(window.values, window.values.shape[0])


def record(window: Window, value: ArrayLike) -> Window:
    """Adds a number and forgets the oldest."""
    size = window.values.shape[0]
    newest = jnp.asarray(value, window.values.dtype)[None]
    return Window(
        values=jnp.concatenate([window.values[1:], newest]),
        filled=jnp.minimum(window.filled + 1, size),
    )


def window_mean(window: Window) -> jax.Array:
    """float[]: the mean of the recorded numbers, finite where they are; NaN while there are none."""
    size = window.values.shape[0]
    recorded, share = jnp.arange(size, dtype=window.filled.dtype) >= size - window.filled, power_share(size)
    total = jnp.where(recorded, share * window.values, 0).sum()
    return total / (share * window.filled.astype(total.dtype))
