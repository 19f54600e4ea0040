"""Numbers in few bits: with a scale a block, the largest entries of a block alone, or both."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

# Entries that share a scale, and of which the largest are chosen: a place among them takes a byte.
CODED = 256
SCALE_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a block of 256 floats travels: as uint8[bytes].

    With `bits`, a value is a whole number of -7 … 7 or -127 … 127, times a scale of the block in bfloat16, which is its
    largest magnitude over 7 or 127. With `kept`, that many entries travel, those of the largest magnitude, each with
    its place; of equal ones the first.

    Attributes:
      bits: of a value: 8 or 4, or None for those of a float32.
      kept: entries of each block that travel, or None for all.
    """

    bits: int | None
    kept: int | None

    def encode(self, blocks: jax.Array) -> jax.Array:
        """uint8[..., bytes] from floats[..., 256]."""
        values, parts = blocks, []
        if self.kept is not None:
            _, places = lax.top_k(jnp.abs(blocks), self.kept)
            values = jnp.take_along_axis(blocks, places, axis=-1)
            parts.append(places.astype(jnp.uint8))
        if self.bits is None:
            parts.append(_bytes_of(values.astype(jnp.float32)))
        else:
            largest = jnp.max(jnp.abs(values), axis=-1, keepdims=True)
            scale = (largest / self._most).astype(jnp.bfloat16)
            wide = scale.astype(blocks.dtype)
            codes = jnp.clip(jnp.round(values / jnp.where(wide > 0, wide, 1)), -self._most, self._most)
            parts += [_bytes_of(scale), self._packed(codes.astype(jnp.int8))]
        return jnp.concatenate(parts, axis=-1)

    def decode(self, message: jax.Array, dtype: DTypeLike, unsent: float = 0.0) -> jax.Array:
        """Floats[..., 256] of a dtype from uint8[..., bytes]; of entries that were not sent, `unsent`."""
        places, message = jnp.split(message, [self.kept or 0], axis=-1)
        if self.bits is None:
            values = _floats_of(message, jnp.float32).astype(dtype)
        else:
            scale, message = jnp.split(message, [SCALE_BYTES], axis=-1)
            values = self._unpacked(message).astype(dtype) * _floats_of(scale, jnp.bfloat16).astype(dtype)
        if self.kept is None:
            return values
        here = places[..., None] == jnp.arange(CODED, dtype=jnp.uint8)  # [..., kept, 256]
        found = jnp.sum(jnp.where(here, values[..., None], 0), axis=-2)
        return jnp.where(here.any(axis=-2), found, unsent)

    @property
    def _most(self) -> int:
        assert self.bits is not None
        return 2 ** (self.bits - 1) - 1

    def _packed(self, codes: jax.Array) -> jax.Array:
        """uint8 from int8[..., count]: of 4 bits, the first half of the entries in the low ones of each byte."""
        codes = lax.bitcast_convert_type(codes, jnp.uint8)
        if self.bits == 8:
            return codes
        half = -(-codes.shape[-1] // 2)
        low, high = jnp.split(jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)]), [half], axis=-1)
        return (low & 15) | (high << 4)

    def _unpacked(self, packed: jax.Array) -> jax.Array:
        """The inverse of `_packed`: int8[..., count]."""
        if self.bits == 8:
            return lax.bitcast_convert_type(packed, jnp.int8)
        both = jnp.concatenate([packed & 15, packed >> 4], axis=-1)[..., : self.kept or CODED]
        return lax.bitcast_convert_type(both ^ 8, jnp.int8) - 8


def _bytes_of(numbers: jax.Array) -> jax.Array:
    """uint8[..., bytes of all] from floats[..., count]."""
    return lax.bitcast_convert_type(numbers, jnp.uint8).reshape(*numbers.shape[:-1], -1)


def _floats_of(bytes_: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The inverse of `_bytes_of`."""
    width = jnp.dtype(dtype).itemsize
    return lax.bitcast_convert_type(bytes_.reshape(*bytes_.shape[:-1], -1, width), dtype)
