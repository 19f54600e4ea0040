"""Convolution as patches and one matrix product."""

import jax
import jax.numpy as jnp


def convolve(images: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Convolution without padding.

    Args:
      images: float[batch, height, width, in].
      kernel: float[kernel height, kernel width, in, out].
      strides: down and across.

    Returns:
      float[batch, rows, columns, out].
    """
    batch, height, width, features = images.shape
    taps_down, taps_across, _, out = kernel.shape
    down, across = strides
    rows, columns = (height - taps_down) // down + 1, (width - taps_across) // across + 1
    patches = [
        images[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
        for i in range(taps_down)
        for j in range(taps_across)
    ]
    together = jnp.concatenate(patches, axis=-1)  # [batch, rows, columns, taps · in]
    depth = taps_down * taps_across * features
    outputs = jnp.dot(together.reshape(-1, depth), kernel.reshape(depth, out))
    return outputs.reshape(batch, rows, columns, out)
