"""How numbers are summed: which ones can be, in what dtype, and without overflow."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike


def is_inexact(leaf: Any) -> bool:
    """Whether an array, or its shape, is of a floating-point or complex dtype."""
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf), jnp.inexact)


def sum_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which numbers of a floating-point or complex dtype are summed: float32 for narrower ones."""
    own = jnp.dtype(dtype)
    return own if own.itemsize >= 4 else jnp.dtype(jnp.float32)


def power_share(count: int) -> float:
    """The largest power of two that is at most 1 / count.

    So many finite numbers, times it, have a finite sum, in which nothing else is rounded
    than in theirs.
    """
    return 0.5 ** (count - 1).bit_length()
