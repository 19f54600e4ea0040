"""Blocks of streamed minibatches on the devices, the next one made while one is used."""

import contextlib
import threading
from collections.abc import Generator
from typing import NamedTuple

import jax
import numpy as np

from lsgd_jax.training.background import Background
from lsgd_jax.training.loader import Minibatches, stream
from lsgd_jax.training.processes import put
from lsgd_jax.training.topology import Topology


class Block(NamedTuple):
    """Minibatches of `length` steps; that of step t is at t modulo `length`, and blocks begin at multiples of it.

    Attributes:
      images: uint8[groups, workers, length, batch, side, side, 3].
      labels: int32[groups, workers, length, batch].
    """

    images: jax.Array
    labels: jax.Array


class Feed:
    """The block of minibatches that a call of the train step is in.

    Each process decodes for the workers on its own devices. While one block is used the next is
    decoded and put on the devices, so that up to three of them take memory at a time.

    Args:
      minibatches: of the workers `local_ranks(topology)`.
      topology: where the workers live.
      length: steps in a block.
      steps: where the run ends.
      processes: that decode; 0 for this one alone.
    """

    def __init__(
        self, minibatches: Minibatches, topology: Topology, *, length: int, steps: int, processes: int
    ) -> None:
        self._minibatches, self._topology = minibatches, topology
        self._length, self._steps, self._processes = length, steps, processes
        self._blocks: Background[Block] | None = None
        self._number = -1
        self._block: Block | None = None

    def __call__(self, step: int, steps: int) -> Block:
        """The block of `step`; calls come in order, and none crosses the end of a block.

        Raises:
          InputError: if an image cannot be read or decoded.
        """
        del steps
        number = step // self._length
        if self._blocks is None:
            self._blocks = Background(lambda unwanted: self._make(step, unwanted))
            self._number = number - 1
        if number != self._number:
            self._number, self._block = number, None  # the memory of the last one, once it is used
            self._block = next(self._blocks)
        assert self._block is not None
        return self._block

    def close(self) -> None:
        """Ends the thread and the processes."""
        if self._blocks is not None:
            self._blocks.close()

    def _make(self, begin: int, unwanted: threading.Event) -> Generator[Block, None, None]:
        ranks, batch_size = self._minibatches.ranks, self._minibatches.batch_size
        shape = (self._topology.size, self._length, batch_size)
        numbers = range(begin * len(ranks), self._steps * len(ranks))
        with contextlib.closing(stream(self._minibatches, numbers, self._processes)) as minibatches:
            while begin < self._steps:
                end = min((begin // self._length + 1) * self._length, self._steps)
                images = np.zeros((*shape, *self._minibatches.source.input_shape), np.uint8)
                labels = np.zeros(shape, np.int32)
                for step in range(begin, end):
                    for rank in ranks:
                        if unwanted.is_set():
                            return
                        images[rank, step % self._length], labels[rank, step % self._length] = next(minibatches)
                yield Block(self._put(images), self._put(labels))
                begin = end

    def _put(self, array: np.ndarray) -> jax.Array:
        return put(array.reshape(*self._topology.shape, *array.shape[1:]), self._topology.per_worker)


def local_ranks(topology: Topology) -> tuple[int, ...]:
    """The workers that live on devices of this process."""
    ranks = np.arange(topology.size).reshape(topology.shape)
    on_devices = topology.per_worker.addressable_devices_indices_map(topology.shape).values()
    return tuple(sorted({int(rank) for index in on_devices for rank in ranks[index].flat}))
