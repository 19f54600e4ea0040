"""Which samples each worker sees at each step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.cluster.processes import put
from lsgd_jax.data.dealing import dealt_batches, put_dealt
from lsgd_jax.data.rows import as_rows, drawn
from lsgd_jax.engine.local_steps import Batches
from lsgd_jax.engine.topology import Topology

SAMPLINGS = ("shard", "reshuffle", "iid")
Augment = Callable[[Any, jax.Array], Any]
"""`(batch, key) -> batch`, on the devices."""


def shard_size(samples: int, workers: int) -> int:
    """Samples in each worker's disjoint shard; up to workers - 1 samples are left over."""
    return samples // workers


def count_of(samples: Any) -> int:
    """The samples in a pytree of arrays, an entry of their leading axes each."""
    return len(jax.tree.leaves(samples)[0])


def put_on_devices(samples: Any, topology: Topology, sampling: str, seed: int) -> Any:
    """A training set, a pytree of NumPy arrays, where the step reads it, as `Rows`.

    Sampling "shard" deals the samples out: leaves get the shape (groups, workers,
    shard, ...), each device holding its workers' shards. Sampling "iid" and
    "reshuffle" give every device the whole set, the latter as `Dealt`.
    """
    samples = as_rows(samples)
    if sampling == "reshuffle":
        return put_dealt(samples, topology, seed)
    if sampling == "iid":
        return jax.tree.map(lambda array: put(array, topology.replicated), samples)
    count = count_of(samples)
    size = shard_size(count, topology.size)
    dealt = np.random.default_rng(seed).permutation(count)[: size * topology.size]
    dealt = dealt.reshape(*topology.shape, size)

    def deal(array: np.ndarray) -> jax.Array:
        def of_device(index: Any) -> np.ndarray:
            return array[dealt[index[:2]]]

        return jax.make_array_from_callback((*dealt.shape, *array.shape[1:]), topology.per_worker, of_device)

    return jax.tree.map(deal, samples)


def make_batches(sampling: str, samples: int, batch_size: int, augment: Augment | None = None) -> Batches:
    """Minibatches of samples that are on the devices.

    Args:
      sampling: "shard", a worker's own shard in a new order each epoch (what does
        not fill a batch is left out of that epoch); "reshuffle", a shard that is dealt
        anew each epoch; or "iid", any samples at random.
      samples: in a worker's shard, or in the whole set for "iid".
      batch_size: a worker's.
      augment: what becomes of a batch of them; by default nothing.
    """

    def draw(samples: Any, indices: jax.Array, key: jax.Array) -> Any:
        batch = drawn(samples, indices)
        return batch if augment is None else augment(batch, key)

    if sampling == "reshuffle":
        return dealt_batches(count_of, batch_size, draw)

    def plan_iid(key: jax.Array, first_step: jax.Array, steps: int) -> jax.Array:
        keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(first_step + jnp.arange(steps))
        return jax.vmap(lambda key: jax.random.randint(key, (batch_size,), 0, samples))(keys)

    def plan_shard(key: jax.Array, first_step: jax.Array, steps: int) -> jax.Array:
        return epoch_order(key, first_step, steps, samples, batch_size)

    return Batches(plan=plan_iid if sampling == "iid" else plan_shard, draw=draw, per_worker=sampling == "shard")


def epoch_order(key: jax.Array, first_step: jax.Array, steps: int, samples: int, batch_size: int) -> jax.Array:
    """int32[steps, batch_size]: what to draw at steps first_step, first_step + 1, ...

    Each epoch goes once through a permutation of its own, a function of `key` and
    the epoch alone, so nothing has to be kept between calls.
    """
    steps_per_epoch = samples // batch_size
    first_epoch = first_step // steps_per_epoch
    epochs = (steps - 1) // steps_per_epoch + 2  # at most so many are touched
    keys = jax.vmap(lambda epoch: jax.random.fold_in(key, epoch))(first_epoch + jnp.arange(epochs))
    orders = jax.vmap(lambda key: jax.random.permutation(key, samples))(keys)
    batches = orders[:, : steps_per_epoch * batch_size].reshape(epochs * steps_per_epoch, batch_size)
    return batches[first_step - first_epoch * steps_per_epoch + jnp.arange(steps)]
