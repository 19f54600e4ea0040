"""Dropout whose random bits cost little on CPU.

The masks are those of `flax.nnx.Dropout`, bit for bit: they are drawn by Threefry from the same counters. JAX
compiles Threefry on CPU as a loop over arrays, whose five turns all go through memory (a tenth of a training step
of a small transformer); written out, it is one fused pass.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

# Threefry-2x32 with 20 rounds: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)


class Dropout(nnx.Module):
    """Drops a share of the units, and scales the others so that the mean stays.

    Args:
      rate: the share, in [0, 1].
      broadcast_dims: axes along which the mask is the same.
    """

    def __init__(self, rate: float, *, broadcast_dims: tuple[int, ...] = ()) -> None:
        self.rate, self.broadcast_dims = rate, broadcast_dims

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """`x` itself without `rngs`, and at a rate of 0; else with a mask from the stream `dropout`."""
        if rngs is None or self.rate == 0:
            return x
        shape = tuple(1 if axis in self.broadcast_dims else size for axis, size in enumerate(x.shape))
        kept = bernoulli(rngs.dropout(), 1 - self.rate, shape)
        return jnp.where(kept, x / (1 - self.rate) if self.rate < 1 else x, 0)


def bernoulli(key: jax.Array, probability: float, shape: tuple[int, ...]) -> jax.Array:
    """bool[shape], those of `jax.random.bernoulli` with partitionable Threefry.

    Keys of another generator draw by JAX.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return jax.random.bernoulli(key, probability, shape)
    words = jax.random.key_data(key)
    counters = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    first, second = threefry(words[0], words[1], jnp.zeros(shape, jnp.uint32), counters)
    # A float in [0, 1) has 23 random bits: it is below the probability if they are.
    return ((first ^ second) >> 9) < np.uint32(math.ceil(float(np.float32(probability)) * 2**23))


def threefry(
    key_first: jax.Array, key_second: jax.Array, first: jax.Array, second: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds, of a key, uint32[] twice, and counters, uint32[...] twice."""
    keys = (key_first, key_second, key_first ^ key_second ^ PARITY)
    first, second = first + keys[0], second + keys[1]
    for group in range(1, 6):
        for rotation in ROTATIONS[(group - 1) % 2]:
            first = first + second
            second = first ^ ((second << rotation) | (second >> (32 - rotation)))
        first = first + keys[group % 3]
        second = second + keys[(group + 1) % 3] + np.uint32(group)
    return first, second
