"""What can be wrong with a method of a user's, seen before anything is compiled."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
            "axis_name in begin and finish"
        ) from error
    for what, found, expected in (
        ("update makes another state", updated, state),
        *(("a communication changes the parameters", changed, params) for changed, _ in outcomes),
        *(("a communication makes another state", changed, state) for _, changed in outcomes),
        ("the center is not like the parameters", center, params),
    ):
        if _shapes(found) != _shapes(expected):
            raise InputError(f"the method's {what}: keep shapes and dtypes, {_shapes(expected)}, not {_shapes(found)}")


def follows_factor(method: DistributedOptimizer, params: Any) -> bool:
    """Whether the first update of a worker, who is alone, is proportional to the learning rate's factor."""
    alone = jax.tree.map(lambda x: jnp.full((1, 1, *x.shape), 0.5, x.dtype), params)

    @jax.jit
    def first_update(rate: Any) -> Any:
        def of_worker(params: Any) -> Any:
            grads, state = jax.tree.map(lambda x: x / 8, params), method.init(params, Axes())
            return method.update(grads, state, params, value=jnp.ones([]), rate_factor=rate)[0]

        return jax.vmap(jax.vmap(of_worker, axis_name=WORKER), axis_name=GROUP)(alone)

    whole, half = (jax.tree.leaves(first_update(jnp.float32(rate))) for rate in (1.0, 0.5))
    return all(np.allclose(2 * np.asarray(b), np.asarray(a), rtol=1e-2) for a, b in zip(whole, half, strict=True))


def fingerprint(method: DistributedOptimizer, params: Any) -> str:
    """What tells whether a method computes the same as another for parameters of those shapes; nothing is computed.

    Returns:
      Versions of JAX and optax, and a digest of what they make of the method's functions.
    """

    def of_worker(params: Any) -> Any:
        state = method.init(params, Axes())
        updates = method.update(params, state, params, value=jnp.zeros([]), rate_factor=1.0)
        applied = [c.apply(params, state, jnp.zeros([]), Axes().names(c.axes)) for c in method.communications]
        return updates, [outcome[:2] for outcome in applied]

    traced = jax.make_jaxpr(jax.vmap(jax.vmap(of_worker, axis_name=WORKER), axis_name=GROUP))(_of_two_by_two(params))
    digest = hashlib.blake2b(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode(), digest_size=16)
    when = [(c.period, c.axes, *([c.offset] if c.offset else [])) for c in method.communications]
    digest.update(str(when).encode())
    for constant in traced.consts:
        digest.update(np.asarray(constant).tobytes())
    return f"jax {jax.__version__}, optax {optax.__version__}, {digest.hexdigest()}"


def digest_of_shapes(params: Any) -> str:
    """What tells whether parameters have the same names, shapes and dtypes."""
    shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", params)
    return hashlib.blake2b(str(shapes).encode(), digest_size=16).hexdigest()


def is_another(fingerprint: Any, other: str) -> bool:
    """Whether two fingerprints are of different methods, as far as they can be compared."""
    versions, _, digest = other.rpartition(", ")
    before = str(fingerprint).rpartition(", ")
    return before[0] == versions and before[2] != digest


def name_of(method: DistributedOptimizer) -> str:
    """The name of the factory that has made it."""
    return getattr(method.init, "__qualname__", "own").split(".")[0]


def _of_two_by_two(params: Any) -> Any:
    """The shapes of the parameters of 2 × 2 workers."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 2, *x.shape), x.dtype), params)


def _shapes(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[2:])}", tree))
