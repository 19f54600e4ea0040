"""The models: sizes worked out by hand, dropout, pooling, and their functional form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from thorough import mostly, thorough

from lsgd_jax.errors import InputError
from lsgd_jax.models import MODELS, FunctionalModel, check_model, make_model
from lsgd_jax.models.layers import max_pool_2

KEY = jax.random.key(0)

# (model, input shape, classes) -> parameters, layer by layer: weights, then biases.
SIZES = {
    ("mlp", (8, 8, 1), 10): (64 * 256 + 256) + (256 * 256 + 256) + (256 * 10 + 10),
    ("mlp", (1, 2, 3), 4): (6 * 256 + 256) + (256 * 256 + 256) + (256 * 4 + 4),
    ("cnn3", (8, 8, 1), 10): (9 * 32 + 32) + (9 * 32 * 64 + 64) + (2 * 2 * 64 * 128 + 128) + (128 * 10 + 10),
    ("cnn3", (7, 10, 3), 2): (27 * 32 + 32) + (9 * 32 * 64 + 64) + (1 * 3 * 64 * 128 + 128) + (128 * 2 + 2),
    ("cnn7", (28, 28, 3), 10): 351_946,
    ("cnn7", (24, 32, 1), 7): (
        (25 * 64 + 64) + (25 * 64 * 128 + 128) + (9 * 128 * 64 + 64) + (1 * 3 * 64 * 256 + 256) + (256 * 7 + 7)
    ),
}
SMALLEST = {"mlp": 1, "cnn3": 6, "cnn7": 24, "vgg16": 17, "resnet20": 3, "resnet50": 17}
FITTING = {
    ("resnet20", 2): "mlp",
    ("cnn3", 5): "mlp, resnet20",
    ("vgg16", 16): "cnn3, mlp, resnet20",
    ("resnet50", 16): "cnn3, mlp, resnet20",
    ("cnn7", 23): "cnn3, mlp, resnet20, resnet50, vgg16",
}
DROPOUT = {"mlp": (0.2, 256), "cnn3": (0.5, 128), "cnn7": (0.5, 256)}


@pytest.mark.parametrize(("case", "parameters"), SIZES.items(), ids=[f"{c[0]}-{c[1]}-{c[2]}" for c in SIZES])
def test_parameters_and_logits_have_the_sizes_worked_out_by_hand(case: Any, parameters: int) -> None:
    name, shape, classes = case
    model = make_model(name, shape, classes)
    params, model_state = jax.eval_shape(model.init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert jax.tree.leaves(model_state) == []
    images = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    for key in (None, KEY):
        logits, _ = jax.eval_shape(lambda p, s, x, key=key: model.apply(p, s, x, key), params, model_state, images)
        assert (logits.shape, logits.dtype) == ((5, classes), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_the_smallest_images_work(name: str, side: int) -> None:
    for shape in ((side, side, 1), (side + 3, side, 2)):
        model = make_model(name, shape, 3)
        params, model_state = jax.eval_shape(model.init, KEY)
        assert all(leaf.size for leaf in jax.tree.leaves(params))
        images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        logits, _ = jax.eval_shape(lambda *args, m=model: m.apply(*args, None), params, model_state, images)
        assert logits.shape == (2, 3)


@pytest.mark.parametrize(("case", "fits"), FITTING.items())
def test_images_that_are_too_small_are_refused_and_the_models_that_fit_named(case: tuple[str, int], fits: str) -> None:
    name, side = case
    for shape in ((side, side, 3), (40, side, 3), (side, 40, 3)):
        with pytest.raises(InputError, match=f"{name}.*{SMALLEST[name]}×{SMALLEST[name]}.*: choose one of {fits}$"):
            check_model(name, shape)
        with pytest.raises(InputError):
            make_model(name, shape, 10)


def test_an_unknown_model_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(InputError, match=r"'resnet'.*cnn3, cnn7, mlp"):
        make_model("resnet", (28, 28, 3), 10)


def passing_through(name: str) -> tuple[Any, Any, jax.Array]:
    """A model whose logits are its last hidden layer after dropout, and that layer is all ones."""
    _, width = DROPOUT[name]
    side = SMALLEST[name]
    model = make_model(name, (side, side, 1), width)
    shapes, _ = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params["hidden2" if name == "mlp" else "dense"]["bias"] += 1
    params["logits"]["kernel"] = np.eye(width, dtype=np.float32)
    return model, params, jnp.ones((64, side, side, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(DROPOUT, "mlp", "cnn3"))
def test_dropout_acts_on_the_last_hidden_layer_in_training_only(name: str) -> None:
    rate, _ = DROPOUT[name]
    model, params, images = passing_through(name)
    apply = jax.jit(lambda key: model.apply(params, {}, images, key)[0])
    np.testing.assert_array_equal(model.apply(params, {}, images, None)[0], 1)
    trained = np.asarray(apply(KEY))
    dropped = trained == 0
    np.testing.assert_allclose(trained[~dropped], 1 / (1 - rate), rtol=1e-6)
    assert abs(dropped.mean() - rate) < 0.03, "of at least 8,192 units, whose share has a deviation below 0.006"
    np.testing.assert_array_equal(apply(KEY), trained)
    assert (apply(jax.random.key(1)) != trained).any()
    assert len({row.tobytes() for row in dropped}) == len(dropped), "every image has a mask of its own"


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 8), (6, 9), (3, 5)])
def test_max_pooling_is_that_of_flax_and_leaves_an_odd_last_row_or_column_out(height: int, width: int) -> None:
    images = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    pooled = max_pool_2(jnp.asarray(images))
    assert pooled.shape == (2, height // 2, width // 2, 3)
    np.testing.assert_array_equal(pooled, nnx.max_pool(images, (2, 2), strides=(2, 2)))
    images[:, height // 2 * 2 :] = images[:, :, width // 2 * 2 :] = 100.0
    np.testing.assert_array_equal(max_pool_2(jnp.asarray(images)), pooled)


@pytest.mark.slow
def test_the_gradient_of_max_pooling_goes_to_the_largest() -> None:
    images = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    weights = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3)
    ours, theirs = (
        jax.grad(lambda x, pool=pool: (pool(x) * weights).sum())(jnp.asarray(images))
        for pool in (max_pool_2, lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)))
    )
    np.testing.assert_array_equal(ours, theirs)


def assert_plain(tree: Any) -> None:
    assert type(tree) is dict or isinstance(tree, jax.Array | jax.ShapeDtypeStruct)
    for name, child in tree.items() if type(tree) is dict else ():
        assert isinstance(name, str)
        assert_plain(child)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_plain_dictionaries_of_arrays(name: str) -> None:
    params, model_state = jax.eval_shape(make_model(name, (28, 28, 1), 10).init, KEY)
    assert_plain(params)
    assert_plain(model_state)
    assert params["logits"]["bias"].shape == (10,)


def test_parameters_are_a_function_of_the_key_and_biases_start_at_zero() -> None:
    init = jax.jit(make_model("mlp", (2, 2, 1), 3).init)
    first, again, other = init(KEY)[0], init(KEY)[0], init(jax.random.key(1))[0]
    assert_plain(first)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for layer in ("hidden1", "hidden2", "logits"):
        assert (first[layer]["kernel"] != other[layer]["kernel"]).all()
        np.testing.assert_array_equal(first[layer]["bias"], 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("mlp", (3, 4, 2)), ("cnn3", (6, 7, 1)), thorough("cnn7", (24, 25, 1))])
def test_the_module_gives_what_apply_gives(name: str, shape: tuple[int, int, int]) -> None:
    model = make_model(name, shape, 5)
    rng = np.random.default_rng(0)
    shapes, model_state = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    images = rng.normal(size=(3, *shape)).astype(np.float32)
    module = model.module(params, model_state)
    assert isinstance(module, MODELS[name])
    logits, state = model.apply(params, model_state, images, None)
    assert state == {}
    assert len({tuple(row) for row in np.asarray(logits).tolist()}) == 3
    np.testing.assert_allclose(module(images), logits, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("mlp", (4, 4, 3)), thorough("cnn7", (24, 24, 3))])
def test_bfloat16_products_leave_parameters_gradients_and_logits_in_float32(
    name: str, shape: tuple[int, int, int]
) -> None:
    exact, rounded = make_model(name, shape, 10), make_model(name, shape, 10, jnp.bfloat16)
    params, model_state = rounded.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (32, *shape))

    def gradient(model: FunctionalModel) -> Any:
        def loss(params: Any) -> Any:
            logits = model.apply(params, model_state, images, None)[0]
            return jax.nn.logsumexp(logits, axis=-1).sum(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (grads, logits), expected = gradient(rounded), gradient(exact)
    assert {x.dtype for x in jax.tree.leaves((params, grads, logits))} == {jnp.dtype("float32")}
    for got, right in zip(jax.tree.leaves((grads, logits)), jax.tree.leaves(expected), strict=True):
        assert jnp.linalg.norm(got - right) < 0.15 * jnp.linalg.norm(right)
    assert 1e-4 < jnp.linalg.norm(logits - expected[1]) / jnp.linalg.norm(expected[1]) < 2e-2
