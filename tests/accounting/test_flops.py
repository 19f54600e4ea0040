"""Floating-point operations, counted by hand and in published networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lsgd_jax.accounting.flops import flops
from lsgd_jax.data.images import Batch
from lsgd_jax.models import convolution, make_model
from lsgd_jax.models.language import make_language_model
from lsgd_jax.tasks.classification import classification_loss


def counted(function: Any, *shapes: tuple[int, ...]) -> int:
    return flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)).jaxpr)


def test_a_product_takes_a_multiplication_and_an_addition_for_each_term() -> None:
    assert counted(jnp.dot, (2, 3), (3, 5)) == 2 * 2 * 3 * 5
    assert counted(jax.vmap(jnp.dot), (7, 2, 3), (7, 3, 5)) == 7 * 2 * 2 * 3 * 5


def test_loops_count_as_often_as_they_run_if_that_is_known_and_a_cond_as_its_dearest_branch() -> None:
    def looped(x: jax.Array, y: jax.Array) -> Any:
        return lax.scan(lambda carry, _: (carry @ y, None), x, None, length=6)[0]

    def unknown(x: jax.Array, y: jax.Array) -> Any:
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ y, x)

    def either(x: jax.Array, y: jax.Array) -> Any:
        return lax.cond(x.sum() < 1, lambda: x @ y, lambda: x @ y @ y)

    assert [counted(f, (4, 3), (3, 3)) for f in (looped, unknown, either)] == [6 * 72, 72, 2 * 72]


def test_what_nobody_uses_does_not_count() -> None:
    assert counted(lambda x, y: (x @ y, y.sum())[1], (2, 3), (3, 5)) == 0


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_a_convolution_and_its_gradients_take_the_same_and_products_with_padding_do_not_count(
    strides: tuple[int, int], padding: str
) -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    ones = convolve(jnp.ones((1, 9, 8, 1)), jnp.ones((3, 2, 1, 1)))
    expected = 2 * 5 * 4 * 6 * int(ones.sum())  # each output is the number of its terms
    shapes = (5, 9, 8, 4), (3, 2, 4, 6)
    assert counted(convolve, *shapes) == expected
    for argument in (0, 1):
        assert counted(jax.grad(lambda *args: convolve(*args).sum(), argument), *shapes) == expected


@pytest.mark.thorough
@pytest.mark.parametrize(("model", "side", "classes", "published"), [("resnet50", 224, 1000, 8.2e9)])
def test_of_published_networks_they_are_the_published_ones(
    model: str, side: int, classes: int, published: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He et al. (2015) give 3.8 billion multiplications for ResNet-50, torchvision, which strides later, 4.1."""
    monkeypatch.setattr(convolution, "platform", lambda: "tpu")
    network = make_model(model, (side, side, 3), classes)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    batch = Batch(jax.ShapeDtypeStruct((2, side, side, 3), np.float32), jax.ShapeDtypeStruct((2,), np.int32))
    loss = classification_loss(network)
    forward = flops(jax.make_jaxpr(loss)(*shapes, batch, jax.random.key(0)).jaxpr) / 2
    both = flops(jax.make_jaxpr(jax.grad(loss, has_aux=True))(*shapes, batch, jax.random.key(0)).jaxpr) / 2
    assert forward == pytest.approx(published, rel=0.05)
    assert both == pytest.approx(3 * forward, rel=0.02), "the images need no gradient"


def test_of_a_transformer_they_are_two_for_each_parameter_and_token_and_those_of_attention() -> None:
    layers, width, length, vocabulary = 3, 64, 16, 100
    network = make_language_model("transformer", vocabulary, 2, length, width, layers)
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    tokens = jnp.zeros((2, length), jnp.int32)
    found = flops(jax.make_jaxpr(lambda params: network.apply(params, {}, tokens, None)[0])(params).jaxpr)
    of_token = 2 * (12 * layers * width**2 + vocabulary * width) + layers * 4 * length * width
    assert found == 2 * length * of_token
