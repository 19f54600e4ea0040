"""Which training images each worker sees at each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.training.datasets import Images
from lsgd_jax.training.dealing import Dealt, dealt_batches, put_dealt
from lsgd_jax.training.images import Preprocessing, augment
from lsgd_jax.training.local_steps import Batches
from lsgd_jax.training.processes import put
from lsgd_jax.training.topology import Topology


class Batch(NamedTuple):
    """One minibatch: float32[batch, height, width, channels] and int32[batch]."""

    images: jax.Array
    labels: jax.Array


def shard_size(samples: int, workers: int) -> int:
    """Samples in each worker's disjoint shard; up to workers - 1 samples are left over."""
    return samples // workers


def put_on_devices(train: Images, topology: Topology, sampling: str, seed: int) -> Images | Dealt:
    """The training set where the step reads it.

    Sampling "shard" deals the samples out: leaves get the shape (groups, workers,
    shard, ...), each device holding its workers' shards. Sampling "iid" and
    "reshuffle" give every device the whole set.
    """
    if sampling == "reshuffle":
        return put_dealt(train, topology, seed)
    if sampling == "iid":
        return jax.tree.map(lambda array: put(array, topology.replicated), train)
    size = shard_size(len(train.labels), topology.size)
    dealt = np.random.default_rng(seed).permutation(len(train.labels))[: size * topology.size]
    dealt = dealt.reshape(*topology.shape, size)

    def deal(array: np.ndarray) -> jax.Array:
        def of_device(index: Any) -> np.ndarray:
            return array[dealt[index[:2]]]

        return jax.make_array_from_callback((*dealt.shape, *array.shape[1:]), topology.per_worker, of_device)

    return jax.tree.map(deal, train)


def make_batches(sampling: str, samples: int, batch_size: int, preprocessing: Preprocessing) -> Batches:
    """Minibatches of augmented images.

    Args:
      sampling: "shard", a worker's own shard in a new order each epoch (what does
        not fill a batch is left out of that epoch); "reshuffle", a shard that is dealt
        anew each epoch; or "iid", any samples at random.
      samples: in a worker's shard, or in the whole set for "iid".
      batch_size: a worker's.
      preprocessing: the data set's.
    """

    def draw(data: Images, indices: jax.Array, key: jax.Array) -> Batch:
        return Batch(augment(data.images[indices], key, preprocessing), data.labels[indices])

    if sampling == "reshuffle":
        return dealt_batches(lambda images: len(images.labels), batch_size, draw)

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
