"""Convolution of images with few channels, as one matrix product.

Patches of 5×5 pixels of 3 channels make matrices too thin for a processor. Here a
row of the matrix is a window that is wide enough for several outputs side by side,
and the kernel becomes a band matrix, once for each of them: more multiplications
by zero, but less to copy and a product of a better shape.
"""

import jax
import jax.numpy as jnp

OUTPUTS = 4


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
    windows = -(-columns // OUTPUTS)
    span = (OUTPUTS - 1) * across + taps_across  # pixels of a window
    step = OUTPUTS * across  # pixels from a window to the next
    missing = max(0, (windows - 1) * step + span - width)
    images = jnp.pad(images, ((0, 0), (0, 0), (0, missing), (0, 0)))

    starts = range(0, windows * step, step)
    # [batch, height, windows, span · in]
    strips = jnp.stack([images[:, :, i : i + span].reshape(batch, height, -1) for i in starts], axis=2)
    reach = (rows - 1) * down + 1
    patches = jnp.concatenate([strips[:, i : i + reach : down] for i in range(taps_down)], axis=-1)
    places = [(i * across, (OUTPUTS - 1 - i) * across) for i in range(OUTPUTS)]
    band = jnp.stack([jnp.pad(kernel, ((0, 0), place, (0, 0), (0, 0))) for place in places], axis=3)
    depth = taps_down * span * features
    outputs = jnp.dot(patches.reshape(-1, depth), band.reshape(depth, OUTPUTS * out))
    return outputs.reshape(batch, rows, windows * OUTPUTS, out)[:, :, :columns]
