"""What the evaluated models get right: the center, the leader, and each worker."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lsgd_jax.cluster.processes import put
from lsgd_jax.data.background import Background
from lsgd_jax.data.grain_source import batched, empty_batch, is_dataset
from lsgd_jax.data.loader import BATCHES_PER_PROCESS, stream
from lsgd_jax.data.sampling import count_of
from lsgd_jax.engine.topology import Topology

BATCH_SIZE = 256

Candidate = tuple[Any, Any]
"""(params, model_state) of a model to evaluate."""
SampleMetric = Callable[[Any, Any, Any], jax.Array]
"""`(params, model_state, batch) -> float[batch]`, a figure of each sample."""
SampleFigures = Callable[[Any, Any, Any], dict[str, jax.Array]]
"""`(params, model_state, batch) -> {name: float[batch]}`, several from one pass."""
Evaluate = Callable[[Candidate, str], dict[str, float]]
"""`(candidate, prefix) -> figures`, with names like `validation_loss`, after the prefix."""


class OfSplit(NamedTuple):
    """How models are judged on one split.

    Attributes:
      figures: `candidate -> {name: figure}`.
      lower: `candidate -> program` of these, of arrays or shapes, to be compiled before there is a candidate.
    """

    figures: Callable[[Candidate], Mapping[str, Any]]
    lower: Callable[[Candidate], jax.stages.Lowered]


@dataclasses.dataclass(frozen=True)
class SplitEvaluation:
    """An `Evaluate` of several splits, by name, whose programs can be compiled ahead."""

    splits: Mapping[str, OfSplit]

    def __call__(self, candidate: Candidate, prefix: str) -> dict[str, float]:
        found = {name: split.figures(candidate) for name, split in self.splits.items()}
        return {f"{prefix}{name}_{key}": float(x) for name, figures in found.items() for key, x in figures.items()}

    def lower(self, candidate: Candidate) -> list[jax.stages.Lowered]:
        """The programs that it runs for candidates of these shapes, dtypes and shardings."""
        return [split.lower(candidate) for split in self.splits.values()]


class EvaluationSet(NamedTuple):
    """A split on the devices, in batches [batches, batch, ...]; padding has weight 0."""

    samples: Any
    weights: jax.Array


def put_evaluation_set(split: Any, topology: Topology, batch_size: int | None = None) -> EvaluationSet:
    """Puts a split, or a part of one, where evaluation reads it, each batch spread over all devices.

    Args:
      split: a pytree of arrays, of at least one sample.
      topology: the devices.
      batch_size: samples in a batch, before it is filled up for all devices to have as many; by
        default BATCH_SIZE, or all if they are fewer.
    """
    shares, count = topology.sample_shares, count_of(split)
    size = -(-(batch_size or min(BATCH_SIZE, count)) // shares) * shares
    batches = -(-count // size)
    spread = NamedSharding(topology.mesh, PartitionSpec(None, topology.over_samples))

    def batched(array: np.ndarray) -> jax.Array:
        padding = [(0, batches * size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return put(np.pad(array, padding).reshape(batches, size, *array.shape[1:]), spread)

    return EvaluationSet(jax.tree.map(batched, split), batched(np.ones(count, np.float32)))


def make_evaluate(figures: SampleFigures, topology: Topology) -> jax.stages.Wrapped:
    """Makes `evaluate((params, model_state), evaluation_set) -> figures`, jitted: the mean of each over all samples."""

    @jax.jit
    @topology.traced
    def evaluate(candidate: Candidate, split: EvaluationSet) -> dict[str, jax.Array]:
        def of_batch(batch: EvaluationSet) -> dict[str, jax.Array]:
            of_samples = figures(*candidate, batch.samples)
            return {name: jnp.where(batch.weights > 0, values, 0).sum() for name, values in of_samples.items()}

        sums = lax.map(of_batch, split)
        count = split.weights.sum()
        return {name: of_batches.sum() / count for name, of_batches in sums.items()}

    return evaluate


def evaluate_splits(
    figures: SampleFigures, splits: Mapping[str, Any], topology: Topology, processes: int = 0
) -> SplitEvaluation:
    """Makes `(candidate, prefix) -> figures`, the mean of each over each split.

    Args:
      figures: of the samples of a batch.
      splits: by name, pytrees of arrays, or Grain datasets of samples, which are read each time.
      topology: the devices.
      processes: that read these; 0 for a thread of this one.
    """
    evaluate = make_evaluate(figures, topology)

    def of_arrays(split: Any) -> OfSplit:
        on_devices = put_evaluation_set(split, topology)
        return OfSplit(
            figures=lambda candidate: evaluate(candidate, on_devices),
            lower=lambda candidate: evaluate.lower(candidate, on_devices),
        )

    def of_dataset(split: Any) -> OfSplit:
        size = min(BATCH_SIZE, len(split))
        batches = batched(split, size)
        readers = min(processes, len(batches) // BATCHES_PER_PROCESS)

        def of(candidate: Candidate) -> dict[str, Any]:
            found: list[dict[str, jax.Array]] = []
            read = Background(lambda _: stream(batches.__getitem__, range(len(batches)), readers))
            with contextlib.closing(read):
                for batch in read:
                    found.append(evaluate(candidate, put_evaluation_set(batch, topology, size)))
                    jax.block_until_ready(found[-2:][0])  # few batches are on the devices at a time
            counts = np.diff([*range(0, len(split), size), len(split)])
            return {name: np.average([float(x[name]) for x in found], weights=counts) for name in found[0]}

        def lower(candidate: Candidate) -> jax.stages.Lowered:
            return evaluate.lower(candidate, put_evaluation_set(empty_batch(split, size), topology, size))

        return OfSplit(of, lower)

    return SplitEvaluation({name: (of_dataset if is_dataset(x) else of_arrays)(x) for name, x in splits.items()})
