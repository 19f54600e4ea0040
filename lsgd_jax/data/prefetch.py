"""Blocks of streamed minibatches on the devices, the next one made while one is used."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from lsgd_jax.cluster.processes import put
from lsgd_jax.data.background import Background
from lsgd_jax.data.loader import stream
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError

BatchOf = Callable[[int, int], Any]
"""`(worker, step) -> batch`, a pytree of NumPy arrays."""


class Prefetcher:
    """The block of minibatches that a call of the train step is in.

    A block holds those of `length` steps, leaves [groups, workers, length, batch, ...]; that of step t is at t
    modulo `length`, and blocks begin at multiples of it. Each process makes those of the workers on its own
    devices. While one block is used the next is made and put on the devices, so that up to three of them take
    memory at a time.

    Args:
      batch_of: makes the minibatch of a worker at a step.
      example: a pytree of arrays of its shapes and dtypes.
      topology: where the workers live.
      length: steps in a block.
      steps: where the run ends.
      processes: that make minibatches; 0 for this one alone.
    """

    def __init__(
        self, batch_of: BatchOf, example: Any, topology: Topology, *, length: int, steps: int, processes: int
    ) -> None:
        self._batch_of, self._example, self._topology = batch_of, example, topology
        self._length, self._steps, self._processes = length, steps, processes
        self._blocks: Background[Any] | None = None
        self._number = -1
        self._block: Any = None

    def __call__(self, step: int, steps: int) -> Any:
        """The block of `step`; calls come in order, and none crosses the end of a block.

        Raises:
          InputError: if a minibatch cannot be made, or is not like the example.
        """
        del steps
        number = step // self._length
        if self._blocks is None:
            self._blocks = Background(lambda unwanted: self._make(step, unwanted))
            self._number = number - 1
        if number != self._number:
            self._number, self._block = number, None  # the memory of the last one, once it is used
            self._block = next(self._blocks)
        return self._block

    def close(self) -> None:
        """Ends the thread and the processes."""
        if self._blocks is not None:
            self._blocks.close()

    def _make(self, begin: int, unwanted: threading.Event) -> Generator[Any, None, None]:
        ranks = local_ranks(self._topology)
        numbers = range(begin * len(ranks), self._steps * len(ranks))
        load = OfRanks(self._batch_of, ranks)
        with contextlib.closing(stream(load, numbers, self._processes)) as minibatches:
            while begin < self._steps:
                end = min((begin // self._length + 1) * self._length, self._steps)
                block = jax.tree.map(self._empty, self._example)
                for step in range(begin, end):
                    for rank in ranks:
                        if unwanted.is_set():
                            return
                        self._fill(block, next(minibatches), rank, step)
                yield jax.tree.map(self._put, block)
                begin = end

    def _empty(self, leaf: np.ndarray) -> np.ndarray:
        return np.zeros((self._topology.size, self._length, *leaf.shape), leaf.dtype)

    def _fill(self, block: Any, minibatch: Any, rank: int, step: int) -> None:
        """Writes a minibatch into a block.

        Raises:
          InputError: if it is not like the example.
        """
        expected, found = _shapes(self._example), _shapes(minibatch)
        if found != expected:
            raise InputError(
                f"the minibatch of worker {rank} at step {step} is {found}, and that of worker 0 at step 0 {expected}: "
                "give all the same shapes and dtypes"
            )
        for of_block, leaf in zip(jax.tree.leaves(block), jax.tree.leaves(minibatch), strict=True):
            of_block[rank, step % self._length] = leaf

    def _put(self, array: np.ndarray) -> jax.Array:
        return put(array.reshape(*self._topology.shape, *array.shape[1:]), self._topology.per_worker)


@dataclasses.dataclass(frozen=True)
class OfRanks:
    """The minibatches of some workers, one after the other; it can be pickled if `batch_of` can."""

    batch_of: BatchOf
    ranks: tuple[int, ...]

    def __call__(self, number: int) -> Any:
        """The minibatch of worker `ranks[number % len(ranks)]` at step `number // len(ranks)`."""
        step, place = divmod(number, len(self.ranks))
        return self.batch_of(self.ranks[place], step)


def local_ranks(topology: Topology) -> tuple[int, ...]:
    """The workers that live on devices of this process."""
    ranks = np.arange(topology.size).reshape(topology.shape)
    on_devices = topology.per_worker.addressable_devices_indices_map(topology.shape).values()
    return tuple(sorted({int(rank) for index in on_devices for rank in ranks[index].flat}))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: f"{np.asarray(x).dtype}{list(np.shape(x))}", tree)
