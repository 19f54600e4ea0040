"""How a tree travels: its bits come back, rounded no more than is said."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsgd_jax.collectives.wire import BLOCK, decode, encode, pack, unpack

U8, U16, U32 = np.uint8, np.uint16, np.uint32
KINDS = {
    "one of each": [(U8, (3, 5)), (U16, (7,)), (U32, (2, 2))],
    "several of a dtype, in any order": [(U16, (3,)), (U8, (1,)), (U16, (2, 2)), (U8, ()), (U32, ()), (U8, (6,))],
    "whole words": [(U8, (8,)), (U16, (2, 3))],
    "empty ones": [(U8, (0,)), (U32, (0, 3)), (U16, (5,))],
    "nothing": [(U16, (0,))],
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_what_is_packed_comes_back_and_takes_no_more_than_its_bytes(kinds: list[tuple[Any, Any]]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True) for dtype, shape in kinds]
    words = jax.jit(pack)([jnp.asarray(array) for array in arrays])
    assert (words.dtype, words.ndim) == (jnp.uint32, 1)
    assert 4 * words.size <= sum(array.nbytes for array in arrays) + 3 + 2
    for back, array in zip(jax.jit(unpack)(words, [jnp.asarray(array) for array in arrays]), arrays, strict=True):
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_numbers_of_64_bits_travel_whole() -> None:
    with jax.enable_x64(True):
        leaf = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
        assert leaf.dtype == jnp.float64
        message = encode(leaf, None)
        np.testing.assert_array_equal(decode(unpack(pack(message), message), leaf, None), leaf)


@jax.jit
def through_int8(leaf: jax.Array) -> jax.Array:
    return decode(encode(leaf, "int8"), leaf, "int8")


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(size=st.sampled_from([1, BLOCK, 2 * BLOCK + 5]), scale=finite, seed=st.integers(0, 99))
def test_int8_is_off_by_at_most_half_a_scale_of_its_block(size: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaf = (rng.uniform(-1, 1, size) * rng.choice([1.0, 1e-3], size) * scale).astype(np.float32)
    back = np.asarray(through_int8(leaf))
    for start in range(0, size, BLOCK):
        block, got = leaf[start : start + BLOCK].astype(np.float64), back[start : start + BLOCK]
        # Half a scale, and the rounding of float32 itself; below 1e-35 a scale is no normal number any more.
        assert np.abs(got - block).max() <= np.abs(block).max() / 254 * (1 + 1e-4) + 1e-35


@pytest.mark.slow
@pytest.mark.parametrize("wire_dtype", [None, "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.int8, np.bool_])
def test_zeros_travel_as_zeros_and_bytes_are_those_of_the_message(wire_dtype: str | None, dtype: Any) -> None:
    leaf = jnp.zeros((5, 333), dtype)
    message = encode(leaf, wire_dtype)
    assert all(not part.any() for part in message), "a masked sum adds them"
    narrow = jnp.issubdtype(dtype, jnp.floating) and wire_dtype is not None
    width = min(leaf.dtype.itemsize, jnp.dtype(wire_dtype).itemsize) if narrow else leaf.dtype.itemsize
    scales = 2 * 4 if narrow and wire_dtype == "int8" else 0  # of two blocks
    assert sum(part.nbytes for part in message) == 5 * 333 * width + scales
    np.testing.assert_array_equal(decode(message, leaf, wire_dtype), leaf)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int8_brings_what_is_not_finite_without_harm_to_other_blocks(dtype: Any) -> None:
    leaf = np.ones(3 * BLOCK, dtype)
    leaf[0], leaf[BLOCK] = np.inf, np.nan
    back = through_int8(leaf)
    np.testing.assert_allclose(back[2 * BLOCK :], 1, rtol=1e-3)
    assert np.isfinite(back[:BLOCK]).all()
