"""Where the minibatches of a task come from: arrays on the devices, or a function on the host."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.data.fingerprint import digest_of
from lsgd_jax.data.loader import BATCHES_PER_PROCESS, stream
from lsgd_jax.data.prefetch import BatchOf, OfRanks, Prefetcher
from lsgd_jax.data.sampling import SAMPLINGS, Augment, count_of, make_batches, put_on_devices, shard_size
from lsgd_jax.engine.local_steps import Batches
from lsgd_jax.engine.topology import Topology
from lsgd_jax.engine.train_step import LONGEST_CALL
from lsgd_jax.errors import InputError

# Of the minibatches of all workers that are on the devices at a time.
BLOCK_BYTES = 2**29


class Stream(NamedTuple):
    """Minibatches of a run.

    Attributes:
      batches: how they are drawn.
      data_for: `(step, steps) -> data`, what they are drawn from in a call of the train step.
      longest_call: local steps in a call, at most; None if the data set no bound.
      close: ends what `data_for` has started.
      shapes: of `data`: a pytree of `jax.ShapeDtypeStruct`.
    """

    batches: Batches
    data_for: Callable[[int, int], Any]
    shapes: Any
    longest_call: int | None = None
    close: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Where the minibatches of each worker come from.

    Attributes:
      batch_size: samples in a worker's minibatch.
      open: `(topology, seed, steps) -> Stream`. Raises ValueError if there is too little for so many workers.
      digest: tells whether the data are the same as they were, as far as it looks at them; None where only their
        name does.
      some: `count -> batches`, a pytree of arrays [batches, batch, ...], about so many samples and at least a
        minibatch: the same ones each time, for what has to be measured again.
      augment: what becomes of one of these before the loss sees it, if anything.
      in_step: whether minibatches come to all workers step by step, so that none may be ahead of others.
      processes: that read what is streamed; 0 for a thread of this one.
    """

    batch_size: int
    open: Callable[[Topology, int, int], Stream]
    digest: Callable[[], str] | None = None
    some: Callable[[int], Any] | None = None
    augment: Augment | None = None
    in_step: bool = False
    processes: int = 0


