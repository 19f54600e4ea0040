"""Language models: sizes worked out by hand, what they may see, and what they carry."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thorough import thorough

from lsgd_jax.errors import InputError
from lsgd_jax.models import FunctionalModel, transformer
from lsgd_jax.models.language import LANGUAGE_MODELS, fresh_state, make_language_model
from lsgd_jax.models.lstm import Weights, through_layer
from lsgd_jax.models.transformer import heads_of

KEY = jax.random.key(0)


class Small(NamedTuple):
    """A small model with 11 tokens and up to 12 positions, with parameters at random.

    `forward(state, tokens, key)` gives (logits, state).
    """

    model: FunctionalModel
    params: Any
    state: Any
    forward: Any


@functools.cache
def small(name: str, dtype: Any = None) -> Small:
    model = make_language_model(name, 11, 2, 12, 8, 2 if name == "lstm" else 1, 0.5, dtype)
    rng = np.random.default_rng(0)
    shapes, state = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)
    forward = functools.partial(jax.jit(model.apply), params)
    return Small(model, params, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state), forward)


def parameters(model: FunctionalModel) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, KEY)[0]))


def tokens_of(length: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 11, (batch, length))


def test_the_transformer_has_the_parameters_of_gpt_2_small() -> None:
    assert parameters(make_language_model("transformer", 50_257, 1, 1024, 768, 12)) == 124_439_808


def test_the_lstm_has_the_28_million_parameters_of_the_variational_lstm_with_tied_embeddings() -> None:
    # WikiText-2: Inan et al. 2016, as in table 2 of Merity et al. 2017. A gate has one bias vector.
    embedding, layer = 33_278 * 650, 4 * (650 * 650 + 650 * 650 + 650)
    assert (
        parameters(make_language_model("lstm", 33_278, 1, 35, 650, 2)) == embedding + 2 * layer + 33_278 == 28_429_178
    )


def test_usual_sizes_are_those_of_the_papers() -> None:
    usual = {name: (kind.width, kind.layers, kind.dropout) for name, kind in LANGUAGE_MODELS.items()}
    assert usual == {"lstm": (650, 2, 0.5), "transformer": (256, 4, 0.1)}


def test_an_unknown_model_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(InputError, match="--model=cnn3 is no model of text: choose one of lstm, transformer"):
        make_language_model("cnn3", 11, 2, 12, 8, 2)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_no_position_sees_a_later_token_and_the_last_sees_the_first(name: str) -> None:
    _, _, state, forward = small(name)
    tokens = tokens_of(12)
    before = np.asarray(forward(state, tokens, None)[0])
    assert (before.shape, before.dtype) == ((2, 12, 11), np.float32)
    for position in (0, 5, 11):
        changed = tokens.copy()
        changed[:, position] = (changed[:, position] + 1) % 11
        after = np.asarray(forward(state, changed, None)[0])
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (after[:, position] != before[:, position]).any()
        assert (after[:, -1] != before[:, -1]).any()


def test_two_windows_with_the_state_carried_are_one_of_double_length() -> None:
    _, _, state, forward = small("lstm")
    tokens = tokens_of(12)
    whole, at_end = forward(state, tokens, None)
    first, between = forward(state, tokens[:, :6], None)
    second, end = forward(between, tokens[:, 6:], None)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, at_end)
    assert (np.asarray(second) != forward(state, tokens[:, 6:], None)[0]).any()


def test_the_lstm_is_that_of_its_equations() -> None:
    _, params, state, forward = small("lstm")
    tokens = tokens_of(12)
    x = params["embedding"][tokens[0]].astype(np.float64)
    logits, carried = forward(state, tokens, None)
    for name in ("layer1", "layer2"):
        layer, hidden, cell, outputs = params[name], np.zeros(8), np.zeros(8), []
        for at in x:
            i, f, g, o = (at @ layer["input"] + hidden @ layer["recurrent"] + layer["bias"]).reshape(4, 8)
            cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            hidden = np.tanh(cell) / (1 + np.exp(-o))
            outputs.append(hidden)
        x = np.stack(outputs)
        np.testing.assert_allclose(carried[name]["hidden"][0], hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(carried[name]["cell"][0], cell, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[0], x @ params["embedding"].T + params["bias"], rtol=1e-4, atol=1e-4)


def plain_layer(dtype: None, x: jax.Array, weights: Weights, start: Any) -> tuple[jax.Array, jax.Array]:
    """A layer by its equations, one time step after the other, for JAX to differentiate."""
    del dtype
    (hidden, cell), outputs = start, []
    for entering in x:
        i, f, g, o = jnp.split(entering @ weights.input + hidden @ weights.recurrent + weights.bias, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        outputs.append(hidden)
    return jnp.stack(outputs), cell


@pytest.mark.parametrize("lanes", ["vmap", "map"])
def test_a_layer_and_its_gradient_are_those_of_plain_differentiation_on_every_lane(lanes: str) -> None:
    rng = np.random.default_rng(1)
    shapes = ((5, 2, 3), Weights((3, 12), (3, 12), (12,)), ((2, 3), (2, 3)))  # 5 steps of 2 rows, 3 units
    args, directions = (
        jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32), of, is_leaf=_is_shape)
        for of in (shapes, ((5, 2, 3), (2, 3)))
    )

    def with_gradients(layer: Any) -> Any:
        def total(x: jax.Array, weights: Weights, start: Any, directions: Any) -> Any:
            outputs, cell = layer(None, x, weights, start)
            return (outputs * directions[0]).sum() + (cell * directions[1]).sum(), (outputs, cell)

        of_all = jax.grad(total, argnums=(0, 1, 2), has_aux=True)
        over = jax.vmap(of_all) if lanes == "vmap" else lambda *x: jax.lax.map(lambda lane: of_all(*lane), x)
        return jax.jit(over)(*args, directions)

    right, got = with_gradients(plain_layer), with_gradients(through_layer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, right)
    assert all((jnp.abs(leaf) > 1e-3).any() for leaf in jax.tree.leaves(right))


def _is_shape(x: Any) -> bool:
    return isinstance(x[0], int)


def test_no_gradient_crosses_into_the_window_before() -> None:
    model, params, state, _ = small("lstm")
    slope = jax.jit(jax.grad(lambda state, params: model.apply(params, state, tokens_of(4), None)[0].sum()))(
        state, params
    )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.slow
def test_models_start_as_published() -> None:
    lstm, _ = jax.jit(make_language_model("lstm", 50, 1, 4, 64, 2).init)(KEY)
    np.testing.assert_array_equal(lstm["layer1"]["bias"].reshape(4, 64), np.array([[0], [1], [0], [0]]) * np.ones(64))
    assert 0.12 < np.abs(lstm["layer2"]["recurrent"]).max() <= 1 / 8
    gpt, _ = jax.jit(make_language_model("transformer", 50, 1, 16, 64, 1).init)(KEY)
    for name, deviation in (("attend", 0.02), ("expand", 0.02), ("project", 0.0141), ("contract", 0.0141)):
        kernel = np.asarray(gpt["blocks"][name]["kernel"])
        assert abs(kernel.std() / deviation - 1) < 0.1
        assert (np.asarray(gpt["blocks"][name]["bias"]) == 0).all()
    assert abs(np.asarray(gpt["positions"]).std() / 0.02 - 1) < 0.1


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_dropout_acts_in_training_only_and_is_a_function_of_the_key(name: str) -> None:
    _, _, state, forward = small(name)
    tokens = tokens_of(12)
    trained = np.asarray(forward(state, tokens, KEY)[0])
    assert (trained != forward(state, tokens, None)[0]).any()
    np.testing.assert_array_equal(forward(state, tokens, KEY)[0], trained)
    assert (trained != forward(state, tokens, jax.random.key(1))[0]).any()


def test_the_lstm_drops_the_same_units_at_all_steps_of_a_window() -> None:
    model, params, state, _ = small("lstm")
    # Logits of the outputs alone: units that are dropped there are zero throughout.
    told = dict(params, embedding=np.eye(11, 8, dtype=np.float32), bias=np.zeros(11, np.float32))
    logits = np.asarray(jax.jit(model.apply)(told, state, tokens_of(12), KEY)[0])[..., :8]
    dropped = (logits == 0).all(1)
    np.testing.assert_array_equal(logits == 0, np.broadcast_to(dropped[:, None], logits.shape))
    assert 0 < dropped.sum() < dropped.size
    assert (dropped[0] != dropped[1]).any()


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_any_number_of_rows_begins_with_a_state_of_zeros(name: str) -> None:
    model, _, state, forward = small(name)
    three = fresh_state(model, 3)
    assert jax.tree.map(lambda x: (2, *x.shape[1:]), three) == jax.tree.map(lambda x: x.shape, state)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(three))
    tokens = tokens_of(12, batch=3)
    rows, two_rows = forward(three, tokens, None)[0], forward(state, tokens[:2], None)[0]
    np.testing.assert_allclose(rows[:2], two_rows, rtol=1e-4, atol=1e-5)
    assert len(jax.tree.leaves(state)) == (4 if LANGUAGE_MODELS[name].carries else 0)


def test_a_sequence_that_is_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens is longer than the 12 positions"):
        small("transformer").forward({}, tokens_of(13), None)


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (64, 1), (100, 1), (130, 2), (131, 1), (192, 3), (768, 12)])
def test_heads_divide_any_width_and_are_64_wide_or_wider(width: int, heads: int) -> None:
    assert heads_of(width) == heads


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_bfloat16_products_leave_parameters_state_gradients_and_logits_in_float32(name: str) -> None:
    exact, rounded = small(name), small(name, jnp.bfloat16)
    (right, _), (logits, carried) = (model.forward(model.state, tokens_of(12), None) for model in (exact, rounded))
    assert 1e-5 < jnp.linalg.norm(logits - right) / jnp.linalg.norm(right) < 3e-2

    def loss(params: Any) -> jax.Array:
        return rounded.model.apply(params, rounded.state, tokens_of(12), KEY)[0].sum()

    grads = jax.eval_shape(jax.grad(loss), rounded.params)
    assert {x.dtype for x in jax.tree.leaves((grads, logits, carried))} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["products", thorough("full")])
def test_what_is_computed_again_changes_nothing_and_blocks_in_a_loop_are_blocks_one_after_the_other(
    remat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient(**how: Any) -> Any:
        model = make_language_model("transformer", 11, 2, 12, 8, 3, 0.5, **how)
        shapes, _ = jax.eval_shape(model.init, KEY)
        params = jax.tree.map(lambda x: np.random.default_rng(0).normal(0, 0.5, x.shape).astype(x.dtype), shapes)

        def loss(params: Any) -> jax.Array:
            return jnp.square(model.apply(params, {}, tokens_of(12), KEY)[0]).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    plain = gradient()
    monkeypatch.setattr(transformer, "UNROLLED_ON_CPU", 0)
    for other in (gradient(), gradient(remat=remat)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, other)


def test_blocks_start_apart_and_a_loop_over_them_compiles_one() -> None:
    gpt, _ = jax.jit(make_language_model("transformer", 50, 1, 16, 8, 3).init)(KEY)
    kernels = np.asarray(gpt["blocks"]["attend"]["kernel"])
    assert kernels.shape == (3, 8, 24)
    assert len(np.unique(kernels)) == kernels.size

    def size(layers: int) -> int:
        model = make_language_model("transformer", 11, 2, 12, 8, layers)
        params, _ = jax.eval_shape(model.init, KEY)
        return len(jax.jit(model.apply).lower(params, {}, tokens_of(12), None).as_text())

    assert size(8) > 1.5 * size(2), "on CPU a few are written out"
    assert size(24) < 1.05 * size(12)


def test_what_cannot_be_computed_again_is_told() -> None:
    with pytest.raises(InputError, match="unknown --remat=some: choose one of none, products, full"):
        make_language_model("transformer", 11, 2, 12, 8, 1, remat="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--remat=full is for blocks of a transformer: leave it out"):
        make_language_model("lstm", 11, 2, 12, 8, 1, remat="full")
