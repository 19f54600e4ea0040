"""Minibatches and evaluation batches of encoded images, decoded by processes of Grain's."""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from multiprocessing import connection
from typing import Any, TypeVar

import numpy as np
from absl import flags

from lsgd_jax.cluster.stopping import SIGNALS
from lsgd_jax.data.crops import centre_crop, random_crop
from lsgd_jax.data.datasets import Images
from lsgd_jax.data.encoded import EncodedRecords
from lsgd_jax.data.sampling import drawn, shuffle
from lsgd_jax.data.streamed import StreamedSource
from lsgd_jax.errors import NotYetError, first_line

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Minibatches:
    """What each worker trains on at each step: a function of the seed, the worker and the step alone.

    Attributes:
      source: the data set.
      sampling: "shard", each worker its own every n·l-th image after one shuffle of all, in a new
        order each epoch (what does not fill a batch is left out of that epoch); "reshuffle", dealt
        anew each epoch; or "iid", any images at random.
      batch_size: a worker's.
      workers: n·l, of all groups.
      seed: of everything that is random.
    """

    source: StreamedSource
    sampling: str
    batch_size: int
    workers: int
    seed: int

    def __call__(self, rank: int, step: int) -> Images:
        """The minibatch of a worker at a step."""
        rng = np.random.default_rng((self.seed, rank, step))
        indices = self.indices(rank, step)
        return _decoded(self.source, self.source.train, indices, lambda image, side: random_crop(image, side, rng))

    def indices(self, rank: int, step: int) -> list[int]:
        """Which images of the training split a worker sees at a step."""
        samples = self.source.train_samples
        places = drawn(self.sampling, samples, self.batch_size, self.workers, self.seed, rank, step)
        everything = shuffle(len(self.source.train), self.seed)
        return [everything(self.source.held_out + place) for place in places]


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """The batches of the validation split, and after them those of the test split, in order.

    Attributes:
      source: the data set.
      batch_size: images in each, but for the last of a split.
      seed: which tells what is held out for validation.
    """

    source: StreamedSource
    batch_size: int
    seed: int

    def splits(self) -> list[str]:
        """The name of the split of each batch."""
        counts = {"validation": self.source.held_out, "test": len(self.source.test)}
        return [name for name, count in counts.items() for _ in range(-(-count // self.batch_size))]

    def __call__(self, number: int) -> Images:
        """A batch."""
        splits = self.splits()
        first = (number - splits.index(splits[number])) * self.batch_size
        if splits[number] == "validation":
            everything = shuffle(len(self.source.train), self.seed)
            records = self.source.train
            indices = [everything(i) for i in range(first, min(first + self.batch_size, self.source.held_out))]
        else:
            records = self.source.test
            indices = list(range(first, min(first + self.batch_size, len(records))))
        return _decoded(self.source, records, indices, centre_crop)


def _decoded(
    source: StreamedSource, records: EncodedRecords, indices: list[int], crop: Callable[[bytes, int], np.ndarray]
) -> Images:
    """Images of a split, cut to what a model of the set sees."""
    return Images(*records.decode(indices, source.input_shape, source.classes, lambda image: crop(image, source.side)))


def stream(load: Callable[[int], T], numbers: range, processes: int) -> Generator[T, None, None]:
    """`load(number)` of each number, in order.

    Args:
      load: can be pickled.
      numbers: one after the other.
      processes: how many of them are made at a time, each by a process; 0 makes them in this one.

    Raises:
      InputError: from `load`; NotYetError: if a process is gone.
    """
    import grain

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, in a program without flags too
        flags.FLAGS.mark_as_parsed()
    numbered = grain.MapDataset.range(numbers.start, numbers.stop).map(load)
    decoded = numbered.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=min(processes, len(numbers)), per_worker_buffer_size=1)
    try:
        with contextlib.closing(iter(decoded.mp_prefetch(options, worker_init_fn=_end_with_parent))) as made:
            yield from made
    except RuntimeError as error:
        if "terminated" not in str(error):
            raise
        raise NotYetError(
            f"a process that decodes images is gone ({first_line(error)}): where memory or shared memory "
            "(/dev/shm) is short, use fewer --loader_processes or a smaller --batch_size"
        ) from error
    finally:
        if processes:
            gc.collect()  # Grain leaves its last arrays, in shared memory, to reference cycles


def _end_with_parent(*_: Any) -> None:
    """Makes a process end when the one that has started it wants it to, or is gone, and not before.

    A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes of a program.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
