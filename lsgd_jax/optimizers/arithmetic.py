"""Moves of one worker's parameters, computed in float32 or wider: 16 bits are enough to hold them, not to compute."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.collectives import is_inexact, sum_dtype


def widened(tree: Any) -> Any:
    """The tree in float32, or in its leaves' own dtypes where they are wider or no numbers to compute with."""
    return jax.tree.map(lambda leaf: leaf.astype(sum_dtype(leaf.dtype)) if is_inexact(leaf) else leaf, tree)


def leafwise(function: Callable[..., jax.Array], params: Any, *trees: Any) -> Any:
    """`function(leaf, *leaves)` of the widened leaves, cast to the dtypes of the first tree; its integers stay."""

    def of_leaf(x: jax.Array, *others: jax.Array) -> jax.Array:
        return function(x, *others) if is_inexact(x) else x

    return optax.tree.cast_like(jax.tree.map(of_leaf, *map(widened, (params, *trees))), params)


def toward(target: Any, params: Any, pull: float) -> Any:
    """pull target + (1 - pull) params, with a pull in [0, 1]."""
    return leafwise(lambda x, t: pull * t + (1 - pull) * x, params, target)


def norm(tree: Any) -> jax.Array:
    """float[]: the Euclidean norm over all leaves, without overflow on the way."""
    sizes = [jnp.abs(leaf) for leaf in jax.tree.leaves(widened(tree))]
    if not sizes:
        return jnp.zeros([])
    widest = max((size.dtype for size in sizes), key=lambda dtype: dtype.itemsize)
    sizes = [size.astype(widest) for size in sizes]
    largest = jnp.stack([size.max(initial=0) for size in sizes]).max()
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(sum(jnp.square(size / unit).sum() for size in sizes))
