"""What is done before local steps of a function that communicates, and what after them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lsgd_jax.engine.halves import up_to_last_collective

AXIS = "device"


def summed(tree: dict[str, jax.Array]) -> dict[str, Any]:
    """The sum over devices of a message, taken apart; and what has nothing to do with it."""
    message = jnp.concatenate([tree["a"].ravel(), tree["b"]])
    total = lax.psum(jnp.where(message > 0, message, 0.0), AXIS)
    return {"a": jnp.sin(total[:4].reshape(2, 2)), "own": 2 * tree["b"], "same": tree["a"]}


def sent_on(tree: dict[str, jax.Array]) -> Any:
    """Sums of sums, over which a permutation goes: what comes last needs what comes before."""
    first = lax.psum(tree["b"], AXIS)
    gathered = jax.jit(lambda x: lax.all_gather(2 * x, AXIS))(first)
    return lax.ppermute(gathered + 1, AXIS, [(0, 1), (1, 0)]) - first


def nothing(tree: dict[str, jax.Array]) -> Any:
    return jnp.cos(tree["a"])


@pytest.mark.parametrize("function", [summed, sent_on, nothing])
def test_the_two_parts_are_the_whole_and_the_last_communicates_nothing(function: Any) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), (AXIS,))
    told = []

    def both(tree: Any) -> Any:
        heard, rest = up_to_last_collective(function, tree)
        told.append(str(jax.make_jaxpr(rest)(*heard)))
        return function(tree), rest(*heard)

    tree = {"a": jnp.arange(-4.0, 4.0).reshape(4, 2), "b": jnp.arange(6.0)}
    specs = PartitionSpec(AXIS)
    whole, parts = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False))(tree)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert not any(name in told[0] for name in ("psum", "all_gather", "ppermute"))


def test_a_message_is_taken_apart_in_the_last_part_alone() -> None:
    def both(tree: Any) -> Any:
        told = jax.make_jaxpr(lambda tree: up_to_last_collective(summed, tree)[0])(tree)
        assert "psum" in str(told)
        assert not any(name in str(told) for name in (" sin", " reshape[dimensions=None new_sizes=(2, 2)"))
        return tree

    tree = {"a": jnp.ones((4, 2)), "b": jnp.ones(6)}
    mesh = Mesh(np.array(jax.devices()[:2]), (AXIS,))
    jax.eval_shape(jax.shard_map(both, mesh=mesh, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS)), tree)
