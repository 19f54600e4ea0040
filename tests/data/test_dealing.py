"""Samples that are dealt anew to the workers in each epoch: what each of them draws, step by step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from prepared_sets import WHOLE, numbered
from refusals import refusal
from regression import QUICK

from lsgd_jax import Topology, init_state, local_sgd, make_train_step
from lsgd_jax.config.config import Config, check_config
from lsgd_jax.config.kinds import text_batch_size
from lsgd_jax.data.images import augmented
from lsgd_jax.data.permutation import permuted
from lsgd_jax.data.sampling import make_batches, put_on_devices
from lsgd_jax.data.text import TextSource
from lsgd_jax.data.text_batches import make_text_batches, put_text_on_devices
from lsgd_jax.engine.simulated_speeds import make_asynchronous_step

# 47 samples for 2 × 4 workers: 5 each, 2 batches of 2 in an epoch, so that 15 are left out of it.
SAMPLES, SHAPE, BATCH, EPOCHS, PERIOD = 47, (2, 4), 2, 6, 4
STEPS = 2 * EPOCHS
BATCHES = make_batches("reshuffle", SAMPLES // 8, BATCH, augmented(WHOLE))


def numbers_drawn(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    """A loss that tells which samples a worker has drawn: the window of its last losses then holds them all."""
    del key
    first, second = batch.labels
    return (64 * first + second).astype(jnp.float32) + 0 * params.sum(), model_state


METHOD = local_sgd(optax.sgd(0.1), local_period=PERIOD, global_period=PERIOD)._replace(window=STEPS)


@functools.cache
def compiled(devices: int) -> Any:
    """(topology, train step)."""
    topology = Topology(*SHAPE, jax.devices()[:devices])
    return topology, make_train_step(METHOD, topology, numbers_drawn, BATCHES, compiler_options=QUICK)


def started(topology: Topology, seed: int = 0) -> Any:
    """(state, data)."""
    state = init_state(METHOD, topology, lambda key: (jnp.zeros(1), {}), jax.random.key(0))
    return state, put_on_devices(numbered(SAMPLES), topology, "reshuffle", seed)


def drawn(state: Any) -> np.ndarray:
    """int[workers, steps, batch]: what each worker has drawn; -1 where it has taken fewer steps."""
    told = np.asarray(state.losses.values).reshape(8, STEPS).astype(int)
    steps = np.asarray(state.losses.filled).reshape(8)
    ordered = [np.r_[row[STEPS - taken :], np.full(STEPS - taken, -1)] for row, taken in zip(told, steps, strict=True)]
    both = np.array(ordered)
    return np.where(both[..., None] < 0, -1, np.stack([both // 64, both % 64], axis=-1))


@functools.cache
def in_step(devices: int, cuts: int = STEPS, seed: int = 0) -> np.ndarray:
    topology, step = compiled(devices)
    state, data = started(topology, seed)
    while int(state.step) < STEPS:
        state, _ = step(state, data, jnp.int32(min(cuts, STEPS - int(state.step))))
    return drawn(state)


@pytest.mark.slow
def test_in_each_epoch_all_samples_are_dealt_anew_to_all_workers() -> None:
    epochs = in_step(8).reshape(8, EPOCHS, 2 * BATCH).swapaxes(0, 1)
    for epoch in epochs:
        assert len(np.unique(epoch)) == 8 * 2 * BATCH, "disjoint"
        assert epoch.max() < SAMPLES
    assert len(np.unique(epochs)) == SAMPLES, "what is left out of one epoch is in another"
    of_worker = [len(np.unique(epochs[:, worker])) for worker in range(8)]
    assert min(of_worker) > 10, "with shards of its own it would see 5"
    assert len({str(epoch) for epoch in epochs}) == EPOCHS


@pytest.mark.slow
def test_deals_are_a_function_of_the_seed_alone_on_any_number_of_devices_and_wherever_calls_are_cut() -> None:
    for devices in (1, 4):
        np.testing.assert_array_equal(in_step(devices), in_step(8))
    np.testing.assert_array_equal(in_step(8, cuts=1), in_step(8))
    assert (in_step(8, seed=1) != in_step(8)).mean() > 0.9


@pytest.mark.slow
def test_a_worker_at_its_own_pace_goes_through_its_own_deals() -> None:
    topology, pace = Topology(*SHAPE, jax.devices()[:2]), np.array([[7, 1, 4, 4], [2, 6, 3, 5]], np.int32)
    state, data = started(topology)
    step = make_asynchronous_step(METHOD, topology, numbers_drawn, BATCHES, longest=7, compiler_options=QUICK)
    state, _ = step(state, data, jax.device_put(pace, topology.per_worker))
    found, expected = drawn(state), in_step(8)
    for rank, taken in enumerate(pace.ravel()):
        np.testing.assert_array_equal(found[rank, :taken], expected[rank, :taken])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5, 65, 1000])
def test_a_permutation_has_each_number_once_and_another_order_for_another_key(count: int) -> None:
    permute = jax.jit(permuted, static_argnums=2)
    orders = [np.asarray(permute(jax.random.key(seed), jnp.arange(count), count)).tolist() for seed in range(9)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) == 9 or count < 8
    some = permute(jax.random.key(0), jnp.array([count - 1, 0]), count)
    assert some.tolist() == [orders[0][-1], orders[0][0]], "each entry on its own"


def test_all_orders_of_a_permutation_are_about_equally_likely() -> None:
    keys = jax.random.split(jax.random.key(1), 12_000)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: permuted(key, jnp.arange(4), 4)))(keys))
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]  # 500 expected, with a deviation of 22
    assert counts.shape == (24,)
    assert 390 < counts.min() <= counts.max() < 610


def test_windows_of_a_text_are_dealt_anew_each_epoch() -> None:
    topology, length = Topology(*SHAPE), 5
    text = np.arange(200, dtype=np.uint8)  # 39 windows: 4 each
    data = put_text_on_devices(text, topology, "reshuffle", seed=0)
    batches = make_text_batches("reshuffle", len(text), 2, length, carries=False)
    draw = jax.jit(lambda rank, step: batches.draw(data._replace(rank=rank), step, jax.random.key(0)).tokens)
    seen = []
    for epoch in range(4):
        steps = [draw(rank, 2 * epoch + step) for rank in range(8) for step in range(2)]
        tokens = np.array(steps).reshape(32, length + 1)
        np.testing.assert_array_equal(tokens - tokens[:, :1], np.broadcast_to(np.arange(6), tokens.shape))
        assert len(np.unique(tokens[:, 0])) == 32
        assert (tokens[:, 0] % length == 0).all()
        seen.append(tokens[:4, 0].tolist())
    assert len({str(own) for own in seen}) == 4


def test_a_model_that_reads_in_order_does_not_go_with_it() -> None:
    source = TextSource("words", 1000, lambda: pytest.fail("nothing is read"))
    config = Config("unused", sampling="reshuffle", model="lstm", text_file="words", sequence_length=8)
    with refusal("--sampling=reshuffle", "lstm", "--sampling=shard"):
        text_batch_size(config, source)
    check_config(config)
