"""Causal attention with a gradient that goes through memory few times."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.engine.platform import platform

Kept = tuple[jax.Array, ...]


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Each position's mean of the values up to it, weighted by the softmax of query · key / √width.

    Args:
      query, key, value: float[batch, length, heads, width].

    Returns:
      float[batch, length, heads, width], of their dtype: on CPU by `attention_on_cpu`, elsewhere by
      `jax.nn.dot_product_attention`.
    """
    if platform() != "cpu":
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return attention_on_cpu(*(x.swapaxes(1, 2) for x in (query, key, value))).swapaxes(1, 2)


@jax.custom_vjp
def attention_on_cpu(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention that CPUs are fast at.

    The softmax is computed in float32 whatever the dtype, and divided by its sum after the product with the
    values, where there is less to divide. The gradient needs the sums over a row of weights times their
    cotangents, and takes them from the outputs instead (Dao et al. 2022, "FlashAttention", section 3.1); no
    product in it has a transposed array of weights, which CPUs would have to copy.

    Args:
      query, key, value: float[batch, heads, length, width].

    Returns:
      float[batch, heads, length, width], of their dtype.
    """
    return _forward(query, key, value)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Kept]:
    length, width = query.shape[-2:]
    scores = _product(query, key, 3, 3) / math.sqrt(width)
    seen = lax.broadcasted_iota(jnp.int32, (length, length), 0) >= lax.broadcasted_iota(jnp.int32, (length, length), 1)
    scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    sums = weights.sum(-1, keepdims=True)
    weights = weights.astype(query.dtype)
    outputs = _product(weights, value, 3, 2) / sums
    return outputs.astype(query.dtype), (query, key, value, weights, sums, outputs)


def _backward(kept: Kept, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, weights, sums, outputs = kept
    of_values = cotangent / sums
    of_sums = (of_values * outputs).sum(-1, keepdims=True)
    of_values = of_values.astype(query.dtype)
    of_weights = _product(of_values, value, 3, 3)
    of_scores = (weights * (of_weights - of_sums) / math.sqrt(query.shape[-1])).astype(query.dtype)
    of_query = _product(of_scores, key, 3, 2)
    of_key = _product(query, of_scores, 2, 2).swapaxes(2, 3)
    of_value = _product(of_values, weights, 2, 2).swapaxes(2, 3)
    return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype)


attention_on_cpu.defvjp(_forward, _backward)


def _product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The products of all heads, contracting an axis of each; float32 at least."""
    dtype = jnp.promote_types(left.dtype, jnp.float32)
    numbers = (((left_axis,), (right_axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(left, right, numbers, preferred_element_type=dtype)
