"""`leader_pull`: eq. 2 of the paper as an optax transform."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgd_jax import leader_pull

X = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}
LOCAL = {"w": jnp.array([0.0, 1.0, 3.5]), "b": jnp.array(-1.0)}
GLOBAL = {"w": jnp.array([2.0, 2.0, 2.0]), "b": jnp.array(0.25)}
UPDATES = {"w": jnp.array([0.1, 0.2, -0.3]), "b": jnp.array(1.0)}


def assert_close(tree: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), tree, expected)


def pull(u: Any, x: Any, local: Any, everywhere: Any, local_pull: float, global_pull: float) -> Any:
    return jax.tree.map(lambda u, x, a, b: u - local_pull * (x - a) - global_pull * (x - b), u, x, local, everywhere)


def test_both_pulls_are_added_to_the_updates() -> None:
    transform = leader_pull(0.3, 0.2)
    updates, _ = transform.update(UPDATES, transform.init(X), X, local_leader=LOCAL, global_leader=GLOBAL)
    assert_close(updates, pull(UPDATES, X, LOCAL, GLOBAL, 0.3, 0.2))


def test_one_leader_is_enough_for_one_pull() -> None:
    transform = leader_pull(0.3)
    updates, _ = transform.update(UPDATES, transform.init(X), X, local_leader=LOCAL)
    assert_close(updates, pull(UPDATES, X, LOCAL, X, 0.3, 0.0))
    transform = leader_pull(0.0, 0.2)
    updates, _ = transform.update(UPDATES, transform.init(X), X, local_leader=None, global_leader=GLOBAL)
    assert_close(updates, pull(UPDATES, X, X, GLOBAL, 0.0, 0.2))


def test_after_the_learning_rate_the_pull_is_not_scaled() -> None:
    transform = optax.chain(optax.sgd(0.1), leader_pull(0.3))
    updates, _ = transform.update(UPDATES, transform.init(X), X, local_leader=LOCAL)
    assert_close(updates, pull(jax.tree.map(lambda u: -0.1 * u, UPDATES), X, LOCAL, X, 0.3, 0.0))


def test_a_schedule_counts_the_updates_from_zero() -> None:
    transform = leader_pull(optax.linear_schedule(0.0, 1.0, 4), lambda count: 0.1 * (count + 1))
    state = transform.init(X)
    update = jax.jit(transform.update)
    for count in range(5):
        updates, state = update(UPDATES, state, X, local_leader=LOCAL, global_leader=GLOBAL)
        assert_close(updates, pull(UPDATES, X, LOCAL, GLOBAL, min(count / 4, 1.0), 0.1 * (count + 1)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("strength", [0.25, lambda count: jnp.float32(0.25)])
def test_updates_keep_their_dtype(dtype: Any, strength: Any) -> None:
    transform = leader_pull(strength)
    half = {"w": jnp.array([1.0, 2.0], dtype)}
    leader = {"w": jnp.array([2.0, 4.0])}
    updates, _ = transform.update(half, transform.init(half), half, local_leader=leader)
    assert updates["w"].dtype == dtype
    np.testing.assert_array_equal(updates["w"].astype(jnp.float32), np.array([1.25, 2.5], np.float32))


@pytest.mark.parametrize("pulls", [{"local_pull": -0.1}, {"local_pull": 0.1, "global_pull": 1.5}])
def test_a_pull_outside_0_to_1_is_refused_by_name(pulls: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=list(pulls)[-1]):
        leader_pull(**pulls)


def test_what_is_missing_in_update_is_said() -> None:
    transform = leader_pull(0.1, 0.1)
    state = transform.init(X)
    with pytest.raises(ValueError, match="params"):
        transform.update(UPDATES, state, local_leader=LOCAL, global_leader=GLOBAL)
    with pytest.raises(ValueError, match="local_leader="):
        transform.update(UPDATES, state, X, local_leader=None, global_leader=GLOBAL)
    with pytest.raises(ValueError, match="global_leader="):
        transform.update(UPDATES, state, X, local_leader=LOCAL)
