"""Which convolution is computed how: the one place that chooses.

On CPU, XLA's own convolution is slow in training (see `direct.py`), so each shape
gets what measured fastest there (benchmarks/convolution.py): fewer multiplications by
Winograd's filtering, a band matrix for few channels, patches where it strides, and
else XLA's convolution in the layout that it is fast in. The numbers are those of
`jax.lax.conv_general_dilated` to 1e-5 of the largest. Elsewhere JAX's own is used, on
GPUs for one lane after the other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.engine.platform import platform
from lsgd_jax.models.convolution import banded, direct, patches, winograd
from lsgd_jax.models.convolution.direct import LAYOUT
from lsgd_jax.models.convolution.lane_by_lane import lane_by_lane


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    *,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    **others: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for the hook of that name in `flax.nnx.Conv`.

    On CPU, bfloat16 arguments give a float32 result: what follows, element by
    element, is faster in float32 there.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    two_dimensional = lhs.ndim == 4 and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
    known = lhs.dtype == rhs.dtype and lhs.dtype in (jnp.bfloat16, jnp.float32, jnp.float64)
    if platform() != "cpu" or not (two_dimensional and known and _plain(**others)):

        def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
            how = {"rhs_dilation": rhs_dilation, "dimension_numbers": dimension_numbers, **others}
            return lax.conv_general_dilated(images, kernel, window_strides, padding, **how)

        return lane_by_lane(convolve)(lhs, rhs) if platform() == "gpu" else convolve(lhs, rhs)
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        window = [(size - 1) * d + 1 for size, d in zip(rhs.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, window_strides, padding)
    return _on_cpu(lhs, rhs, tuple(window_strides), tuple(map(tuple, padding)), dilation)


def _on_cpu(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, dilation: Any) -> jax.Array:
    height, width, features, out = kernel.shape
    room = [side + sum(pad) for side, pad in zip(images.shape[1:3], padding, strict=True)]
    empty = 0 in images.shape or height > room[0] or width > room[1]
    # In bfloat16 oneDNN's convolution is fast, but for tiny images and strides, and Winograd's filtering would lose
    # what few digits there are.
    exact = images.dtype != jnp.bfloat16
    by_patches = strides != (1, 1) or ((height, width) == (1, 1) if exact else max(images.shape[1:3]) <= 4)
    if empty or dilation != (1, 1):
        outputs = direct.convolve(images, kernel, strides, padding, dilation)
    elif features <= 4:
        outputs = banded.convolve(_padded(images, padding), kernel, strides)
    elif by_patches:
        outputs = patches.convolve(_padded(images, padding), kernel, strides)
    elif exact and height == width <= 5 and min(features, out) >= 32:
        outputs = winograd.convolve(_padded(images, padding), kernel)
    else:
        outputs = direct.convolve(images, kernel, strides, padding, dilation)
    return outputs if exact else outputs.astype(jnp.float32)


def _padded(images: jax.Array, padding: Any) -> jax.Array:
    return lax.pad(images, jnp.zeros([], images.dtype), [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])


def _plain(lhs_dilation: Any = None, feature_group_count: int = 1, batch_group_count: int = 1, **others: Any) -> bool:
    """Whether nothing but strides, padding and kernel dilation is asked for."""
    ungrouped = feature_group_count == batch_group_count == 1
    return ungrouped and set(lhs_dilation or (1,)) == {1} and all(value is None for value in others.values())
