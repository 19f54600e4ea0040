"""Convolution of several models at once, as `jax.vmap` batches them, one after the other: for GPUs.

Batched kernels make JAX's convolutions grouped ones, and their gradients of kernels forward convolutions with windows
of the size of the outputs (24 × 24 in the first layer of cnn7), in place of cuDNN's own for such gradients. Everything
else that is batched stays so (results/compiled.md, "Convolutions of several workers on a GPU").
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# So many models stand one after the other in the program, more are looped over.
UNROLLED = 16

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]


def lane_by_lane(function: Bilinear) -> Bilinear:
    """The same function, linear in each of its arguments, which `jax.vmap` calls once for each lane.

    Where lanes share one of the arguments, as where one model sees several minibatches, it is batched as usual. It
    may be differentiated in reverse mode, and so again.
    """

    @jax.custom_batching.custom_vmap
    def batched(a: jax.Array, b: jax.Array) -> jax.Array:
        return function(a, b)

    @batched.def_vmap
    def one_by_one(size: int, in_batched: Any, a: jax.Array, b: jax.Array) -> tuple[jax.Array, bool]:
        if not all(in_batched):
            return jax.vmap(function, in_axes=tuple(0 if own else None for own in in_batched))(a, b), True
        if size > UNROLLED:
            return lax.map(lambda lane: batched(*lane), (a, b)), True
        return jnp.stack([batched(a[i], b[i]) for i in range(size)]), True

    @jax.custom_vjp
    def differentiable(a: jax.Array, b: jax.Array) -> jax.Array:
        return batched(a, b)

    def forward(a: jax.Array, b: jax.Array) -> Any:
        return differentiable(a, b), (a, b)  # which differentiates again

    def backward(args: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = args
        of_a = lane_by_lane(lambda b, cotangent: jax.linear_transpose(lambda a: function(a, b), a)(cotangent)[0])
        of_b = lane_by_lane(lambda a, cotangent: jax.linear_transpose(lambda b: function(a, b), b)(cotangent)[0])
        return of_a(b, cotangent), of_b(a, cotangent)

    differentiable.defvjp(forward, backward)
    return differentiable
