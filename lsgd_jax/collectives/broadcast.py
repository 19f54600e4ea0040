"""From the leader to everybody."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lsgd_jax.collectives.axes import (
    AxisName,
    check_bound,
    compiler_axes,
    device_axes,
    lane_axes,
    names_of,
    summed_axes,
)
from lsgd_jax.collectives.election import Leader
from lsgd_jax.collectives.partition import on_shards
from lsgd_jax.collectives.wire import (
    as_bits,
    as_reals,
    check_wire_dtype,
    decode,
    encode,
    from_bits,
    from_reals,
    pack,
    unpack,
)

BroadcastMethod = Literal["psum", "ring"]

# A smaller chunk costs more in waiting than it saves.
LEAST_CHUNK = 2**14  # words of 4 bytes


def broadcast_from_leader(
    tree: Any,
    leader: Leader,
    axis_name: AxisName,
    *,
    wire_dtype: DTypeLike | None = None,
    method: BroadcastMethod = "psum",
) -> Any:
    """Gives every worker the leader's tree.

    Lanes of a device first agree by a masked sum: everybody but the leader
    contributes zeros, by `where`, so a NaN elsewhere cannot enter. Then one
    message goes from device to device. Both methods give the same bits:

    * "psum", a masked sum over devices. It sends 2 (n - 1) / n models over each
      link between n devices.
    * "ring": the message goes around in chunks, from the leader's device on, which
      is known only at run time. It sends (c + n - 2) / c models over each link,
      with c chunks: at most 1.05 where the message has 64 KiB for each of
      20 (n - 2) chunks; a smaller one is cut into chunks of 64 KiB. It waits
      c + n - 2 times, so it pays where links are slow and n is more than 2
      (benchmarks/communication.py).

    Args:
      tree: pytree of arrays, of any floating-point, complex, integer or boolean dtypes, or keys.
      leader: what `elect_leader` returned over the same axes.
      axis_name: the axis or axes of that election.
      wire_dtype: a narrower dtype in which float leaves travel: `jnp.bfloat16`,
        `jnp.float16` or `jnp.int8`, which has a scale for every 1024 elements of a
        leaf and is off by at most 1/254 of their largest magnitude. The leader
        keeps its exact tree; the others receive it rounded. Leaves that are no
        wider travel as they are.
      method: "psum" or "ring".

    Returns:
      The leader's tree, with the dtypes of `tree`. Without a valid leader each
      worker keeps its own.

    Raises:
      ValueError: if `wire_dtype` is neither int8 nor a floating-point dtype of 16
        bits or more, `method` is unknown, or an axis is not bound.
    """
    check_wire_dtype(wire_dtype)
    check_broadcast_method("method", method)
    check_bound(axis_name)
    leaves, structure = jax.tree.flatten(tree)
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    own = [as_reals(array) for array in arrays]
    names = names_of(axis_name)

    def send(leaves: list[jax.Array], rank: jax.Array) -> list[jax.Array]:
        messages = [encode(leaf, wire_dtype) for leaf in leaves]
        # What has been rounded stays so, even where it goes nowhere and a compiler could undo it.
        messages = lax.optimization_barrier(messages)
        sent, parts = jax.tree.flatten(messages)
        received = jax.tree.unflatten(parts, from_one_device(sent, rank, names, method))
        return [decode(message, leaf, wire_dtype) for leaf, message in zip(leaves, received, strict=True)]

    # To put what is split over a worker's devices into blocks, or chunks, would gather it.
    in_blocks = method == "ring" or (wire_dtype is not None and jnp.dtype(wire_dtype) == jnp.int8)
    send = on_shards(send) if in_blocks and compiler_axes() else send
    received = send([leaders_of_device(leaf, leader, names) for leaf in own], leader.rank)
    keeps = leader.is_leader | ~leader.valid
    heard = [jnp.where(keeps, leaf, of_leader) for leaf, of_leader in zip(own, received, strict=True)]
    return jax.tree.unflatten(structure, map(from_reals, heard, arrays))


def broadcast_from_first(tree: Any, axis_name: AxisName) -> Any:
    """Gives every worker the tree of the first: a value that is the same on all devices, by its type too.

    Args:
      tree: pytree of small arrays, each of which travels by itself; any dtypes.
      axis_name: the axis or axes; the first worker is that of index 0.
    """

    def of_leaf(leaf: jax.Array) -> jax.Array:
        reals = as_reals(leaf)
        bits = as_bits(reals)
        is_first = lax.axis_index(axis_name) == 0
        of_first = lax.psum(jnp.where(is_first, bits, jnp.zeros_like(bits)), summed_axes(axis_name))
        return from_reals(from_bits(of_first, reals.dtype), leaf)

    return jax.tree.map(of_leaf, tree)


def check_broadcast_method(name: str, method: str) -> None:
    """Raises ValueError, which names the argument, unless `method` is "psum" or "ring"."""
    if method not in ("psum", "ring"):
        raise ValueError(f'{name} must be "psum" or "ring", got {method!r}')


def leaders_of_device(leaf: jax.Array, leader: Leader, names: tuple[str, ...]) -> jax.Array:
    """The leader's leaf on all lanes of its device, zeros on other devices."""
    bits = as_bits(leaf)
    bits = jnp.where(leader.is_leader, bits, jnp.zeros_like(bits))
    lanes = lane_axes(names)
    return from_bits(lax.psum(bits, lanes) if lanes else bits, leaf.dtype)


