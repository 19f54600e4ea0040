"""Samples of several dimensions as rows: what is drawn of them has their shapes again."""

from typing import Any

import jax
import numpy as np
import pytest

from lsgd_jax import Topology, from_arrays
from lsgd_jax.data.rows import Rows, as_rows, drawn


def samples() -> Any:
    rng = np.random.default_rng(0)
    return {
        "volumes": rng.normal(size=(12, 2, 3, 2)).astype(np.float32),
        "grids": rng.integers(0, 9, (12, 4, 1)),
        "vectors": rng.normal(size=(12, 5)).astype(np.float32),
        "labels": (np.arange(12),),
    }


def test_samples_of_more_than_one_dimension_are_kept_as_rows_and_others_as_they_are() -> None:
    whole, rows = samples(), as_rows(samples())
    assert (rows["volumes"].flat.shape, rows["volumes"].shape, len(rows["volumes"])) == ((12, 12), (2, 3, 2), 12)
    assert isinstance(rows["grids"], Rows)
    np.testing.assert_array_equal(rows["vectors"], whole["vectors"])
    np.testing.assert_array_equal(rows["labels"][0], whole["labels"][0])
    indices = np.array([[3, 0, 3], [11, 5, 2]])
    got, expected = drawn(rows, indices), jax.tree.map(lambda leaf: leaf[indices], whole)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("sampling", ["shard", "reshuffle", "iid"])
@pytest.mark.parametrize("devices", [1, 4])
def test_minibatches_are_whole_samples_each_leaf_of_its_shape(sampling: str, devices: int) -> None:
    whole, topology = samples(), Topology(1, 2, jax.devices()[:devices])
    stream = from_arrays(whole, 3, sampling=sampling).open(topology, 0, 4)
    batches = stream.batches
    data = jax.tree.map(np.asarray, stream.data_for(0, 2))
    own = jax.tree.map(lambda own, part: jax.tree.map(lambda x: x[0, 1] if own else x, part), batches.per_worker, data)
    planned = batches.plan(jax.random.key(1), np.int32(0), 2)
    for step in range(2):
        batch = batches.draw(own, jax.tree.map(lambda x, step=step: x[step], planned), jax.random.key(2))
        assert batch["volumes"].shape == (3, 2, 3, 2)
        chosen = np.asarray(batch["labels"][0])
        jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda leaf, c=chosen: leaf[c], whole))
