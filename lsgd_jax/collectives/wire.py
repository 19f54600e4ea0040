"""How a tree travels: as which bits, in one message.

Everything travels as unsigned integers. Compilers widen sums of 16-bit floats on
the wire, but a sum of integers with one non-zero term is exact whatever they
encode; and narrow integers are packed into words of 32 bits, which nobody widens.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

# Elements of a leaf that share a scale in int8.
BLOCK = 1024


def check_wire_dtype(wire_dtype: DTypeLike | None) -> None:
    """Raises ValueError unless `wire_dtype` is None, int8 or a floating-point dtype of 16 bits or more."""
    if wire_dtype is None or jnp.dtype(wire_dtype) == jnp.int8:
        return
    if not jnp.issubdtype(wire_dtype, jnp.floating) or jnp.dtype(wire_dtype).itemsize < 2:
        raise ValueError(
            f"wire_dtype must be int8 or a floating-point dtype of 16 bits or more (bfloat16), got {wire_dtype}"
        )


def as_bits(leaf: jax.Array) -> jax.Array:
    """Unsigned integers of the same shape and width; of at least 8 bits."""
    if jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == jnp.bool_:
        return leaf.astype(_bits_of(leaf.dtype))
    return lax.bitcast_convert_type(leaf, _bits_of(leaf.dtype))


def from_bits(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The inverse of `as_bits`."""
    if jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_:
        return bits.astype(dtype)
    return lax.bitcast_convert_type(bits, dtype)


def as_reals(leaf: jax.Array) -> jax.Array:
    """What travels of a leaf: of a complex one, real[..., 2]; of keys, their data; else itself."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.stack([leaf.real, leaf.imag], axis=-1)
    return leaf


def from_reals(reals: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `as_reals`, of which `like` is an argument."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(reals, impl=jax.random.key_impl(like))
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        return lax.complex(reals[..., 0], reals[..., 1])
    return reals


def encode(leaf: jax.Array, wire_dtype: DTypeLike | None) -> tuple[jax.Array, ...]:
    """The unsigned integers that stand for a real leaf on the wire; those of zeros are zeros."""
    travels = _travels_as(leaf.dtype, wire_dtype)
    if travels == leaf.dtype:
        return (as_bits(leaf),)
    if travels != jnp.int8:
        return (as_bits(_cast(leaf, travels)),)
    blocks = jnp.pad(_cast(leaf, jnp.float32).ravel(), (0, -leaf.size % BLOCK)).reshape(-1, BLOCK)
    scales = jnp.max(jnp.abs(blocks), axis=1) / 127
    values = jnp.round(blocks / jnp.where(scales > 0, scales, 1)[:, None]).astype(jnp.int8)
    return as_bits(values.ravel()[: leaf.size]), as_bits(scales)


def decode(message: Sequence[jax.Array], like: jax.Array, wire_dtype: DTypeLike | None) -> jax.Array:
    """A leaf of the shape and dtype of `like` from what `encode` made of one."""
    travels = _travels_as(like.dtype, wire_dtype)
    values = from_bits(message[0], travels)
    if travels != jnp.int8 or like.dtype == jnp.int8:
        return values.astype(like.dtype)
    blocks = jnp.pad(values, (0, -like.size % BLOCK)).reshape(-1, BLOCK)
    blocks = blocks * from_bits(message[1], jnp.dtype(jnp.float32))[:, None]
    # 127 scales may round to a little more than the largest element.
    return _cast(blocks.ravel()[: like.size], like.dtype).reshape(like.shape)


def pack(arrays: Sequence[jax.Array]) -> jax.Array:
    """Arrays of unsigned integers as one message, uint32[words], without gaps but for some bytes a dtype."""
    flat = ([arrays[i].ravel() for i in places] for places in by_dtype(arrays))
    return jnp.concatenate([_folded(jnp.concatenate(parts)) for parts in flat])


def unpack(words: jax.Array, like: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays of the shapes and dtypes of `like` from what `pack` made of such."""
    unpacked = list(like)
    for places in by_dtype(like):
        dtype, size = like[places[0]].dtype, sum(like[i].size for i in places)
        count = -(-size * dtype.itemsize // 4)
        flat, words = _unfolded(words[:count], dtype), words[count:]
        for i in places:
            unpacked[i], flat = flat[: like[i].size].reshape(like[i].shape), flat[like[i].size :]
    return unpacked


def _bits_of(dtype: DTypeLike) -> jnp.dtype:
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def _travels_as(leaf_dtype: DTypeLike, wire_dtype: DTypeLike | None) -> jnp.dtype:
    """`wire_dtype` for floats that are wider, else the leaf's own."""
    own = jnp.dtype(leaf_dtype)
    if wire_dtype is None or not jnp.issubdtype(own, jnp.floating):
        return own
    wire = jnp.dtype(wire_dtype)
    return wire if wire.itemsize < own.itemsize else own


def _cast(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """To another floating-point dtype; what is too large becomes its largest number, not infinity."""
    return jnp.clip(x, jnp.finfo(dtype).min, jnp.finfo(dtype).max).astype(dtype)


def by_dtype(arrays: Sequence[jax.Array]) -> list[list[int]]:
    """The places of the arrays of each dtype."""
    places: dict[jnp.dtype, list[int]] = {}
    for i, array in enumerate(arrays):
        places.setdefault(array.dtype, []).append(i)
    return list(places.values())


def _folded(flat: jax.Array) -> jax.Array:
    """Words of 32 bits; of narrow integers, the first part of the vector is in the lowest bits of all words.

    On CPU, words are taken apart by shifts up to 2.5 times as fast as by bit-casting them.
    """
    if flat.dtype.itemsize >= 4:
        return lax.bitcast_convert_type(flat, jnp.uint32).ravel()
    width = 8 * flat.dtype.itemsize
    parts = jnp.pad(flat, (0, -flat.size % (32 // width))).reshape(32 // width, -1).astype(jnp.uint32)
    return functools.reduce(operator.or_, [part << (width * i) for i, part in enumerate(parts)])


def _unfolded(words: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The inverse of `_folded`, with the padding."""
    if dtype.itemsize == 8:
        words = words.reshape(-1, 2)
    if dtype.itemsize >= 4:
        return lax.bitcast_convert_type(words, dtype)
    width = 8 * dtype.itemsize
    return jnp.concatenate([(words >> (width * i)).astype(dtype) for i in range(32 // width)])
