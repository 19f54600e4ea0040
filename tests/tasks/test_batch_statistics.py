"""Moments measured again, against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsgd_jax.models import make_model
from lsgd_jax.models.functional import FunctionalModel, functional_model
from lsgd_jax.tasks.batch_statistics import has_batch_statistics, reestimate

KEY = jax.random.key(3)
BATCHES, BATCH, CHANNELS = 5, 7, 3
EPSILON = 1e-5


class Calls(nnx.Variable):
    """How often a module was called: state that is no batch statistic."""


class Small(nnx.Module):
    """Batch norm, a matrix, batch norm; it counts its calls."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.BatchNorm(CHANNELS, epsilon=EPSILON, rngs=rngs)
        self.dense = nnx.Linear(CHANNELS, 2, rngs=rngs)
        self.last = nnx.BatchNorm(2, epsilon=EPSILON, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = Calls(jnp.int32(0))

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        train = rngs is not None
        self.calls[...] += 1
        x = self.dense(self.first(x, use_running_average=not train))
        return self.last(x, use_running_average=not train)


class Dropped(nnx.Module):
    """Dropout, then batch norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(0.5)
        self.norm = nnx.BatchNorm(1, rngs=rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        return self.norm(x, use_running_average=rngs is None)


def small() -> tuple[FunctionalModel, Any, Any]:
    model = functional_model(Small)
    params, model_state = model.init(KEY)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), params)
    return model, params, model_state


def images(scale: float = 2.0) -> np.ndarray:
    """Batches whose moments differ, [batches, batch, 4, 4, channels]."""
    rng = np.random.default_rng(0)
    shifts, scales = rng.normal(size=(BATCHES, 1, 1, 1, CHANNELS)), rng.uniform(0.5, scale, (BATCHES, 1, 1, 1, 1))
    return (rng.normal(size=(BATCHES, BATCH, 4, 4, CHANNELS)) * scales + 3 + shifts).astype(np.float32)


def assert_moments(found: Any, inputs: np.ndarray) -> None:
    """The layer's moments are those of all inputs at once."""
    inputs = inputs.astype(np.float64).reshape(-1, inputs.shape[-1])
    np.testing.assert_allclose(found["mean"], inputs.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["var"], inputs.var(0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("jitted", [False, True])
def test_the_moments_of_each_layer_are_those_of_all_that_reaches_it_in_training(jitted: bool) -> None:
    model, params, model_state = small()
    run = lambda *args: reestimate(model, *args)  # noqa: E731
    found = (jax.jit(run) if jitted else run)(params, model_state, images(), KEY)
    x = images().astype(np.float64)
    assert_moments(found["first"], x)
    # Each batch is normalized by its own moments before it reaches the second.
    x = (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + EPSILON)
    x = x * params["first"]["scale"] + params["first"]["bias"]
    assert_moments(found["last"], x @ params["dense"]["kernel"].astype(np.float64) + params["dense"]["bias"])


@pytest.mark.slow
def test_an_evaluation_uses_the_moments() -> None:
    model, params, model_state = small()
    found = reestimate(model, params, model_state, images(), KEY)
    x = images()[0]
    logits, _ = model.apply(params, found, x, None)
    for layer in ("first", "last"):
        x = (x - found[layer]["mean"]) / np.sqrt(found[layer]["var"] + EPSILON)
        x = x * params[layer]["scale"] + params[layer]["bias"]
        if layer == "first":
            x = x @ params["dense"]["kernel"] + params["dense"]["bias"]
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-4)


def test_what_is_no_moment_stays_and_moments_from_before_do_not_matter() -> None:
    model, params, model_state = small()
    model_state = {**model_state, "calls": jnp.int32(11)}
    expected = reestimate(model, params, model_state, images(), KEY)
    assert int(expected["calls"]) == 11
    before, after = jax.tree.leaves(model_state["dropout"]), jax.tree.leaves(expected["dropout"])
    assert len(before) == 2, "a key, and how many it has made"
    assert all((x == y).all() for x, y in zip(before, after, strict=True))
    nan = {name: jax.tree.map(lambda x: x * jnp.nan, model_state[name]) for name in ("first", "last")}
    found = reestimate(model, params, {**model_state, **nan}, images(), KEY)
    for name in ("first", "last"):
        jax.tree.map(np.testing.assert_array_equal, found[name], expected[name])


def test_raw_batches_become_inputs_one_by_one_each_with_its_own_key() -> None:
    model, params, model_state = small()
    raw = np.random.default_rng(2).integers(0, 256, images().shape, dtype=np.uint8)
    batches = {"images": raw, "labels": np.zeros((BATCHES, BATCH), np.int32)}

    def inputs(batch: Any, key: jax.Array) -> jax.Array:
        return batch["images"] / 255 + jax.random.normal(key)

    found = jax.jit(lambda x: reestimate(model, params, model_state, x, KEY, inputs))(batches)
    # A shift by batch adds its variance to that of the images, the same in all channels.
    added = found["first"]["var"] - (raw.reshape(-1, CHANNELS) / 255.0).var(0)
    assert added[0] > 0.1
    np.testing.assert_allclose(added, added[0], rtol=0.1)


def test_dropout_drops_as_in_training() -> None:
    model = functional_model(Dropped)
    params, model_state = model.init(KEY)
    found = reestimate(model, params, model_state, jnp.ones((4, 2000, 1)), KEY)["norm"]
    np.testing.assert_allclose(found["mean"], 1, atol=0.06)  # half of them 0, half of them 2
    np.testing.assert_allclose(found["var"], 1, atol=0.06)


def test_a_model_without_batch_norm_costs_nothing() -> None:
    model = make_model("mlp", (4, 4, 1), 3)
    params, model_state = model.init(KEY)

    def inputs(*_: Any) -> jax.Array:
        raise AssertionError("it asks for no inputs")

    assert reestimate(model, params, model_state, np.zeros((2, 3, 4, 4, 1)), KEY, inputs) is model_state
    assert not has_batch_statistics(model)
    assert has_batch_statistics(make_model("resnet20", (8, 8, 1), 3))
