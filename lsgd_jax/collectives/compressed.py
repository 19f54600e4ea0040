"""A leader's message, and a mean, in few bits.

What is compressed are differences to what everybody knows, or what has been added up, so that what is lost now can be
sent later: `lsgd_jax.optimizers.compressed` keeps account of it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lsgd_jax.collectives.axes import AxisName, check_bound, compiler_axes, names_of
from lsgd_jax.collectives.broadcast import BroadcastMethod, from_one_device, leaders_of_device
from lsgd_jax.collectives.codec import CODED, Codec
from lsgd_jax.collectives.election import Leader
from lsgd_jax.collectives.exchange import from_each, to_each
from lsgd_jax.collectives.partition import on_shards
from lsgd_jax.collectives.sums import power_share, sum_dtype
from lsgd_jax.collectives.wire import as_reals, from_reals


def compressed_from_leader(
    tree: Any, leader: Leader, axis_name: AxisName, codec: Codec, *, method: BroadcastMethod = "psum"
) -> Any:
    """Gives every worker, the leader too, the leader's tree as it is decoded.

    Args:
      tree: pytree of floating-point or complex arrays. What others than the leader have does not enter.
      leader: what `elect_leader` returned over the same axes.
      axis_name: the axis or axes of that election.
      codec: how it travels, in one message.
      method: "psum" or "ring", as of `broadcast_from_leader`.

    Returns:
      The leader's tree, in float32 or wider; NaN where the codec sends nothing of an entry. Of no use without a valid
      leader.
    """
    check_bound(axis_name)
    names, (leaves, structure) = names_of(axis_name), jax.tree.flatten(tree)
    own = [_to_compute_with(leaf) for leaf in leaves]
    here = leaders_of_device(leader.is_leader, leader, names)

    def send(arrays: list[jax.Array], rank: jax.Array, here: jax.Array) -> list[jax.Array]:
        blocks = _in_blocks(arrays, 1)
        message = codec.encode(blocks)
        # What has been rounded stays so, even where it goes nowhere and a compiler could undo it.
        message = lax.optimization_barrier(jnp.where(here, message, 0))
        (message,) = from_one_device([message], rank, names, method)
        return _out_of_blocks(codec.decode(message, blocks.dtype, unsent=jnp.nan), arrays)

    send = on_shards(send) if compiler_axes() else send
    received = send([leaders_of_device(leaf, leader, names) for leaf in own], leader.rank, here)
    return jax.tree.unflatten(structure, [from_reals(x, leaf) for x, leaf in zip(received, leaves, strict=True)])


def compressed_mean(tree: Any, axis_name: AxisName, codec: Codec, *, where: jax.Array) -> tuple[Any, Any]:
    """The mean of the workers' trees, by a reduce-scatter and an all-gather of compressed messages.

    The tree is cut into a part for each worker, who decodes what the others send of it, adds it up in float32 with its
    own, which is not rounded, and sends the mean to all::

      sum_k = part k of the worker k + sum over others of C(their part k)
      mean_k = C(sum_k / count)

    What the second rounding loses is counted as not sent by the worker of that part: in the sums over all workers
    nothing is lost that is not known to one of them (as in DoubleSqueeze: Tang et al. 2019, arXiv:1905.05957).

    Args:
      tree: pytree of floating-point or complex arrays.
      axis_name: the axis or axes.
      codec: how the parts travel.
      where: bool[], whether this worker takes part. What the others hold, NaN included, does not enter.

    Returns:
      (mean, sent), in float32 or wider: the mean is that of what has been sent by those that take part; not finite
      where nobody does. What has been sent by this one may be more or less than what it has.
    """
    check_bound(axis_name)
    names, (leaves, structure) = names_of(axis_name), jax.tree.flatten(tree)
    workers, rank = lax.axis_size(names), lax.axis_index(names)
    share = power_share(workers)

    def exchange(arrays: list[jax.Array], rank: jax.Array, where: jax.Array) -> list[jax.Array]:
        parts = _in_blocks(arrays, workers)
        parts = parts.reshape(workers, -1, CODED)
        mine = (jnp.arange(workers) == rank)[:, None, None]
        message = lax.optimization_barrier(codec.encode(parts))
        # In rows of bytes, the first of which tells who takes part: narrower ones would be padded, on TPUs to 128.
        flag = jnp.broadcast_to(where.astype(jnp.uint8), (workers, 1))
        received = to_each(jnp.concatenate([flag, message.reshape(workers, -1)], axis=1), names)
        count = jnp.sum(received[:, 0].astype(parts.dtype))
        heard = codec.decode(received[:, 1:].reshape(message.shape), parts.dtype)  # of my part, from each
        total = jnp.sum(share * jnp.where(mine, parts[rank], heard), axis=0) / share
        # NaN where nobody takes part, which is sent.
        mean_message = lax.optimization_barrier(codec.encode(total / count))
        lost = total - count * codec.decode(mean_message, parts.dtype)
        sent = jnp.where(mine, parts - lost, codec.decode(message, parts.dtype))
        means = codec.decode(from_each(mean_message.ravel(), names).reshape(message.shape), parts.dtype)
        return [
            *_out_of_blocks(means.reshape(-1, CODED), arrays),
            *_out_of_blocks(sent.reshape(-1, CODED), arrays),
        ]

    exchange = on_shards(exchange, outputs=2) if compiler_axes() else exchange
    own = [jnp.where(where, _to_compute_with(leaf), 0) for leaf in leaves]
    found = exchange(own, rank, where)
    found = [from_reals(x, leaf) for x, leaf in zip(found, [*leaves, *leaves], strict=True)]
    means, sent = (jax.tree.unflatten(structure, half) for half in (found[: len(leaves)], found[len(leaves) :]))
    return means, sent


def _to_compute_with(leaf: jax.Array) -> jax.Array:
    reals = as_reals(leaf)
    return reals.astype(sum_dtype(reals.dtype))


def _in_blocks(arrays: Sequence[jax.Array], multiple: int) -> jax.Array:
    """Floats[blocks, 256] of all entries, one array after the other; the number of blocks is a multiple of another."""
    flat = jnp.concatenate([jnp.zeros(0, jnp.float32), *[array.ravel() for array in arrays]])
    largest = jnp.finfo(jnp.float32).max  # a scale, or an entry, travels in no wider range
    blocks = jnp.pad(jnp.clip(flat, -largest, largest), (0, -flat.size % (CODED * multiple)))
    return blocks.reshape(-1, CODED)


def _out_of_blocks(blocks: jax.Array, like: Sequence[jax.Array]) -> list[jax.Array]:
    """The inverse of `_in_blocks`."""
    flat, arrays = blocks.ravel(), []
    for array in like:
        arrays.append(flat[: array.size].reshape(array.shape).astype(array.dtype))
        flat = flat[array.size :]
    return arrays