def resident(batches: Batches, data: Any) -> Stream:
    """Minibatches of data that are on the devices."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
    return Stream(batches, lambda step, steps: data, shapes)


def from_arrays(
    tree: Any,
    batch_size: int,
    *,
    sampling: str = "shard",
    augment: Augment | None = None,
) -> TrainingData:
    """Minibatches of arrays that live on the devices.

    Args:
      tree: a pytree of arrays; an entry of their leading axes is a sample.
      batch_size: samples in a worker's minibatch.
      sampling: "shard", each worker its own samples, in a new order each epoch (what does not fill
        a batch is left out of that epoch); "reshuffle", a shard that is dealt anew each epoch; or
        "iid", any samples at random. For the latter two each device holds all of them.
      augment: `(batch, key) -> batch`, on the devices; by default nothing.

    Raises:
      InputError: if the arrays are none, differ in length or hold objects, or the sampling is unknown.
    """
    arrays = check_arrays("tree", tree)
    count = count_of(arrays)
    check_drawing(batch_size, sampling)

    def open_arrays(topology: Topology, seed: int, steps: int) -> Stream:
        del steps
        own = count if sampling == "iid" else shard_size(count, topology.size)
        check_batch_size(batch_size, own, sampling)
        data = put_on_devices(arrays, topology, sampling, seed)
        return resident(make_batches(sampling, own, batch_size, augment), data)

    def some(samples: int) -> Any:
        batches = max(1, min(samples, count) // batch_size)
        return jax.tree.map(lambda x: x[: batches * batch_size].reshape(batches, batch_size, *x.shape[1:]), arrays)

    return TrainingData(batch_size, open_arrays, lambda: digest_of(lambda: arrays), some, augment)


def from_function(
    batch_of: BatchOf,
    *,
    transform: Augment | None = None,
    processes: int = 0,
) -> TrainingData:
    """Minibatches that a function makes on the host, ahead of the devices.

    Args:
      batch_of: `(worker, step) -> batch`, a pytree of arrays whose shapes and dtypes are always the
        same; a function of the two alone, so that a run resumes at the exact batch.
      transform: `(batch, key) -> batch`, on the devices; by default nothing.
      processes: that call it, which then has to be picklable; 0 for a thread of this one. As with all processes of
        Python's, a script that starts them needs its `if __name__ == "__main__":`.

    Raises:
      InputError: if it gives no arrays, or their leading axes differ.
    """
    example, again = (check_arrays("what batch_of(0, 0) gives", batch_of(0, 0)) for _ in range(2))
    if jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), example, again)).count(True):
        raise InputError("batch_of(0, 0) gives other values the second time: make it a function of its arguments alone")

    def open_function(topology: Topology, seed: int, steps: int) -> Stream:
        del seed
        return stream_of(batch_of, example, topology, steps, transform, processes)

    def some(samples: int) -> Any:
        return first_batches(batch_of, example, samples, processes)

    return TrainingData(
        count_of(example),
        open_function,
        digest=lambda: digest_of(lambda: example),
        some=some,
        augment=transform,
        in_step=True,
        processes=processes,
    )


def stream_of(
    batch_of: BatchOf, example: Any, topology: Topology, steps: int, transform: Augment | None, processes: int
) -> Stream:
    """The minibatches that a function makes on the host, for a run of so many steps.

    Args:
      batch_of: `(worker, step) -> batch`.
      example: a pytree of arrays of its shapes and dtypes.
      topology: the workers.
      steps: where the run ends.
      transform: `(batch, key) -> batch`, on the devices, or None.
      processes: that call the function.
    """
    length = block_length(_nbytes(example), topology)
    data_for = Prefetcher(batch_of, example, topology, length=length, steps=steps, processes=processes)
    shape = (*topology.shape, length)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*shape, *leaf.shape), leaf.dtype), example)
    return Stream(block_batches(length, transform), data_for, shapes, length, data_for.close)


def first_batches(batch_of: BatchOf, example: Any, samples: int, processes: int) -> Any:
    """The first minibatches of worker 0, at least one: of about so many samples, or of BLOCK_BYTES if that is less.

    Args are those of `stream_of`.

    Returns:
      A pytree of arrays [batches, batch, ...].
    """
    count = max(1, min(samples // count_of(example), BLOCK_BYTES // max(1, _nbytes(example))))
    processes = min(processes, count // BATCHES_PER_PROCESS)
    with contextlib.closing(stream(OfRanks(batch_of, (0,)), range(count), processes)) as made:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *made)


def block_length(nbytes: int, topology: Topology) -> int:
    """Steps whose minibatches, of so many bytes for each worker, take BLOCK_BYTES or less; at least one."""
    return max(1, min(LONGEST_CALL, BLOCK_BYTES // max(1, topology.size * nbytes)))


def block_batches(length: int, transform: Augment | None = None) -> Batches:
    """Minibatches from blocks of `length` steps, which begin at multiples of it."""

    def plan(key: jax.Array, first_step: jax.Array, steps: int) -> jax.Array:
        del key  # all is drawn on the host
        return (first_step + jnp.arange(steps)) % length

    def draw(block: Any, place: jax.Array, key: jax.Array) -> Any:
        batch = jax.tree.map(lambda x: x[place], block)
        return batch if transform is None else transform(batch, key)

    return Batches(plan=plan, draw=draw, per_worker=True)


def check_drawing(batch_size: int, sampling: str) -> None:
    """Refuses an unknown sampling, or a batch without samples.

    Raises:
      InputError: naming it.
    """
    if sampling not in SAMPLINGS:
        raise InputError(f"unknown sampling {sampling!r}: choose one of {', '.join(SAMPLINGS)}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be an integer of at least 1, got {batch_size!r}")


def check_batch_size(batch_size: int, samples: int, sampling: str) -> None:
    """Refuses a batch that is larger than what it is drawn from.

    Raises:
      InputError: telling both.
    """
    if batch_size > samples:
        where = "the training set" if sampling == "iid" else "a worker's shard"
        raise InputError(
            f"batch_size={batch_size} does not fit into {where} of {samples} samples: "
            "use a smaller batch or fewer workers, or sampling='iid'"
        )


def check_arrays(what: str, tree: Any) -> Any:
    """The arrays of a pytree, as NumPy has them.

    Raises:
      InputError: if there are none, one has no samples or holds objects, or their numbers of samples differ.
    """
    arrays = jax.tree.map(np.asarray, tree)
    named = jax.tree_util.tree_flatten_with_path(arrays)[0]
    if not named:
        raise InputError(f"{what} holds no arrays")
    counts = {}
    for path, leaf in named:
        name = f"{what}{jax.tree_util.keystr(path)}"
        if leaf.dtype.kind not in "biufcV" or leaf.dtype.hasobject:
            raise InputError(f"{name} is an array of {leaf.dtype}: use numbers")
        if not leaf.ndim:
            raise InputError(
                f"{name} is a single number: samples are entries of arrays (lists are taken apart: use np.array)"
            )
        bits = np.iinfo(np.uint32 if leaf.dtype.kind == "u" else np.int32)
        if leaf.dtype.kind in "iu" and leaf.size and not bits.min <= int(leaf.min()) <= int(leaf.max()) <= bits.max:
            raise InputError(f"{name} has integers beyond 32 bits, which JAX would cut: use smaller ones")
        if not len(leaf):
            raise InputError(f"{name} has the shape {leaf.shape}: there is no sample in it")
        counts[name] = len(leaf)
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"the arrays differ in their number of samples: {shown}")
    return arrays


def _nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
