"""Minibatches of a Grain dataset, read on the host ahead of the devices.

A `MapDataset` gives any entry of any epoch on its own, through whatever shuffles it. So what a worker
sees at a step is an entry too: nothing has to be kept, and a run resumes at the exact batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lsgd_jax.data.fingerprint import digest_of
from lsgd_jax.data.sampling import Augment, shard_size
from lsgd_jax.data.sources import (
    Stream,
    TrainingData,
    check_arrays,
    check_batch_size,
    check_drawing,
    first_batches,
    stream_of,
)
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError, first_line

# Of a dataset that repeats for ever.
ENDLESS = 2**60
# Epochs beyond are those from the first on again; Grain's generators count entries in 64 bits.
EPOCHS = 2**32
# Samples that tell whether a dataset is the same: to read all could take hours.
SOME = 8


def from_grain(
    dataset: Any,
    batch_size: int,
    *,
    sampling: str = "shard",
    transform: Augment | None = None,
    processes: int = 0,
) -> TrainingData:
    """Minibatches of a Grain `MapDataset` whose elements are samples, streamed from the host.

    Args:
      dataset: of finite length, with elements that are pytrees of arrays or numbers of the same shapes. It needs
        no shuffling, sharding nor batching of its own; its `random_map` draws anew in each epoch.
      batch_size: samples in a worker's minibatch.
      sampling: "shard", each worker its own every n·l-th sample, in a new order each epoch (what does
        not fill a batch is left out of that epoch); "reshuffle", a shard that is dealt anew each epoch; or
        "iid", any samples at random.
      transform: `(batch, key) -> batch`, on the devices; by default nothing.
      processes: that read it, then and for evaluation; 0 for a thread of this one. As with all processes of
        Python's, a script that starts them needs its `if __name__ == "__main__":`.

    Raises:
      InputError: if it is no such dataset, or the sampling is unknown.
    """
    check_dataset("dataset", dataset)
    check_drawing(batch_size, sampling)
    count = len(dataset)
    if digest_of_some(dataset) != (digest := digest_of_some(dataset)):
        raise InputError("dataset gives other samples the second time: draw by .random_map, with its generator")

    def open_dataset(topology: Topology, seed: int, steps: int) -> Stream:
        check_batch_size(batch_size, count if sampling == "iid" else shard_size(count, topology.size), sampling)
        batch_of = OfWorkers(
            tuple(of_worker(dataset, sampling, batch_size, topology.size, seed, rank) for rank in range(topology.size))
        )
        return stream_of(batch_of, empty_batch(dataset, batch_size), topology, steps, transform, processes)

    def some(samples: int) -> Any:
        of_one = OfWorkers((of_worker(dataset, "iid", batch_size, workers=1, seed=0, rank=0),))
        return first_batches(of_one, empty_batch(dataset, batch_size), samples, processes)

    return TrainingData(
        batch_size,
        open_dataset,
        digest=lambda: digest,
        some=some,
        augment=transform,
        in_step=True,
        processes=processes,
    )


@dataclasses.dataclass(frozen=True)
class OfWorkers:
    """`(rank, step) -> minibatch`, from a dataset of minibatches for each worker."""

    datasets: tuple[Any, ...]

    def __call__(self, rank: int, step: int) -> Any:
        """A minibatch."""
        return self.datasets[rank][step]


def of_worker(dataset: Any, sampling: str, batch_size: int, workers: int, seed: int, rank: int) -> Any:
    """The minibatches of a worker, in a Grain dataset: that of step t is its entry t, in whatever epoch."""
    count = len(dataset)
    size = shard_size(count, workers)
    if sampling == "iid":
        import grain

        def anywhere(draw: int, rng: np.random.Generator) -> Any:
            epoch = (draw * workers + rank) % EPOCHS  # each draw one of its own, for what is random in the dataset
            return dataset[epoch * count + int(rng.integers(count))]

        own = grain.MapDataset.range(ENDLESS).random_map(anywhere, seed=word(seed, 1 + rank))
    elif sampling == "reshuffle":
        own = dataset.shuffle(seed=word(seed, 0))[rank : size * workers : workers]
    else:
        own = dataset[rank : size * workers : workers].shuffle(seed=word(seed, 1 + rank))
    return batched(own, batch_size, drop_remainder=True)


def batched(dataset: Any, batch_size: int, *, drop_remainder: bool = False) -> Any:
    """A Grain dataset of batches: pytrees of arrays [batch_size, ...]."""
    return dataset.batch(batch_size, drop_remainder=drop_remainder, batch_fn=list).map(stacked)


def stacked(samples: Sequence[Any]) -> Any:
    """A batch of samples.

    Raises:
      InputError: if they differ in structure or shapes.
    """
    try:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *samples)
    except ValueError as error:
        raise InputError(
            f"samples of a Grain dataset differ in their structure or shapes ({first_line(error)}): make them alike"
        ) from error


def empty_batch(dataset: Any, batch_size: int) -> Any:
    """Zeros of the shapes and dtypes of a batch: leaves [batch_size, ...].

    Raises:
      InputError: if the first sample is no pytree of numbers.
    """
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[None], dataset[0])
    sample = check_arrays("the first sample of the Grain dataset, with a leading axis: ", first)
    return jax.tree.map(lambda leaf: np.zeros((batch_size, *leaf.shape[1:]), leaf.dtype), sample)


def digest_of_some(dataset: Any) -> str:
    """Of how many samples a dataset has, and of some of them, at even distances."""
    some = [dataset[int(place)] for place in np.linspace(0, len(dataset) - 1, min(SOME, len(dataset)))]
    return digest_of(lambda: (len(dataset), some))


def is_dataset(data: Any) -> bool:
    """Whether it is a dataset of Grain's, of whatever kind."""
    return hasattr(data, "to_iter_dataset") or type(data).__module__.split(".")[0] == "grain"


def check_dataset(name: str, dataset: Any) -> None:
    """Refuses what has no random access, no end, or no sample.

    Args:
      name: what the dataset is called.
      dataset: perhaps a `grain.MapDataset`.

    Raises:
      InputError: telling why.
    """
    import grain

    if not isinstance(dataset, grain.MapDataset):
        raise InputError(f"{name} is {type(dataset).__name__}, which has no random access: use a grain.MapDataset")
    if not len(dataset):
        raise InputError(f"{name} has no sample in it")
    if len(dataset) >= ENDLESS:
        raise InputError(f"{name} has no end: leave .repeat() out, epochs are made here")
    try:
        dataset.batch(1)
    except ValueError as error:  # after .filter(), which leaves gaps
        raise InputError(f"{name} has gaps: choose samples before they come to Grain, not by .filter()") from error
    empty_batch(dataset, 1)


def word(*seed: int) -> int:
    """32 bits that follow from some numbers: a seed of Grain's."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
