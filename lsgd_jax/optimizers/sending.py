"""What a communication sends: the tree of a leader, or what workers take the mean of.

Either is the first half of a communication, `begin`, and says what is sent apart from how, so that `compressed` can
send it otherwise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lsgd_jax.collectives import (
    BroadcastMethod,
    Leader,
    broadcast_from_leader,
    check_broadcast_method,
    check_wire_dtype,
    elect_leader,
)
from lsgd_jax.optimizers.finite import all_finite, finite_mean


def _params(params: Any, state: Any, axis_name: tuple[str, ...]) -> Any:
    """What most methods send."""
    del state, axis_name
    return params


@dataclasses.dataclass(frozen=True)
class FromLeader:
    """A `begin` that elects a leader and sends what it has: `-> (Leader, tree)`.

    A worker whose score, or anything in its tree, is not finite cannot lead. Without a valid leader
    each worker hears its own tree.

    Attributes:
      of: `(params, state, axis_name) -> tree`; the parameters by default.
      wire_dtype: as of `broadcast_from_leader`, for uncompressed trees.
      broadcast: "psum" or "ring", its `method`.
      by: `(state, score, axis_name) -> float[]`, what the lowest of leads; None for the score itself.

    Raises:
      ValueError: if `wire_dtype` is neither int8 nor a floating-point dtype of 16 bits or more, or
        `broadcast` is unknown.
    """

    of: Callable[[Any, Any, tuple[str, ...]], Any] = _params
    wire_dtype: DTypeLike | None = None
    broadcast: BroadcastMethod = "psum"
    by: Callable[[Any, jax.Array, tuple[str, ...]], jax.Array] | None = None

    def __post_init__(self) -> None:
        check_wire_dtype(self.wire_dtype)
        check_broadcast_method("broadcast", self.broadcast)

    def __call__(self, params: Any, state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> tuple[Leader, Any]:
        tree = self.of(params, state, axis_name)
        leader = self.elect(tree, state, score, axis_name)
        return leader, broadcast_from_leader(tree, leader, axis_name, wire_dtype=self.wire_dtype, method=self.broadcast)

    def elect(self, tree: Any, state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> Leader:
        """The worker with the lowest score among those whose tree is finite."""
        by = score if self.by is None else self.by(state, score, axis_name)
        return elect_leader(jnp.where(all_finite(tree), by, jnp.inf), axis_name)


@dataclasses.dataclass(frozen=True)
class MeanOf:
    """A `begin` that takes the mean of what workers have: `-> tree`.

    A worker whose tree is not finite takes no part; where nobody's is, the mean is NaN.

    Attributes:
      of: `(params, state, axis_name) -> tree`; the parameters by default.
      change: True if the tree is a change since the last communication, False if it is a position.
    """

    of: Callable[[Any, Any, tuple[str, ...]], Any] = _params
    change: bool = False

    def __call__(self, params: Any, state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> Any:
        del score
        return finite_mean(self.of(params, state, axis_name), axis_name)


def with_view(begin: Callable[..., Any], view: Callable[[Any], Any]) -> Callable[..., Any]:
    """The same `begin` of `view(params)` in place of parameters; of what kind it is stays known."""
    if isinstance(begin, FromLeader | MeanOf):
        of = begin.of
        return dataclasses.replace(begin, of=lambda params, *rest: of(view(params), *rest))
    return lambda params, *rest: begin(view(params), *rest)
