"""What several models are made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from lsgd_jax.models.convolution import conv_general_dilated

Shape = tuple[int, int, int]
Dtype = DTypeLike | None

HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    channels: int, features: int, side: int, dtype: Dtype, rngs: nnx.Rngs, *, padding: int = 0, **options: Any
) -> nnx.Conv:
    """A convolution by a square kernel, `padding` zeros on each side; options are those of `nnx.Conv`."""
    return nnx.Conv(
        channels,
        features,
        (side, side),
        padding=padding,
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        rngs=rngs,
        **options,
    )


class ConvNorm(nnx.Module):
    """A convolution that keeps the size (but for its stride), and batch norm.

    The convolution has no bias: batch norm would take it away and adds its own. Kernels
    start as He et al. (2015) say, by the number of outputs. Batch norm is computed in
    float32, whatever the convolution's dtype; its running moments keep 0.9 of what they
    were at each step, and its scales start at `scale`.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        side: int,
        dtype: Dtype,
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        scale: float = 1.0,
    ) -> None:
        self.conv = conv(
            channels,
            features,
            side,
            dtype,
            rngs,
            padding=side // 2,
            strides=stride,
            use_bias=False,
            kernel_init=HE_NORMAL,
        )
        scale_init = nnx.initializers.constant(scale)
        self.norm = nnx.BatchNorm(
            features, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, scale_init=scale_init, rngs=rngs
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """float32[batch, height / stride, width / stride, features], by the batch's own moments in training."""
        return self.norm(self.conv(x), use_running_average=not train)


@jax.custom_vjp
def max_pool_2(images: jax.Array) -> jax.Array:
    """Max-pooling over 2×2 windows with stride 2; an odd last row or column is left out.

    By maxima of pairs: rows, then columns. Where two are equal each gets half of the gradient, which is written
    in one pass: that of slices and of maxima takes three times as long on CPU.
    """
    rows = _row_maxima(_in_windows(images))
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def _max_pool_2_forward(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return max_pool_2(images), images


def _max_pool_2_backward(images: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    windows = _in_windows(images)
    rows = _row_maxima(windows)
    of_rows = _share(rows, rows[:, :, :, ::-1]) * cotangent[:, :, :, None]
    # A compiler that computes this again in what follows it does so slowly: element by element, in another order.
    of_windows = lax.optimization_barrier(_share(windows, windows[:, :, ::-1]) * of_rows[:, :, None])
    batch, height, _, width, _, channels = windows.shape
    left_out = ((0, 0), (0, images.shape[1] % 2), (0, images.shape[2] % 2), (0, 0))
    return (jnp.pad(of_windows.reshape(batch, 2 * height, 2 * width, channels), left_out),)


max_pool_2.defvjp(_max_pool_2_forward, _max_pool_2_backward)


def _in_windows(images: jax.Array) -> jax.Array:
    """[batch, height / 2, 2, width / 2, 2, channels], without an odd last row or column."""
    batch, height, width, channels = images.shape
    return images[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)


def _row_maxima(windows: jax.Array) -> jax.Array:
    """[batch, height / 2, width / 2, 2, channels]."""
    return jnp.maximum(windows[:, :, 0], windows[:, :, 1])


def _share(own: jax.Array, other: jax.Array) -> jax.Array:
    """Of the gradient of their maximum, that of `own`: all, half or nothing."""
    return jnp.where(own > other, 1.0, jnp.where(own == other, 0.5, 0.0)).astype(own.dtype)


def max_pool_3(images: jax.Array) -> jax.Array:
    """Max-pooling over 3×3 windows with stride 2, a pixel of padding on each side.

    Rows, then columns, by maxima of slices: on CPU the gradient takes a sixth of what that
    of `lax.reduce_window` takes. Where values are equal they share the gradient.
    """
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded = jnp.pad(images, padding, constant_values=-jnp.inf)
        reach = (images.shape[axis] - 1) // 2 * 2 + 1
        first, second, third = (lax.slice_in_dim(padded, i, i + reach, 2, axis) for i in range(3))
        images = jnp.maximum(jnp.maximum(first, second), third)
    return images