def from_one_device(
    arrays: list[jax.Array], rank: jax.Array, names: tuple[str, ...], method: BroadcastMethod
) -> list[jax.Array]:
    """The arrays of the one device where they are not zeros, everywhere."""
    devices = device_axes(names)
    if lax.axis_size(devices) == 1 or not arrays:
        return arrays
    if compiler_axes():  # to flatten what is split over them would gather it
        return [lax.psum(array, devices) for array in arrays]
    words = pack(arrays)
    words = _sum(words, devices) if method == "psum" else _ring(words, _device_of(rank, names), devices)
    return unpack(words, arrays)


def _sum(words: jax.Array, devices: tuple[str, ...]) -> jax.Array:
    """Of uint32; of the same bits as signed integers, which sparse cores of TPUs can add, and unsigned ones not."""
    signed = lax.psum(lax.bitcast_convert_type(words, jnp.int32), devices)
    return lax.bitcast_convert_type(signed, jnp.uint32)


def _device_of(rank: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """The index, among the devices in the order of the mesh, of the one on which a worker lives."""
    coordinates = {}
    for name in reversed(names):
        rank, coordinates[name] = jnp.divmod(rank, lax.axis_size(name))
    index = jnp.zeros_like(rank)
    for name in device_axes(names):
        index = index * lax.axis_size(name) + coordinates[name]
    return index


def ring_chunks(words: int, devices: int) -> int:
    """Into how many chunks the ring cuts a message: 20 a hop, but for small messages."""
    return max(1, min(20 * (devices - 2), words // LEAST_CHUNK))


def _ring(words: jax.Array, first: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The words of the device `first`, everywhere.

    In every step each device sends a chunk to its right neighbour: the first its
    next one, the others what they received last. What arrives where nothing is
    due is dropped, so the pattern and the number of steps are static.
    """
    devices = lax.axis_size(axes)
    chunks = ring_chunks(words.size, devices)
    hops = (lax.axis_index(axes) - first) % devices  # from the first to here
    to_the_right = [(i, (i + 1) % devices) for i in range(devices)]
    buffer = jnp.pad(words, (0, -words.size % chunks)).reshape(chunks, -1)

    def chunk(buffer: jax.Array, place: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(buffer, jnp.clip(place, 0, chunks - 1), keepdims=False)

    def step(buffer: jax.Array, s: jax.Array) -> tuple[jax.Array, None]:
        arrived = lax.ppermute(chunk(buffer, s - hops), axes, to_the_right)
        place = s - hops + 1
        due = (hops > 0) & (place >= 0) & (place < chunks)
        stored = jnp.where(due, arrived, chunk(buffer, place))
        return lax.dynamic_update_index_in_dim(buffer, stored, jnp.clip(place, 0, chunks - 1), axis=0), None

    buffer, _ = lax.scan(step, buffer, jnp.arange(chunks + devices - 2))
    return buffer.ravel()[: words.size]
