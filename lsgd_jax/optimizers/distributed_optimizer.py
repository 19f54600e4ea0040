"""Layer 2: what a distributed optimizer is.

A small set of pure functions of *one worker's* parameters and state, over named
axes. They run unchanged on devices of a mesh, on lanes of `vmap`, or on both.
`periodic` makes an optax transform of one; the train step drives one directly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax
from jax.typing import DTypeLike

from lsgd_jax.collectives import GROUP, WORKER, Leader, wire_bytes


class Axes(NamedTuple):
    """The bound axis names that make up each logical axis, outermost first.

    A flat set of workers has `group=()`: it is one group.
    """

    group: tuple[str, ...] = (GROUP,)
    worker: tuple[str, ...] = (WORKER,)

    def names(self, logical: tuple[str, ...]) -> tuple[str, ...]:
        """The bound names of some logical axes: of (GROUP, WORKER), say."""
        return (self.group if GROUP in logical else ()) + (self.worker if WORKER in logical else ())

    @property
    def all(self) -> tuple[str, ...]:
        """The bound names of all workers of all groups."""
        return self.group + self.worker


class Outcome(NamedTuple):
    """What a communication did to one worker.

    Attributes:
      params: the parameters after it.
      state: the method's state after it.
      leader: who was elected, or None for a method without leaders.
      restarted: bool[], whether the worker's parameters were not finite and have
        been replaced. `DistributedOptimizer.restart` then renews its state.
    """

    params: optax.Params
    state: Any
    leader: Leader | None
    restarted: jax.Array


class Communication(NamedTuple):
    """One kind of communication of a method.

    Attributes:
      period: local steps of a worker between two of them.
      axes: the logical axes it crosses: (WORKER,) inside each group, or
        (GROUP, WORKER) among all workers.
      apply: `(params, state, score, axis_name) -> Outcome`, where `score` is the
        worker's float[] score and `axis_name` the bound names of `axes`.
      bytes_sent: `(params, workers) -> int`, the bytes that `workers` workers
        with such parameters send in it together.
    """

    period: int
    axes: tuple[str, ...]
    apply: Callable[[Any, Any, jax.Array, tuple[str, ...]], Outcome]
    bytes_sent: Callable[[Any, int], int]

    @property
    def level(self) -> str:
        """ "global" if it crosses groups, "local" if it stays inside one."""
        return "global" if GROUP in self.axes else "local"


class Update(Protocol):
    """`update(grads, state, params, value=loss) -> (updates, state)`."""

    def __call__(
        self, grads: optax.Updates, state: Any, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, Any]: ...


class DistributedOptimizer(NamedTuple):
    """A distributed optimizer: `lsgd`, `data_parallel`, and those beside them.

    Attributes:
      init: `params -> state`, of one worker.
      reduce_gradients: `(grads, axes) -> grads`; the identity but for methods
        that average gradients.
      update: one local step; never communicates.
      communications: those that happen now and then, in the order in which they
        are applied when several are due.
      center: `(params, state, axes) -> params`, the model to evaluate.
      restart: `(params, state) -> state`, of a worker that starts again from
        `params`: the base optimizer's state is fresh, what it has received from
        others stays.
      gradient_bytes: `(params, workers) -> int`, the bytes that all workers
        together send in one `reduce_gradients`.
      window: how many losses make a score, or None if the method needs no score.
    """

    init: Callable[[Any], Any]
    reduce_gradients: Callable[[Any, Axes], Any]
    update: Update
    communications: tuple[Communication, ...]
    center: Callable[[Any, Any, Axes], Any]
    restart: Callable[[Any, Any], Any]
    gradient_bytes: Callable[[Any, int], int]
    window: int | None


def schedule(optimizer: DistributedOptimizer, groups: int) -> tuple[Communication, ...]:
    """The communications that happen with this many groups.

    One group has no level of its own: only what crosses all workers is left.

    Raises:
      ValueError: if a global period is no multiple of a local one.
    """
    everywhere = tuple(c for c in optimizer.communications if c.level == "global")
    inside = tuple(c for c in optimizer.communications if c.level == "local")
    if groups == 1:
        return everywhere
    for outer in everywhere:
        for inner in inside:
            if outer.period % inner.period:
                raise ValueError(
                    f"global_period={outer.period} is no multiple of local_period={inner.period}: "
                    "with several groups it must be, since the global leader is elected after the local ones"
                )
    return inside + everywhere


def check_count(name: str, count: float) -> None:
    """Raises ValueError unless `count` is a whole number of at least 1."""
    if not count >= 1 or count % 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {count}")


def tree_bytes(tree: Any, wire_dtype: DTypeLike | None = None) -> int:
    """Bytes of a tree of arrays (or of their shapes) as it travels."""
    return sum(wire_bytes(x, wire_dtype) for x in jax.tree.leaves(tree))


def broadcast_bytes(tree: Any, workers: int, wire_dtype: DTypeLike | None = None) -> int:
    """Bytes sent by all together when one of `workers` gives its tree to the others."""
    return (workers - 1) * tree_bytes(tree, wire_dtype)


def all_reduce_bytes(tree: Any, workers: int) -> int:
    """Bytes sent by all together when a tree is summed over `workers` by a ring."""
    return 2 * (workers - 1) * tree_bytes(tree)
