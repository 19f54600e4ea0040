"""Layer 1: what workers say to each other, over named axes.

An axis may be an axis of a device mesh (`jax.shard_map`, `jax.pmap`), a lane
axis of `jax.vmap`, or a tuple that mixes both, outermost first. Nothing here
knows or asks which. Every function must be called where the axes are bound.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

GROUP = "group"
WORKER = "worker"

AxisName = str | tuple[str, ...]


class Leader(NamedTuple):
    """The outcome of an election; the same on every worker but for `is_leader`.

    Attributes:
      rank: int32[], row-major index of the leader over the axes of the
        election; -1 where nobody could be elected.
      score: float[], the leader's score; +inf where nobody could be elected.
      is_leader: bool[], whether this worker is the leader.
      valid: bool[], whether there is a leader.
    """

    rank: jax.Array
    score: jax.Array
    is_leader: jax.Array
    valid: jax.Array


def elect_leader(score: ArrayLike, axis_name: AxisName) -> Leader:
    """Elects the worker with the lowest score; ties go to the lowest rank.

    A score that is not finite counts as +inf: its worker cannot lead.
    Two scalars cross the wire: the lowest score, then the lowest rank that has it.

    Args:
      score: float[], this worker's score (its mean training loss, say).
      axis_name: the axis, or the axes from the outermost in, to elect over.

    Returns:
      The `Leader`, with `valid=False` where no score is finite.

    Raises:
      ValueError: if `score` is no scalar.
    """
    score = jnp.asarray(score)
    if score.ndim:
        raise ValueError(f"score must be a scalar, one a worker; got shape {score.shape}")
    score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
    rank = lax.axis_index(axis_name)
    score = jnp.where(jnp.isfinite(score), score, jnp.inf)
    best = lax.pmin(score, axis_name)
    valid = jnp.isfinite(best)
    first = lax.pmin(jnp.where(score == best, rank, lax.axis_size(axis_name)), axis_name)
    return Leader(
        rank=jnp.where(valid, first, -1).astype(jnp.int32),
        score=best,
        is_leader=valid & (rank == first),
        valid=valid,
    )


def broadcast_from_leader(
    tree: Any, leader: Leader, axis_name: AxisName, *, wire_dtype: DTypeLike | None = None
) -> Any:
    """Gives every worker the leader's tree.

    A masked sum: everybody but the leader contributes zeros, by `where`, so a
    NaN elsewhere cannot enter. Without a valid leader each keeps its own tree.

    Args:
      tree: pytree of arrays, of any float, integer or boolean dtypes.
      leader: what `elect_leader` returned over the same axes.
      axis_name: the axis or axes of that election.
      wire_dtype: a narrower floating-point dtype in which float leaves travel
        (`jnp.bfloat16` or `jnp.float16`). The leader keeps its exact tree; the others receive it
        rounded. Leaves that are no wider travel as they are.

    Returns:
      The leader's tree, with the dtypes of `tree`.

    Raises:
      ValueError: if `wire_dtype` is no floating-point dtype of 16 bits or more.
    """
    check_wire_dtype(wire_dtype)

    def broadcast(leaf: ArrayLike) -> jax.Array:
        own = jnp.asarray(leaf)
        sent = _narrowed(own, wire_dtype)
        bits = _as_bits(sent)
        received = lax.psum(jnp.where(leader.is_leader, bits, jnp.zeros_like(bits)), axis_name)
        received = _from_bits(received, sent.dtype).astype(own.dtype)
        return jnp.where(leader.is_leader | ~leader.valid, own, received)

    return jax.tree.map(broadcast, tree)


def mean(tree: Any, axis_name: AxisName, *, where: ArrayLike = True) -> Any:
    """Averages a tree of float arrays over the workers for which `where` holds.

    Args:
      tree: pytree of floating-point arrays.
      axis_name: the axis or axes to average over.
      where: bool[], whether this worker takes part. What the others hold, NaN
        included, does not enter.

    Returns:
      The mean, of the dtypes of `tree`; NaN where nobody takes part.
    """
    taking_part = jnp.asarray(where)
    # Counted from an array that varies over the axes even where `where` is a constant.
    index = lax.axis_index(axis_name)
    count = lax.psum(jnp.where(taking_part, jnp.ones_like(index), 0), axis_name)

    def average(leaf: jax.Array) -> jax.Array:
        total = lax.psum(jnp.where(taking_part, leaf, jnp.zeros_like(leaf)), axis_name)
        return total / count.astype(leaf.dtype)

    return jax.tree.map(average, tree)


def check_wire_dtype(wire_dtype: DTypeLike | None) -> None:
    """Raises ValueError unless `wire_dtype` is None or a floating-point dtype of 16 bits or more."""
    if wire_dtype is None:
        return
    if not jnp.issubdtype(wire_dtype, jnp.floating) or jnp.dtype(wire_dtype).itemsize < 2:
        raise ValueError(f"wire_dtype must be a floating-point dtype of 16 bits or more (bfloat16), got {wire_dtype}")


def wire_dtype_of(leaf_dtype: DTypeLike, wire_dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype in which a leaf travels: `wire_dtype` where that is narrower."""
    own = jnp.dtype(leaf_dtype)
    if wire_dtype is None or not jnp.issubdtype(own, jnp.floating):
        return own
    wire = jnp.dtype(wire_dtype)
    return wire if wire.itemsize < own.itemsize else own


def _narrowed(leaf: jax.Array, wire_dtype: DTypeLike | None) -> jax.Array:
    narrow = wire_dtype_of(leaf.dtype, wire_dtype)
    if narrow == leaf.dtype:
        return leaf
    # What is too large for the narrow dtype must not arrive as infinity.
    return jnp.clip(leaf, jnp.finfo(narrow).min, jnp.finfo(narrow).max).astype(narrow)


def _as_bits(leaf: jax.Array) -> jax.Array:
    """Narrow floats as integers: compilers widen a sum of 16-bit floats on the wire.

    A sum of integers with one non-zero term is exact, whatever they encode.
    """
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint8)
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
        return lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return leaf


def _from_bits(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if dtype == jnp.bool_:
        return bits.astype(jnp.bool_)
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)
