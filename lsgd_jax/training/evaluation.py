"""What the evaluated models get right: the center, the leader, and each worker."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER, broadcast_from_leader, elect_leader, is_inexact, mean
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.window import window_mean
from lsgd_jax.training.processes import put
from lsgd_jax.training.state import TrainState, state_specs
from lsgd_jax.training.topology import Topology

BATCH_SIZE = 256

Candidate = tuple[Any, Any]
"""(params, model_state) of a model to evaluate."""
SampleMetric = Callable[[Any, Any, Any], jax.Array]
"""`(params, model_state, batch) -> float[batch]`, a figure of each sample."""
SampleFigures = Callable[[Any, Any, Any], dict[str, jax.Array]]
"""`(params, model_state, batch) -> {name: float[batch]}`, several from one pass."""
Evaluate = Callable[[Candidate, str], dict[str, float]]
"""`(candidate, prefix) -> figures`, with names like `validation_loss`, after the prefix."""


class Candidates(NamedTuple):
    """The models that an evaluation looks at, the same on every device.

    Attributes:
      center: (params, model_state) of the center.
      leader: (params, model_state) of the worker with the lowest score.
      leader_rank: int32[], its rank j·l + i; -1 if no worker can lead, and then
        `leader` is worker 0.
    """

    center: tuple[Any, Any]
    leader: tuple[Any, Any]
    leader_rank: jax.Array


def make_candidates(optimizer: DistributedOptimizer, topology: Topology) -> Callable[[TrainState], Candidates]:
    """Makes the jitted function that gathers the center and the leader from all workers."""

    def of_worker(params: Any, model_state: Any, opt_state: Any, losses: Any) -> Candidates:
        everybody = topology.axes.all
        finite = all_finite(params)
        leader = elect_leader(jnp.where(finite, window_mean(losses), jnp.inf), everybody)
        # Where nobody can lead, worker 0 is shown, for all devices to hold the same.
        first = jax.lax.axis_index(everybody) == 0
        shown = leader._replace(is_leader=leader.is_leader | (~leader.valid & first), valid=jnp.array(True))
        center = optimizer.center(params, opt_state, topology.axes)
        leader_params, leader_state = broadcast_from_leader((params, model_state), shown, everybody)
        center_state = mean(model_state, everybody, where=finite)
        # What has no mean is the leader's.
        center_state = jax.tree.map(lambda m, x: m if is_inexact(m) else x, center_state, leader_state)
        return Candidates(
            center=(center, center_state),
            leader=(leader_params, leader_state),
            leader_rank=leader.rank,
        )

    def of_device(state: TrainState) -> Candidates:
        lanes = topology.over_lanes(of_worker)(state.params, state.model_state, state.opt_state, state.losses)
        return jax.tree.map(lambda x: x[0, 0], lanes)  # all lanes hold the same

    return jax.jit(topology.over_devices(of_device, in_specs=(state_specs(),), out_specs=PartitionSpec()))


class EvaluationSet(NamedTuple):
    """A split on the devices, in batches [batches, batch, ...]; padding has weight 0."""

    samples: Any
    weights: jax.Array


def put_evaluation_set(split: Any, topology: Topology, batch_size: int | None = None) -> EvaluationSet:
    """Puts a split, or a part of one, where evaluation reads it, each batch spread over all devices.

    Args:
      split: a pytree of arrays, of at least one sample.
      topology: the devices.
      batch_size: samples in a batch, before it is filled up to a multiple of the devices; by
        default BATCH_SIZE, or all if they are fewer.
    """
    devices, count = topology.mesh.size, len(jax.tree.leaves(split)[0])
    size = -(-(batch_size or min(BATCH_SIZE, count)) // devices) * devices
    batches = -(-count // size)
    spread = NamedSharding(topology.mesh, PartitionSpec(None, (GROUP, WORKER)))

    def batched(array: np.ndarray) -> jax.Array:
        padding = [(0, batches * size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return put(np.pad(array, padding).reshape(batches, size, *array.shape[1:]), spread)

    return EvaluationSet(jax.tree.map(batched, split), batched(np.ones(count, np.float32)))


def make_evaluate(figures: SampleFigures) -> Callable[[Candidate, EvaluationSet], dict[str, jax.Array]]:
    """Makes `evaluate((params, model_state), evaluation_set) -> figures`, jitted: the mean of each over all samples."""

    @jax.jit
    def evaluate(candidate: Candidate, split: EvaluationSet) -> dict[str, jax.Array]:
        def of_batch(batch: EvaluationSet) -> dict[str, jax.Array]:
            of_samples = figures(*candidate, batch.samples)
            return {name: jnp.where(batch.weights > 0, values, 0).sum() for name, values in of_samples.items()}

        sums = lax.map(of_batch, split)
        count = split.weights.sum()
        return {name: of_batches.sum() / count for name, of_batches in sums.items()}

    return evaluate


def evaluate_splits(figures: SampleFigures, splits: Mapping[str, Any], topology: Topology) -> Evaluate:
    """Makes `(candidate, prefix) -> figures`, the mean of each over each split.

    Args:
      figures: of the samples of a batch.
      splits: by name, pytrees of arrays.
      topology: the devices.
    """
    evaluate = make_evaluate(figures)
    on_devices = {name: put_evaluation_set(split, topology) for name, split in splits.items()}

    def all_splits(candidate: Candidate, prefix: str) -> dict[str, float]:
        means = {name: evaluate(candidate, split) for name, split in on_devices.items()}
        return {f"{prefix}{name}_{key}": float(x) for name, split in means.items() for key, x in split.items()}

    return all_splits


def every_worker(state: TrainState, topology: Topology) -> Iterator[tuple[Any, Any]]:
    """(params, model_state) of each worker, on every device, in the order of ranks."""

    @functools.partial(jax.jit, out_shardings=topology.replicated)
    def take(tree: Any, group: int, worker: int) -> Any:
        return jax.tree.map(lambda x: x[group, worker], tree)

    for group in range(topology.groups):
        for worker in range(topology.workers):
            yield take((state.params, state.model_state), group, worker)
