"""Workers that descend a function together, for the experiments on the paper's theory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from lsgd_jax import WORKER, Axes, DistributedOptimizer, periodic

ValueAndGrad = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
"""`(params, key) -> (value, gradient)` of one worker; the key is for noise."""


class Descent(NamedTuple):
    """What happened; the leading axis counts steps.

    Attributes:
      values: float[steps, workers], the function (with its noise) where each gradient was taken.
      seen: what `watch` made of each worker's parameters after each step, leaves [steps, workers, ...].
      params: the parameters after the last step, leaves [workers, ...].
      center: the center after it.
    """

    values: jax.Array
    seen: Any
    params: Any
    center: Any


def descend(
    method: DistributedOptimizer,
    value_and_grad: ValueAndGrad,
    starts: Any,
    steps: int,
    key: jax.Array,
    watch: Callable[[Any], Any] = lambda params: None,
) -> Descent:
    """Takes steps on all workers of one group, by the library's own method.

    Args:
      method: a distributed optimizer; LGD is `lsgd` with a period and a window of 1.
      value_and_grad: the function.
      starts: where the workers start, leaves [workers, ...].
      steps: of each worker.
      key: each worker and step gets a key of its own from it.
      watch: what to keep of each worker's parameters after each step.
    """
    workers = jax.tree.leaves(starts)[0].shape[0]
    return descend_with_noise(method, value_and_grad, starts, jax.random.split(key, (workers, steps)), watch)


def descend_with_noise(
    method: DistributedOptimizer,
    value_and_grad: Callable[[Any, Any], tuple[jax.Array, Any]],
    starts: Any,
    noise: Any,
    watch: Callable[[Any], Any] = lambda params: None,
) -> Descent:
    """The same with noise that lies ready, leaves [workers, steps, ...], in place of keys: it compiles faster."""
    optimizer = periodic(method, group_axis=None)

    def worker(params: Any, noise: Any) -> Descent:
        def step(carry: tuple[Any, Any], noise: Any) -> tuple[tuple[Any, Any], Any]:
            params, state = carry
            value, grads = value_and_grad(params, noise)
            updates, state = optimizer.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
            return (params, state), (value, watch(params))

        start = params, optimizer.init(params)
        (params, state), (values, seen) = jax.lax.scan(step, start, noise)
        return Descent(values, seen, params, method.center(params, state.inner, Axes(group=(), worker=(WORKER,))))

    out_axes: Any = Descent(values=1, seen=1, params=0, center=0)  # type: ignore[arg-type]
    run = jax.jit(jax.vmap(worker, axis_name=WORKER, out_axes=out_axes))
    found = run(starts, noise)
    return found._replace(center=jax.tree.map(lambda x: x[0], found.center))
