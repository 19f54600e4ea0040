"""Random permutations of which each entry is computed on its own, inside jitted functions."""

import jax
import jax.numpy as jnp
from jax import lax

ROUNDS = 8  # an even number, after which the halves are in their places
LEAST_BITS = 6  # of fewer numbers some orders would come more often than others


def permuted(key: jax.Array, places: jax.Array, count: int) -> jax.Array:
    """Entries of a random permutation of the numbers below `count`.

    A Feistel network whose round functions are random tables (Luby and Rackoff 1988) permutes the
    next power of 2, at least 64; what falls beyond `count` goes through it again until it does not.
    Workers that need a few entries each do not all sort `count` numbers.

    Args:
      key: tells the permutation.
      places: int32[n], each in [0, count).
      count: at least 1.

    Returns:
      int32[n], each in [0, count); different for different places.
    """
    bits = max(LEAST_BITS, (count - 1).bit_length())
    low = bits // 2
    tables = jax.random.bits(key, (ROUNDS, 2 ** (bits - low)), jnp.uint32).astype(jnp.int32)

    def network(x: jax.Array) -> jax.Array:
        left, right, width = x >> (bits - low), x & (2 ** (bits - low) - 1), low  # `width` bits are left
        for table in tables:
            left, right, width = right, left ^ (table[right] & (2**width - 1)), bits - width
        return (left << (bits - low)) | right

    return lax.while_loop(lambda x: (x >= count).any(), lambda x: jnp.where(x >= count, network(x), x), network(places))
