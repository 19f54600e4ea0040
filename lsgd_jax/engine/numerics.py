"""How a run is computed, whatever the environment has JAX do: its dtypes and its random numbers.

With other defaults (`JAX_ENABLE_X64`, say) the same settings would give another run; with
`JAX_DEFAULT_PRNG_IMPL=rbg` one that depends on the number of devices, since a batch of its keys does
not draw what each would draw alone.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lsgd_jax.errors import InputError

PRNG = "threefry2x32"


@contextlib.contextmanager
def fixed_numerics() -> Iterator[None]:
    """JAX's own defaults for what a run depends on, inside. Also a decorator.

    The precision of products stays as it is set: who asks for another on a GPU wants it.
    """
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(PRNG),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.legacy_prng_key("allow"),
    ):
        yield


def run_key(seed: int) -> jax.Array:
    """The key of a seed below 2³²: that of `jax.random.key` with JAX's own defaults (`JAX_RANDOM_SEED_OFFSET` is 0)."""
    return wrap_keys(np.array([0, seed], np.uint32))


def wrap_keys(data: ArrayLike) -> jax.Array:
    """key[...] of raw keys, uint32[..., 2]."""
    return jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32), impl=PRNG)


def matmul_precision() -> str | None:
    """`JAX_DEFAULT_MATMUL_PRECISION`, or None where it is not set."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return None if precision is None else str(precision)


def check_jax() -> None:
    """Refuses a JAX that no run can be trained with.

    Raises:
      InputError: how it is set.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise InputError("JAX_DISABLE_JIT is set, but rounds are compiled before they are trained: unset it")
