"""Attention and its gradient against JAX's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgd_jax.models import attention
from lsgd_jax.models.attention import causal_attention

SHAPE = (2, 17, 3, 8)


def inputs(dtype: Any, scale: float = 1.0) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(0, scale, SHAPE), dtype) for _ in range(4))


def of_jax(*heads: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(*heads, is_causal=True)


def with_gradients(function: Any, heads: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[Any, Any]:
    outputs, pull_back = jax.vjp(function, *heads)
    return outputs, pull_back(cotangent)


@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)])
def test_outputs_and_gradients_equal_those_of_jax(dtype: Any, tolerance: float, lanes: bool) -> None:
    *heads, cotangent = inputs(dtype)
    right = with_gradients(of_jax, tuple(x.astype(jnp.float32) for x in heads), cotangent.astype(jnp.float32))

    def of(function: Any) -> Any:
        if not lanes:
            return jax.jit(lambda *x: with_gradients(function, x[:-1], x[-1]))(*heads, cotangent)
        lane = jax.vmap(lambda *x: with_gradients(function, x[:-1], x[-1]))
        return jax.tree.map(lambda x: x[0], jax.jit(lane)(*(x[None] for x in (*heads, cotangent))))

    found = of(causal_attention)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance),
        found,
        right,
    )


def test_large_scores_overflow_nowhere() -> None:
    *heads, cotangent = inputs(jnp.float32, 60.0)
    right, found = (with_gradients(function, tuple(heads), cotangent) for function in (of_jax, causal_attention))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=0.2), found, right)


def test_a_first_position_sees_itself_alone() -> None:
    query, key, value, _ = inputs(jnp.float32)
    np.testing.assert_allclose(causal_attention(query, key, value)[:, 0], value[:, 0], rtol=1e-6)


def test_elsewhere_than_on_cpu_it_is_that_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = inputs(jnp.bfloat16)[:3]
    ours = str(jax.make_jaxpr(lambda *x: causal_attention(*x))(*heads))
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    elsewhere = str(jax.make_jaxpr(lambda *x: causal_attention(*x))(*heads))
    assert elsewhere == str(jax.make_jaxpr(of_jax)(*heads)) != ours
