"""Samples that are dealt anew to the workers in each epoch, as PyTorch's DistributedSampler does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.cluster.processes import put
from lsgd_jax.data.permutation import permuted
from lsgd_jax.engine.local_steps import Batches
from lsgd_jax.engine.numerics import wrap_keys
from lsgd_jax.engine.topology import Topology


class Dealt(NamedTuple):
    """What the workers draw from.

    Attributes:
      samples: a pytree of arrays, the whole training set, the same on all devices.
      rank: int32[groups, workers], of each worker.
      workers: int32[], to so many the samples are dealt.
      key: uint32[2], the raw key of all deals.
    """

    samples: Any
    rank: Any
    workers: Any
    key: Any


def put_dealt(samples: Any, topology: Topology, seed: int) -> Dealt:
    """A training set, NumPy arrays, where the step reads it."""
    everywhere = topology.replicated
    return Dealt(
        samples=jax.tree.map(lambda array: put(array, everywhere), samples),
        rank=put(np.arange(topology.size, dtype=np.int32).reshape(topology.shape), topology.per_worker),
        workers=put(np.array(topology.size, np.int32), everywhere),
        key=put(np.random.SeedSequence((seed, 1)).generate_state(2), everywhere),
    )


def dealt_batches(
    count: Callable[[Any], int], batch_size: int, draw: Callable[[Any, jax.Array, jax.Array], Any]
) -> Batches:
    """Minibatches of samples that are dealt anew in each epoch.

    Args:
      count: `samples -> int`, how many there are.
      batch_size: a worker's.
      draw: `(samples, indices, key) -> batch`.
    """

    def plan(key: jax.Array, first_step: jax.Array, steps: int) -> jax.Array:
        del key  # a worker's own, and the deals are those of all
        return first_step + jnp.arange(steps)

    def draw_dealt(dealt: Dealt, step: jax.Array, key: jax.Array) -> Any:
        return draw(dealt.samples, deal(dealt, step, count(dealt.samples), batch_size), key)

    return Batches(plan, draw_dealt, per_worker=Dealt(samples=False, rank=True, workers=False, key=False))


def deal(dealt: Dealt, step: jax.Array, count: int, batch_size: int) -> jax.Array:
    """Which samples a worker draws at a step, a function of the seed, its rank and the step alone.

    In each epoch all workers go through one permutation of all samples, each through every n·l-th
    of its entries. What does not fill a batch of every worker is left out of that epoch.

    Args:
      dealt: of one worker.
      step: int32[], those that it has taken before.
      count: the number of samples.
      batch_size: a worker's.

    Returns:
      int32[batch_size].
    """
    steps_per_epoch = count // dealt.workers // batch_size
    first = step % steps_per_epoch * batch_size
    places = (first + jnp.arange(batch_size)) * dealt.workers + dealt.rank
    return permuted(jax.random.fold_in(wrap_keys(dealt.key), step // steps_per_epoch), places, count)
