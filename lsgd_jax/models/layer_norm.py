"""Layer normalization with a gradient that goes through memory few times."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

EPSILON = 1e-5

Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class LayerNorm(nnx.Module):
    """Of the last axis, with a scale and a bias for each unit: in float32, `flax.nnx.LayerNorm` in numbers.

    That of Flax, differentiated by JAX, takes an eighth of a training step of a small transformer longer on CPU.
    """

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """float32[..., width] to the same."""
        return normalize(x, self.scale[...], self.bias[...])


@jax.custom_vjp
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`x` [..., width] less its mean over its standard deviation, times `scale` [width], plus `bias` [width]."""
    return _forward(x, scale, bias)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, Kept]:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
    inverse = lax.rsqrt(variance + EPSILON)
    return (x - mean) * inverse * scale + bias, (x, mean, inverse, scale)


def _backward(kept: Kept, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = kept
    normalized = (x - mean) * inverse
    of_normalized = cotangent * scale
    along_mean = of_normalized.mean(-1, keepdims=True)
    along_itself = (of_normalized * normalized).mean(-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    return (
        inverse * (of_normalized - along_mean - normalized * along_itself),
        (cotangent * normalized).sum(rows),
        cotangent.sum(rows),
    )


normalize.defvjp(_forward, _backward)
