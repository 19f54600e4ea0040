"""What can be wrong with a method of a user's, seen before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.distributed_optimizer import Axes, DistributedOptimizer

# Names that no method knows: it has to use those that it is given.
ELSEWHERE = Axes(group=("a_group",), worker=("a_worker",))


def check_method(method: DistributedOptimizer, params: Any) -> None:
    """Refuses a method that names axes itself, or changes what workers hold; nothing is computed.

    Args:
      method: the method.
      params: the shapes of one worker's parameters.

    Raises:
      InputError: telling what.
    """

    def of_worker(params: Any) -> tuple[Any, Any, list[tuple[Any, Any]], Any]:
        state = method.init(params, ELSEWHERE)
        _, updated = method.update(params, state, params, value=jnp.zeros([]), rate_factor=1.0)
        outcomes = []
        for communication in method.communications:
            outcome = communication.apply(params, state, jnp.zeros([]), ELSEWHERE.names(communication.axes))
            outcomes.append((outcome.params, outcome.state))
        return state, updated, outcomes, method.center(params, state, ELSEWHERE)

    def of_all(params: Any) -> Any:
        workers = jax.vmap(of_worker, axis_name=ELSEWHERE.worker[0])
        return jax.vmap(workers, axis_name=ELSEWHERE.group[0])(params)

    params = _of_two_by_two(params)
    try:
        state, updated, outcomes, center = jax.eval_shape(of_all, params)
    except NameError as error:
        raise InputError(
            f"the method names an axis itself ({error}): use the names that it is given, axes.all in center and "
            "axis_name in apply"
        ) from error
    for what, found, expected in (
        ("update makes another state", updated, state),
        *(("a communication changes the parameters", changed, params) for changed, _ in outcomes),
        *(("a communication makes another state", changed, state) for _, changed in outcomes),
        ("the center is not like the parameters", center, params),
    ):
        if _told(found) != _told(expected):
            raise InputError(f"the method's {what}: keep shapes and dtypes, {_told(expected)}, not {_told(found)}")


def follows_factor(method: DistributedOptimizer, params: Any) -> bool:
    """Whether its updates of parameters of those shapes depend on the learning rate's factor; nothing is computed."""

    def step(rate: jax.Array, params: Any) -> Any:
        def of_worker(params: Any) -> Any:
            state = method.init(params, Axes())
            return method.update(params, state, params, value=jnp.zeros([]), rate_factor=rate)[0]

        return jax.vmap(jax.vmap(of_worker, axis_name=WORKER), axis_name=GROUP)(params)

    traced = jax.make_jaxpr(step)(jax.ShapeDtypeStruct((), jnp.float32), _of_two_by_two(params)).jaxpr
    rate = traced.invars[0]
    return any(rate is variable for equation in traced.eqns for variable in equation.invars)


def _of_two_by_two(params: Any) -> Any:
    """The shapes of the parameters of 2 × 2 workers."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 2, *x.shape), x.dtype), params)


def _told(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[2:])}", tree))
