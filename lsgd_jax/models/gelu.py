"""The GELU of GPT-2, whose gradient keeps nothing but its argument."""

import math

import jax
import jax.numpy as jnp

CUBIC = 0.044715
SLOPE = math.sqrt(2 / math.pi)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """`jax.nn.gelu(x)`, by the hyperbolic tangent (Hendrycks and Gimpel 2016, section 2), computed in float32.

    Differentiated by JAX it writes an array down for the gradient and reads it, which costs more than to compute the
    tangent again.
    """
    wide = _at_least_float32(x)
    return (0.5 * wide * (1 + _tanh(wide))).astype(x.dtype)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    wide = _at_least_float32(x)
    tanh = _tanh(wide)
    slope = 0.5 * (1 + tanh) + 0.5 * wide * (1 - tanh * tanh) * SLOPE * (1 + 3 * CUBIC * wide * wide)
    return ((cotangent * slope).astype(x.dtype),)


gelu.defvjp(_forward, _backward)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _tanh(x: jax.Array) -> jax.Array:
    return jnp.tanh(SLOPE * (x + CUBIC * x * x * x))
