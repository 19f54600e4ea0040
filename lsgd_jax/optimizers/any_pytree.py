"""What every method owes to those who call it: any pytree of parameters, and buffers of its own."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.collectives import broadcast_from_first, is_inexact
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes,
    Communication,
    DistributedOptimizer,
    Outcome,
    keep_gradients,
)
from lsgd_jax.optimizers.own import check_own_grads, check_own_params
from lsgd_jax.optimizers.sending import with_view

P = ParamSpec("P")


def for_any_pytree(factory: Callable[P, DistributedOptimizer]) -> Callable[P, DistributedOptimizer]:
    """Makes the methods of a factory serve any pytree of parameters.

    The method, its base optimizer included, sees the floating-point and complex leaves
    alone. In place of others (integers, booleans) it finds None, which is no leaf: they
    have no gradient and no mean, so each worker keeps its own. The center has the first
    worker's.

    What `init` and `center` return shares no buffer with their arguments, so that
    parameters and state can be donated. Parameters and gradients that are known to be one
    copy for all workers are refused by a ValueError.
    """

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> DistributedOptimizer:
        base = args[0] if args else kwargs.get("base")
        if not (hasattr(base, "init") and hasattr(base, "update")) and (args or "base" in kwargs):
            raise ValueError(f"base is {_described(base)}: use an optax optimizer, such as optax.sgd(0.1)")
        return _serving(factory(*args, **kwargs))._replace(arguments=_told(factory, *args, **kwargs))

    return make


def _told(factory: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[tuple[str, int | float | str | None], ...]:
    """The arguments of a factory's call, defaults too, as far as JSON has them."""
    bound = inspect.signature(factory).bind(*args, **kwargs)
    bound.apply_defaults()
    return tuple(each for each in bound.arguments.items() if isinstance(each[1], int | float | str | None))


def _serving(method: DistributedOptimizer) -> DistributedOptimizer:
    @functools.wraps(method.init)  # whose name tells the factory
    def init(params: optax.Params, axes: Axes | None = None) -> Any:
        if axes is None:
            raise ValueError("a method is no optax transform yet: make one of it, with periodic(method)")
        check_own_params(params, axes)
        return _apart_from(params, method.init(floating(params, params), axes))

    def reduce_gradients(grads: optax.Updates, axes: Axes) -> optax.Updates:
        check_own_grads(grads, axes)
        return method.reduce_gradients(grads, axes)

    def update(
        grads: optax.Updates, state: Any, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        updates, state = method.update(floating(grads, params), state, floating(params, params), value=value, **extra)
        return with_others(updates, jax.tree.map(jnp.zeros_like, params)), state

    def center(params: optax.Params, state: Any, axes: Axes) -> optax.Params:
        fixed = jax.tree.map(lambda leaf: None if is_inexact(leaf) else leaf, params)
        found = method.center(floating(params, params), state, axes)
        return _apart_from((params, state), with_others(found, broadcast_from_first(fixed, axes.all)))

    def restart(params: optax.Params, state: Any) -> Any:
        return method.restart(floating(params, params), state)

    def serving(communication: Communication) -> Communication:
        def finish(params: optax.Params, state: Any, heard: Any, axis_name: tuple[str, ...]) -> Outcome:
            outcome = communication.finish(floating(params, params), state, heard, axis_name)
            return outcome._replace(params=with_others(outcome.params, params))

        begin = with_view(communication.begin, lambda params: floating(params, params))
        return communication._replace(begin=begin, finish=finish)

    communications = tuple(map(serving, method.communications))
    served = method._replace(init=init, update=update, center=center, restart=restart, communications=communications)
    # The name of the identity tells that workers step independently.
    return served if method.reduce_gradients is keep_gradients else served._replace(reduce_gradients=reduce_gradients)


def _described(value: Any) -> str:
    return f"the function {value.__name__}, not called" if hasattr(value, "__name__") else type(value).__name__


def floating(tree: Any, like: Any) -> Any:
    """The leaves of a tree where those of another are floating-point or complex, None elsewhere."""
    return jax.tree.map(lambda kind, leaf: leaf if is_inexact(kind) else None, like, tree)


def with_others(tree: Any, whole: Any) -> Any:
    """A tree of `floating` leaves, with those of `whole` where it has None."""
    return jax.tree.map(lambda leaf, own: own if leaf is None else leaf, tree, whole, is_leaf=lambda x: x is None)


def _apart_from(others: Any, tree: Any) -> Any:
    """The tree, with a copy of each leaf that is one of `others` too."""
    theirs = {id(leaf) for leaf in jax.tree.leaves(others)}
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if id(leaf) in theirs else leaf, tree)
