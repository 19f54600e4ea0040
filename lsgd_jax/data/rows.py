"""Samples on the devices, a row of numbers each."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np


@functools.partial(jax.tree_util.register_dataclass, data_fields=["flat"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class Rows:
    """Samples of several dimensions, as they are kept: a TPU tiles the last two of an array, which for images in color
    pads each pixel, and then copies all samples into another layout before it draws any.

    Attributes:
      flat: [..., samples, numbers of a sample].
      shape: of a sample.
    """

    flat: Any
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.flat)

    def __getitem__(self, indices: Any) -> Any:
        """The samples of an array of indices, each of its shape."""
        return self.flat[indices].reshape(*indices.shape, *self.shape)


def as_rows(samples: Any) -> Any:
    """A pytree of NumPy arrays [samples, ...], as rows where a sample has several dimensions."""

    def of(array: np.ndarray) -> Any:
        if array.ndim < 3:
            return array
        return Rows(array.reshape(len(array), math.prod(array.shape[1:])), array.shape[1:])

    return jax.tree.map(of, samples)


def drawn(samples: Any, indices: jax.Array) -> Any:
    """Of each leaf, or its rows, the samples of these indices, int32[batch]."""
    return jax.tree.map(lambda leaf: leaf[indices], samples, is_leaf=lambda leaf: isinstance(leaf, Rows))
