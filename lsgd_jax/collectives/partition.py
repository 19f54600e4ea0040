"""How the arrays of one worker lie over devices of its own.

A worker may span several devices: axes of the mesh besides those of groups and workers, which are left to the
compiler. The first splits a worker's minibatch; parameters are split over it too, and gathered where they are used
(fully sharded data parallelism: Rajbhandari et al. 2020, "ZeRO", stage 3). Further axes split the computation itself.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lsgd_jax.collectives.axes import GROUP, WORKER, compiler_axes, tracked_axes

# Arrays of fewer elements are whole on each device: to gather them takes longer than it saves.
LEAST_SPLIT = 2**12
# TPUs keep the last two dimensions of an array in tiles, of (16, 128) numbers of 16 bits: other parts are padded.
TILE = (16, 128)


def split_by_size(shape: Sequence[int], axes: Mapping[str, int]) -> PartitionSpec:
    """Each axis in turn splits the largest dimension that it divides, into whole tiles where one is so divided.

    Args:
      shape: of a worker's array; one of fewer than LEAST_SPLIT elements is not split.
      axes: the sizes of a worker's own axes.
    """
    left, names = list(shape), [()] * len(shape)  # type: list[int], list[tuple[str, ...]]
    for name, size in axes.items() if math.prod(shape) >= LEAST_SPLIT else ():
        fitting = [i for i, length in enumerate(left) if length % size == 0]
        if fitting:
            at = max(fitting, key=lambda i: (_in_tiles(left[i] // size, i - len(left)), left[i]))
            left[at], names[at] = left[at] // size, (*names[at], name)
    while names and not names[-1]:
        names.pop()
    return PartitionSpec(*[of if len(of) > 1 else of[0] if of else None for of in names])


def _in_tiles(length: int, dimension: int) -> bool:
    """Whether a part of the last dimension, -1, or of that before it, -2, is whole tiles."""
    return dimension >= -len(TILE) and length % TILE[dimension] == 0


def gathered(tree: Any, specs: Any = None, *, dtype: DTypeLike | None = None) -> Any:
    """Parameters as a worker computes with them: whole along the first of its own axes.

    To be called in a loss where they are used: layer by layer, so that few are whole at a time, and inside a loop over
    layers. Gradients come back split as the parameters are, each device with its part of the sum; in forward mode
    (`jax.jvp`) there is no derivative. Where a worker is one device, and where no mesh is known, the tree is returned
    as it is.

    Args:
      tree: pytree of arrays.
      specs: the `PartitionSpec` of each leaf, over the worker's own axes; by default `split_by_size`.
      dtype: in which leaves of two or more dimensions travel and are returned, and gradients travel back; by default
        their own. That of the products that they enter saves half the bytes.
    """
    mesh, names = jax.sharding.get_abstract_mesh(), own_axes()
    if not names:
        return tree
    axes = {name: mesh.shape[name] for name in names}

    def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        whole = without(spec, names[0])
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return lax.with_sharding_constraint(leaf, whole)
        narrow = dtype is not None and leaf.ndim > 1
        return _gather(leaf, spec, whole, jnp.dtype(dtype if narrow else leaf.dtype), leaf.dtype)

    specs = jax.tree.map(lambda leaf: split_by_size(leaf.shape, axes), tree) if specs is None else specs
    return jax.tree.map(gather, tree, specs)


def split_samples(tree: Any) -> Any:
    """Arrays of a worker's samples, on axis 0, split along the first of its own axes where that divides them.

    For a minibatch, and for what a model makes of it, where a compiler could split something else: gather it, that is.
    """
    own, mesh = own_axes()[:1], jax.sharding.get_abstract_mesh()
    # In an evaluation samples are nobody's, and spread over all workers.
    axes = (*[name for name in compiler_axes() if name in (GROUP, WORKER)], *own)
    count = math.prod(mesh.shape[name] for name in axes)

    def split(leaf: jax.Array) -> jax.Array:
        divides = leaf.ndim and leaf.shape[0] % count == 0
        return lax.with_sharding_constraint(leaf, PartitionSpec(axes)) if divides else leaf

    return jax.tree.map(split, tree) if own else tree


def on_shards(function: Callable[..., list[jax.Array]], outputs: int = 1) -> Callable[..., list[jax.Array]]:
    """A function `(arrays, *scalars) -> arrays` of the same shapes, called by each of a worker's devices with its part.

    The parts are those of `split_by_size`, over all axes that are left to the compiler. It may return so many arrays
    for each, all first ones before all second ones.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = {name: mesh.shape[name] for name in compiler_axes()}

    def mapped(arrays: list[jax.Array], *scalars: jax.Array) -> list[jax.Array]:
        parts = [split_by_size(array.shape, axes) for array in arrays]
        whole = [PartitionSpec()] * len(scalars)
        return jax.shard_map(
            function,
            in_specs=(parts, *whole),
            out_specs=parts * outputs,
            axis_names=set(axes),
            check_vma=bool(tracked_axes()),
        )(arrays, *scalars)

    return mapped


def own_axes() -> tuple[str, ...]:
    """The axes of the mesh over which a worker's own devices lie, the first first; none where it is one device."""
    return tuple(name for name in compiler_axes() if name not in (GROUP, WORKER))


def keeping(spec: PartitionSpec, kept: Callable[[str], bool]) -> list[tuple[str, ...]]:
    """The axes of each dimension of a spec, those alone for which `kept` holds."""
    entries = [(of,) if isinstance(of, str) else tuple(of or ()) for of in spec]
    return [tuple(filter(kept, of)) for of in entries]


def without(spec: PartitionSpec, axis: str) -> PartitionSpec:
    """A spec that leaves an axis out."""
    return PartitionSpec(*[of or None for of in keeping(spec, lambda name: name != axis)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(leaf: jax.Array, split: PartitionSpec, whole: PartitionSpec, dtype: Any, kept: Any) -> jax.Array:
    del split, kept
    return lax.with_sharding_constraint(leaf.astype(dtype), whole)


def _forward(leaf: jax.Array, *static: Any) -> tuple[jax.Array, None]:
    return _gather(leaf, *static), None


def _backward(
    split: PartitionSpec, whole: PartitionSpec, dtype: Any, kept: Any, _: None, cotangent: jax.Array
) -> tuple[jax.Array]:
    # The transpose of a constraint would keep the sum whole on every device.
    del whole, dtype
    return (lax.with_sharding_constraint(cotangent, split).astype(kept),)


_gather.defvjp(_forward, _backward)
