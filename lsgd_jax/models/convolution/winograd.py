"""Convolution with fewer multiplications, by Winograd's minimal filtering.

In one dimension, m outputs of a kernel of r taps need m + r - 1 multiplications
instead of m·r::

    y = Aᵀ[(G k) ∘ (Bᵀ d)],    d the m + r - 1 inputs that y depends on

In two dimensions the transforms act on rows and on columns, and channels make a
matrix product of each of the (m + r - 1)² products: for a 5×5 kernel and tiles of
4×4 outputs 64 instead of 400. The matrices come from Toom-Cook interpolation;
their points are chosen for float32, which keeps 5 digits or more.

Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast
algorithms for convolutional neural networks", CVPR 2016.
"""

import functools
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Interpolation points, besides infinity: small, and in pairs of opposite sign.
POINTS = [Fraction(p) for p in ("0", "1", "-1", "1/2", "-2", "2", "-1/2")]


class Transforms(NamedTuple):
    """The matrices of two dimensions at once, float64; n = m + r - 1.

    Attributes:
      outputs: [m², n²], Aᵀ ⊗ Aᵀ.
      kernel: [n², r²], G ⊗ G.
      inputs: [n², n²], Bᵀ ⊗ Bᵀ.
    """

    outputs: np.ndarray
    kernel: np.ndarray
    inputs: np.ndarray


def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of square kernels with stride 1 and without padding.

    Every output of a tile sees all of the tile's inputs: what is not finite spreads
    to its tile of 4×4, further than by the definition.

    Args:
      images: float[batch, height, width, in].
      kernel: float[r, r, in, out].

    Returns:
      float[batch, height - r + 1, width - r + 1, out].
    """
    batch, height, width, features = images.shape
    taps, out = kernel.shape[0], kernel.shape[-1]
    rows, columns = height - taps + 1, width - taps + 1
    tile = _tile(rows, columns, taps)
    down, across = -(-rows // tile), -(-columns // tile)  # tiles
    at = _transforms(tile, taps)
    points = len(at.kernel)

    kernels = _times(at.kernel, kernel.reshape(taps**2, features * out)).reshape(points, features, out)
    tiles = _tiles(images, tile, taps, down, across)  # [points, batch · down · across · in]
    inputs = _times(at.inputs, tiles).reshape(points, -1, features)
    products = jnp.einsum("pti,pio->pto", inputs, kernels)
    outputs = _times(at.outputs, products.reshape(points, -1))  # [tile², batch · down · across · out]
    outputs = outputs.reshape(tile, tile, batch, down, across, out).transpose(2, 3, 0, 4, 1, 5)
    return outputs.reshape(batch, down * tile, across * tile, out)[:, :rows, :columns]


def multiplications(rows: int, columns: int, taps: int, tile: int) -> int:
    """How many products a pair of channels takes for rows × columns outputs."""
    return -(-rows // tile) * -(-columns // tile) * (tile + taps - 1) ** 2


def _tile(rows: int, columns: int, taps: int) -> int:
    return min((4, 2), key=lambda tile: multiplications(rows, columns, taps, tile))


def _tiles(images: jax.Array, tile: int, taps: int, down: int, across: int) -> jax.Array:
    """Overlapping tiles, [(tile + taps - 1)², batch · down · across · in].

    Images are cut into blocks of `tile`; a tile is made of its block and parts of the next ones.
    """
    batch, height, width, features = images.shape
    side = tile + taps - 1
    parts = -(-side // tile)
    rows, columns = (down + parts - 1) * tile, (across + parts - 1) * tile
    images = jnp.pad(images, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))
    blocks = images.reshape(batch, rows // tile, tile, columns // tile, tile, features).transpose(2, 4, 0, 1, 3, 5)
    sizes = [min(tile, side - part * tile) for part in range(parts)]
    blocks = jnp.concatenate([blocks[:s, :, :, p : p + down] for p, s in enumerate(sizes)], axis=0)
    blocks = jnp.concatenate([blocks[:, :s, :, :, p : p + across] for p, s in enumerate(sizes)], axis=1)
    return blocks.reshape(side**2, -1)


def _times(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    return jnp.dot(jnp.asarray(matrix, x.dtype), x)


@functools.cache
def _transforms(tile: int, taps: int) -> Transforms:
    """Toom-Cook's matrices: the transpose of multiplying polynomials by their values at points."""
    side = tile + taps - 1
    points = POINTS[: side - 1]

    def values(terms: int) -> list[list[Fraction]]:
        """Values of a polynomial at the points and at infinity, from its coefficients."""
        return [[p**i for i in range(terms)] for p in points] + [[Fraction(i == terms - 1) for i in range(terms)]]

    inputs = np.array(_inverse(values(side)), float).T
    scale = np.abs(inputs).max(1, keepdims=True)  # so that neither the inputs nor the kernel grow much
    outputs, kernel, inputs = np.array(values(tile), float).T, np.array(values(taps), float) * scale, inputs / scale
    return Transforms(*(np.kron(matrix, matrix) for matrix in (outputs, kernel, inputs)))


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """By Gauss and Jordan, exactly."""
    size = len(matrix)
    rows = [row + [Fraction(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in set(range(size)) - {column}:
            rows[i] = [a - rows[i][column] * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]
