"""Which training images each worker sees at each step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_sets import WHOLE, numbered

from lsgd_jax import Topology
from lsgd_jax.data.images import Images, augmented
from lsgd_jax.data.sampling import epoch_order, make_batches, put_on_devices, shard_size

KEY = jax.random.key(7)


def dealt(samples: int, groups: int, workers: int, *, seed: int = 0, devices: int = 8) -> np.ndarray:
    """int[groups, workers, shard]: which samples each worker was given."""
    topology = Topology(groups, workers, jax.devices()[:devices])
    data = put_on_devices(numbered(samples), topology, "shard", seed)
    images = data.images.flat
    np.testing.assert_array_equal(images, np.broadcast_to(data.labels[..., None], images.shape))
    return np.asarray(data.labels)


@settings(deadline=None, max_examples=15)
@given(samples=st.integers(1, 200), groups=st.integers(1, 3), workers=st.integers(1, 4), seed=st.integers(0, 99))
def test_shards_are_disjoint_and_of_equal_size_and_leave_out_less_than_one_sample_a_worker(
    samples: int, groups: int, workers: int, seed: int
) -> None:
    shards = dealt(samples, groups, workers, seed=seed)
    assert shards.shape == (groups, workers, shard_size(samples, groups * workers))
    assert len(np.unique(shards)) == shards.size
    assert samples - groups * workers < shards.size <= samples
    assert set(shards.ravel().tolist()) <= set(range(samples))


def test_shards_are_a_function_of_the_seed_and_not_of_the_devices() -> None:
    shards = dealt(100, 2, 4, seed=3)
    assert not np.array_equal(shards, dealt(100, 2, 4, seed=4))
    assert not np.array_equal(np.sort(shards), np.sort(dealt(100, 2, 4, seed=4)))
    for devices in (1, 2, 4, 8):
        np.testing.assert_array_equal(shards, dealt(100, 2, 4, seed=3, devices=devices))


def test_shards_are_not_slices_of_a_sorted_set() -> None:
    shards = dealt(200, 2, 4)
    assert all(np.ptp(shard) > 100 for shard in shards.reshape(8, -1))


def test_each_device_holds_the_shards_of_its_workers_only() -> None:
    topology = Topology(2, 4, jax.devices()[:4])
    data = put_on_devices(numbered(80), topology, "shard", 0)
    assert (data.images.flat.shape, data.images.shape) == ((2, 4, 10, 6), (3, 2, 1))
    assert [shard.data.shape for shard in data.images.flat.addressable_shards] == [(1, 2, 10, 6)] * 4


def test_iid_gives_every_device_the_whole_set() -> None:
    data = put_on_devices(numbered(30), Topology(2, 4), "iid", 0)
    shards = data.labels.addressable_shards
    assert len(shards) == 8
    for shard in shards:
        np.testing.assert_array_equal(shard.data, np.arange(30))


jitted_order = jax.jit(epoch_order, static_argnums=(2, 3, 4))


def order(first: int, steps: int, samples: int, batch_size: int, key: jax.Array = KEY) -> np.ndarray:
    return np.asarray(jitted_order(key, jnp.int32(first), steps, samples, batch_size))


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "batch_size"), [(12, 4), (12, 12), (1, 1), (161, 32)])
def test_each_epoch_goes_once_through_the_shard(samples: int, batch_size: int) -> None:
    steps = samples // batch_size
    epochs = order(0, 4 * steps, samples, batch_size).reshape(4, steps * batch_size)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == steps * batch_size
        assert set(epoch.tolist()) <= set(range(samples))
    if samples > 1:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4, "every epoch has an order of its own"
    later = order(1, 4 * steps, samples, batch_size)
    np.testing.assert_array_equal(later[:-1].ravel(), epochs.ravel()[batch_size:])


def test_what_an_epoch_leaves_out_for_an_uneven_batch_others_take() -> None:
    epochs = order(0, 28 * 3, 10, 3).reshape(28, 9)
    left_out = [set(range(10)) - set(epoch.tolist()) for epoch in epochs]
    assert all(len(samples) == 1 for samples in left_out)
    assert len(set.union(*left_out)) > 5


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(first=st.integers(0, 40), cuts=st.lists(st.sampled_from([1, 4, 11]), min_size=1, max_size=4))
def test_the_order_does_not_depend_on_where_rounds_are_cut(first: int, cuts: list[int]) -> None:
    starts = first + np.cumsum([0, *cuts[:-1]])
    pieces = [order(int(start), steps, 10, 3) for start, steps in zip(starts, cuts, strict=True)]
    at_once = order(0, 40 + 4 * 11, 10, 3)
    np.testing.assert_array_equal(np.concatenate(pieces), at_once[first : first + sum(cuts)])


def test_the_order_is_a_function_of_the_key() -> None:
    np.testing.assert_array_equal(order(0, 12, 12, 4), order(0, 12, 12, 4))
    assert not np.array_equal(order(0, 12, 12, 4), order(0, 12, 12, 4, jax.random.key(8)))


def drawn(sampling: str, data: Images, samples: int, batch_size: int, steps: int) -> Any:
    """Indices and batches of a worker at some steps."""
    batches = make_batches(sampling, samples, batch_size, augmented(WHOLE))
    planned = jax.jit(batches.plan, static_argnums=2)(KEY, jnp.int32(0), steps)
    draw = jax.jit(batches.draw)
    return planned, [draw(data, planned[step], jax.random.key(step)) for step in range(steps)]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["shard", "iid"])
def test_batches_carry_the_labels_of_their_images(sampling: str) -> None:
    data = jax.tree.map(jnp.asarray, numbered(50))
    data = data._replace(labels=data.labels[::-1], images=data.images[::-1])
    planned, batches = drawn(sampling, data, 50, 8, 7)
    for indices, batch in zip(planned, batches, strict=True):
        assert batch.images.shape == (8, 3, 2, 1)
        assert (batch.images.dtype, batch.labels.dtype) == (jnp.float32, jnp.int32)
        np.testing.assert_array_equal(batch.labels, 49 - np.asarray(indices))
        np.testing.assert_array_equal(batch.images, np.broadcast_to(batch.labels[:, None, None, None], (8, 3, 2, 1)))


def test_only_shards_belong_to_a_worker() -> None:
    assert make_batches("shard", 50, 8, augmented(WHOLE)).per_worker
    assert not make_batches("iid", 50, 8, augmented(WHOLE)).per_worker


def test_sharded_batches_follow_the_epochs() -> None:
    plan = jax.jit(make_batches("shard", 10, 3, augmented(WHOLE)).plan, static_argnums=2)
    np.testing.assert_array_equal(plan(KEY, jnp.int32(4), 11), order(4, 11, 10, 3))


jitted_iid = jax.jit(make_batches("iid", 16, 32, augmented(WHOLE)).plan, static_argnums=2)


def iid(key: jax.Array, first: int, steps: int) -> np.ndarray:
    """int[steps, 32]: which of 16 samples a worker draws."""
    return np.asarray(jitted_iid(key, jnp.int32(first), steps))


def test_iid_draws_lie_in_range_and_find_every_sample_about_equally_often() -> None:
    draws = iid(KEY, 0, 64)
    assert draws.shape == (64, 32)
    assert (draws.min(), draws.max()) == (0, 15)
    counts = np.bincount(draws.ravel(), minlength=16)  # 128 expected, with a standard deviation of 11
    assert counts.min() > 128 - 55
    assert counts.max() < 128 + 55


def test_iid_draws_differ_between_steps_and_between_workers() -> None:
    draws = iid(KEY, 0, 64)
    assert len({tuple(step) for step in draws.tolist()}) == 64
    other = iid(jax.random.key(8), 0, 64)
    assert (draws == other).mean() < 0.25, "one in 16 by chance"


def test_iid_draws_do_not_depend_on_where_rounds_are_cut() -> None:
    pieces = [iid(KEY, first, 5) for first in range(3, 58, 5)]
    np.testing.assert_array_equal(np.concatenate(pieces), iid(KEY, 0, 64)[3:58])
