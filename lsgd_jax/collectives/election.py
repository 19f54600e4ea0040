"""Who leads: an argmin over workers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from lsgd_jax.collectives.axes import AxisName, check_bound


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
      ValueError: if `score` is no scalar, or an axis is not bound.
    """
    check_bound(axis_name)
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
