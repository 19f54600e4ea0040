"""Convolution of several models at once, as `jax.vmap` batches them, one after the other: for GPUs.

Batched kernels make JAX's convolutions grouped ones, and their gradients of kernels forward convolutions with windows
of the size of the outputs (24 × 24 in the first layer of cnn7), in place of cuDNN's own for such gradients. Everything
else that is batched stays so (results/README.md, "Convolutions of several workers on a GPU").
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# So many models stand one after the other in the program, more are looped over.
UNROLLED = 16

Function = Callable[..., Any]


def lane_by_lane(function: Function) -> Function:
    """The same function of (images, kernel), which `jax.vmap` calls once for each lane.

    Where only images are batched, as where one model sees several minibatches, it is batched as usual. It may be
    differentiated in reverse mode, and so again.
    """

    @jax.custom_batching.custom_vmap
    def batched(*args: Any) -> Any:
        return function(*args)

    @batched.def_vmap
    def one_by_one(size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
        in_batched = tuple(in_batched)

        def call(i: Any) -> Any:
            return batched(*jax.tree.map(lambda own, arg: arg[i] if own else arg, in_batched, args))

        if not any(jax.tree.leaves(in_batched[1:])):
            outputs = jax.vmap(function, in_axes=jax.tree.map(lambda own: 0 if own else None, in_batched))(*args)
        elif size > UNROLLED:
            outputs = lax.map(call, jnp.arange(size))
        else:
            outputs = jax.tree.map(lambda *lanes: jnp.stack(lanes), *map(call, range(size)))
        return outputs, jax.tree.map(lambda _: True, outputs)

    @jax.custom_vjp
    def differentiable(*args: Any) -> Any:
        return batched(*args)

    def forward(*args: Any) -> Any:
        return differentiable(*args), args  # which differentiates again

    def backward(args: Any, cotangent: Any) -> Any:
        return lane_by_lane(lambda *all_args: jax.vjp(function, *all_args[:-1])[1](all_args[-1]))(*args, cotangent)

    differentiable.defvjp(forward, backward)
    return differentiable
