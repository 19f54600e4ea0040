"""A method whose communications move a part of the parameters at a time.

Douillard et al.: "Streaming DiLoCo with overlapping communication: Towards a Distributed Free Lunch", 2025,
arXiv:2501.18512, section 2.1, for any method.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.optimizers.any_pytree import floating, with_others
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    Outcome,
    check_count,
)
from lsgd_jax.optimizers.finite import all_finite, select


def fragments(method: DistributedOptimizer, n: int, *, strided: bool = False) -> DistributedOptimizer:
    r"""Cuts the parameters into n parts, which communicate one after the other.

    A communication of `method` that was due where its period τ divides the step t becomes n of them. With
    k = 0, …, n - 1::

      if t ≡ k τ / n (mod τ):   the communication of `method`, of the arrays of part k alone

    so that as many bytes are sent in as many steps, but at most an n-th of them at once. A leader is the best worker
    of the moment, for each part anew. Norms, as those of `dppf`, are of a part, and an outer optimizer of `diloco`
    that counts its steps counts those of all parts.

    Where a worker's parameters are not finite, all parts communicate at once in the train step, so that it starts
    again from a whole model.

    Args:
      method: what communicates; also one that is wrapped already.
      n: parts, of about equal size. An array is not cut: use no more parts than there are arrays.
      strided: whether part k has the arrays k, k + n, k + 2n, … in the order of the tree, in place of neighbours.

    Returns:
      A `DistributedOptimizer`. Its `init` raises ValueError for parameters of fewer than n arrays.

    Raises:
      ValueError: if n is no whole number of at least 1, does not divide a period, or the method has no period.
    """
    n = check_count("n", n)
    if not method.communications:
        raise ValueError("the method has no communication to cut: use one with a period, such as lsgd")
    for communication in method.communications:
        if communication.ahead:
            raise ValueError("cut first, and overlap what is cut: overlapped(fragments(method, n))")
        if communication.period % n:
            raise ValueError(
                f"n={n} does not divide the period of {communication.period} steps: use another n or period"
            )

    @functools.wraps(method.init)  # whose name tells the factory
    def init(params: optax.Params, axes: Axes) -> Any:
        parts_of(jax.tree.map(jnp.size, floating(params, params)), n, strided=strided)
        return method.init(params, axes)

    cut = (_of_part(c, k, n, strided) for k in range(n) for c in method.communications)
    arguments = (*method.arguments, ("n", n), ("strided", strided))
    return method._replace(init=init, communications=tuple(cut), arguments=arguments)


def parts_of(sizes: Any, n: int, *, strided: bool) -> list[list[int]]:
    """Which leaves are in each part.

    Neighbours are parted where their sum, with half of the leaf in question, passes the next n-th of the whole.

    Raises:
      ValueError: if there are fewer leaves than parts.
    """
    leaves = jax.tree.leaves(sizes)
    if len(leaves) < n:
        raise ValueError(f"n={n} parts of {len(leaves)} arrays: use at most {len(leaves)}")
    if strided:
        return [list(range(k, len(leaves), n)) for k in range(n)]
    parts: list[list[int]] = [[] for _ in range(n)]
    before, k = 0, 0
    for i, size in enumerate(leaves):
        left = len(leaves) - i  # each part that is left needs one
        full = before + size / 2 > (k + 1) * sum(leaves) / n
        if parts[k] and k < n - 1 and (full or left <= n - 1 - k):
            k += 1
        parts[k].append(i)
        before += size
    return parts


def _of_part(communication: Communication, k: int, n: int, strided: bool) -> Communication:
    """The communication of part k alone."""

    def part_of(params: optax.Params) -> list[int]:
        return parts_of(jax.tree.map(jnp.size, floating(params, params)), n, strided=strided)[k]

    def begin(params: optax.Params, state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> Any:
        floats, part = floating(params, params), part_of(params)
        # A worker is lost if any of its parameters is, in whatever part: then it neither leads nor enters a mean.
        lost = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), floats)
        taken = _taken(select(all_finite(floats), floats, lost), part)
        return communication.begin(taken, _of_state(state, floats, part), score, axis_name)

    def finish(params: optax.Params, state: Any, heard: Any, axis_name: tuple[str, ...]) -> Outcome:
        floats, part = floating(params, params), part_of(params)
        taken = _taken(floats, part)
        outcome = communication.finish(taken, _of_state(state, floats, part), heard, axis_name)
        # Of a lost worker a part is no use: it waits for the whole.
        finite = all_finite(floats)
        moved = select(finite, outcome.params, taken)
        whole = _put_back(floats, moved, part)
        state = _into_state(state, floats, outcome.state, part)
        return Outcome(with_others(whole, params), state, outcome.leader, outcome.restarted & finite)

    offset = communication.offset + k * communication.period // n
    whole = communication.whole or communication
    return communication._replace(begin=begin, finish=finish, offset=offset % communication.period, whole=whole)


def _taken(tree: Any, part: Sequence[int]) -> tuple[Any, ...]:
    """The leaves of a part."""
    leaves = jax.tree.leaves(tree)
    return tuple(leaves[i] for i in part)


def _put_back(tree: Any, taken: Sequence[Any], part: Sequence[int]) -> Any:
    """The tree, with those leaves in a part."""
    leaves, structure = jax.tree.flatten(tree)
    for i, leaf in zip(part, taken, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _of_state(state: Any, floats: Any, part: Sequence[int]) -> Any:
    """A method's state of a part: of all that is like the parameters in it, the leaves of the part."""
    alike = _like(floats)
    return jax.tree.map(lambda tree: _taken(tree, part) if alike(tree) else tree, state, is_leaf=alike)


def _into_state(state: Any, floats: Any, of_part: Any, part: Sequence[int]) -> Any:
    """The state of the whole, with that of a part in it."""
    alike = _like(floats)
    structure: Any
    trees, structure = jax.tree.flatten(state, is_leaf=alike)
    news = structure.flatten_up_to(of_part)
    merged = [_put_back(tree, new, part) if alike(tree) else new for tree, new in zip(trees, news, strict=True)]
    return jax.tree.unflatten(structure, merged)


def _like(floats: Any) -> Any:
    """Whether a tree is like the parameters: of the same structure and shapes."""
    structure: Any = jax.tree.structure(floats)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(floats)]

    def alike(tree: Any) -> bool:
        return structure == jax.tree.structure(tree) and [jnp.shape(x) for x in jax.tree.leaves(tree)] == shapes

    return alike
