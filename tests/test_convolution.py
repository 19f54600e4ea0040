"""The convolution whose gradients stay fast inside loops, against JAX's own."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import Jaxpr

from lsgd_jax.training.convolution import LAYOUT, conv_general_dilated
from lsgd_jax.training.models import make_model

Explicit = tuple[tuple[int, int], tuple[int, int]]


def ours_and_theirs(images: Any, kernel: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """(value, both gradients) of both convolutions, for a cotangent that tells all places of the output apart."""

    def of(convolution: Any, images: jax.Array, kernel: jax.Array) -> Any:
        out, pull_back = jax.vjp(lambda x, k: convolution(x, k, *args, **options), images, kernel)
        return out, pull_back(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    both = jax.jit(lambda *arrays: (of(conv_general_dilated, *arrays), of(lax.conv_general_dilated, *arrays)))
    return both(images, kernel)


def random(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def assert_same(got: Any, expected: Any, *, rtol: float) -> None:
    def compare(a: jax.Array, b: jax.Array) -> None:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())

    jax.tree.map(compare, got, expected)


def assert_right(
    sides: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: str | Explicit,
    dilation: tuple[int, int] | None,
) -> None:
    """Compares in float64, where an error cannot hide behind rounding."""
    with jax.enable_x64(True):
        args = random(2, *sides, 3), random(*kernel, 3, 4), strides, padding
        options = {"rhs_dilation": dilation, "dimension_numbers": LAYOUT}
        ours, theirs = ours_and_theirs(*args, **options)
        assert ours[0].dtype == jnp.float64
        assert_same(ours, theirs, rtol=1e-10)


# (height, width), kernel, strides, padding, dilation
CASES: dict[str, Any] = {
    "valid": ((8, 7), (3, 3), (1, 1), "VALID", None),
    "same": ((8, 7), (3, 2), (1, 1), "SAME", (1, 1)),
    "same, strides": ((9, 8), (3, 4), (2, 3), "SAME", (1, 1)),
    "the last rows and columns are in no window": ((8, 10), (2, 3), (3, 3), "VALID", None),
    "strides over a kernel that is smaller": ((9, 9), (1, 2), (3, 3), "VALID", None),
    "1×1": ((5, 4), (1, 1), (1, 1), "VALID", None),
    "1×1, strides and padding": ((5, 4), (1, 1), (2, 2), ((2, 1), (0, 3)), None),
    "asymmetric padding": ((6, 5), (3, 3), (1, 2), ((0, 2), (3, 1)), (1, 1)),
    "padding wider than the kernel": ((4, 5), (2, 2), (2, 1), ((4, 3), (3, 5)), (1, 1)),
    "negative padding": ((8, 8), (3, 3), (1, 2), ((-1, 0), (1, -2)), (1, 1)),
    "dilation": ((9, 8), (3, 2), (1, 1), "VALID", (2, 3)),
    "dilation, strides, padding": ((9, 10), (3, 2), (3, 2), ((1, 2), (0, 3)), (2, 1)),
    "same, dilation, strides": ((9, 7), (3, 3), (2, 2), "SAME", (2, 2)),
    "a window as large as the image": ((5, 4), (5, 4), (1, 1), "VALID", None),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradients_are_those_of_jax(case: Any) -> None:
    assert_right(*case)


@settings(deadline=None, max_examples=8)
@given(
    sides=st.tuples(st.integers(7, 9), st.integers(7, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID"]) | st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_value_and_gradients_are_those_of_jax_for_any_window(
    sides: Any, kernel: Any, strides: Any, padding: Any, dilation: Any
) -> None:
    assert_right(sides, kernel, strides, padding, dilation)


def test_in_float32_rounding_is_all_that_differs() -> None:
    args = random(4, 12, 10, 8, dtype=np.float32), random(3, 3, 8, 16, dtype=np.float32), (2, 1), "SAME"
    assert_same(*ours_and_theirs(*args, dimension_numbers=LAYOUT), rtol=1e-4)


WORKERS = 3
IMAGES = random(WORKERS, 2, 6, 7, 3, dtype=np.float32)
KERNELS = random(WORKERS, 3, 2, 3, 4, dtype=np.float32)


def of_one_worker(convolution: Any, images: jax.Array, kernel: jax.Array) -> Any:
    """(value, both gradients) of a strided, padded convolution."""
    out, pull_back = jax.vjp(lambda x, k: convolution(x, k, (2, 1), "SAME", dimension_numbers=LAYOUT), images, kernel)
    return out, pull_back(jnp.sin(out))


def in_scan(convolution: Any, images: jax.Array, kernels: jax.Array) -> Any:
    return lax.scan(lambda carry, x: (carry, of_one_worker(convolution, *x)), 0, (images, kernels))[1]


LOOPS: dict[str, Any] = {
    "vmap": lambda convolution, *args: jax.vmap(lambda *x: of_one_worker(convolution, *x))(*args),
    "vmap of vmap": lambda convolution, *args: jax.tree.map(
        lambda x: x[:, 0],
        jax.vmap(jax.vmap(lambda *x: of_one_worker(convolution, *x)))(*jax.tree.map(lambda x: x[:, None], args)),
    ),
    "map": lambda convolution, *args: lax.map(lambda x: of_one_worker(convolution, *x), args),
    "scan": in_scan,
}


@pytest.fixture(scope="module")
def one_by_one() -> Any:
    """What JAX's own convolution gives for each of the kernels."""
    alone = jax.jit(lambda *x: of_one_worker(lax.conv_general_dilated, *x))
    return jax.tree.map(lambda *x: jnp.stack(x), *map(alone, IMAGES, KERNELS))


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_many_kernels_give_what_they_give_one_by_one(loop: Any, one_by_one: Any) -> None:
    assert_same(jax.jit(lambda *args: loop(conv_general_dilated, *args))(IMAGES, KERNELS), one_by_one, rtol=1e-5)


# Shapes of images and kernel, positional arguments and options of what is not written anew.
UNUSUAL: dict[str, Any] = {
    "grouped": ((2, 6, 5, 4), (3, 3, 2, 6), {"feature_group_count": 2, "dimension_numbers": LAYOUT}),
    "batch groups": ((4, 6, 5, 3), (3, 3, 3, 4), {"batch_group_count": 2, "dimension_numbers": LAYOUT}),
    "dilated images": ((2, 6, 5, 3), (3, 3, 3, 4), {"lhs_dilation": (2, 1), "dimension_numbers": LAYOUT}),
    "a dtype of the result": (
        (2, 6, 5, 3),
        (3, 3, 3, 4),
        {"preferred_element_type": jnp.float32, "dimension_numbers": LAYOUT},
    ),
    "a precision": ((2, 6, 5, 3), (3, 3, 3, 4), {"precision": lax.Precision.HIGHEST, "dimension_numbers": LAYOUT}),
    "channels first": ((2, 3, 6, 5), (4, 3, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "channels first by default": ((2, 3, 6, 5), (4, 3, 3, 3), {}),
}  # fmt: skip


def primitives(jaxpr: Jaxpr) -> Iterator[Any]:
    """All equations, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from primitives(getattr(inner, "jaxpr", inner))


def count(function: Any, primitive: str, *args: Any) -> int:
    return [e.primitive.name for e in primitives(jax.make_jaxpr(function)(*args).jaxpr)].count(primitive)


@pytest.mark.parametrize(("images", "kernel", "options"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_convolutions_are_left_to_jax(images: Any, kernel: Any, options: Any) -> None:
    arrays = random(*images, dtype=np.float32), random(*kernel, dtype=np.float32)
    padding = ((1, 0), (2, 1))
    assert_same(*ours_and_theirs(*arrays, (1, 1), padding, **options), rtol=1e-6)
    function = lambda *x: conv_general_dilated(*x, (1, 1), padding, **options)  # noqa: E731
    assert count(function, "custom_vjp_call", *arrays) == 0


def test_one_and_three_dimensions_are_left_to_jax() -> None:
    for numbers, shapes in (
        (("NWC", "WIO", "NWC"), ((2, 9, 3), (3, 3, 4))),
        (("NDHWC", "DHWIO", "NDHWC"), ((2, 5, 6, 4, 3), (2, 3, 2, 3, 4))),
    ):
        arrays = [random(*shape, dtype=np.float32) for shape in shapes]
        args = (*arrays, (2,) * (len(numbers[0]) - 2), "SAME")
        assert_same(*ours_and_theirs(*args, dimension_numbers=numbers), rtol=1e-6)


def test_other_devices_than_cpu_are_left_to_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = random(2, 6, 5, 3, dtype=np.float32), random(3, 3, 3, 4, dtype=np.float32)
    function = lambda *x: conv_general_dilated(*x, (1, 1), "SAME", dimension_numbers=LAYOUT)  # noqa: E731
    assert count(function, "custom_vjp_call", *arrays) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert count(lambda *x: function(*x), "custom_vjp_call", *arrays) == 0


@pytest.mark.parametrize(("name", "side", "convolutions"), [("cnn3", 8, 2), ("cnn7", 24, 3)])
def test_models_use_it_and_all_their_gradients_have_the_fast_layout(name: str, side: int, convolutions: int) -> None:
    model = make_model(name, (side, side, 1), 10)
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, model_state, images, None)[0].sum()

    assert count(loss, "custom_vjp_call", params, images) == convolutions
    fast = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), LAYOUT)
    equations = list(primitives(jax.make_jaxpr(jax.grad(loss))(params, images).jaxpr))
    layouts = [e.params["dimension_numbers"] for e in equations if e.primitive.name == "conv_general_dilated"]
    assert len(layouts) >= 3 * convolutions - 1
    assert set(layouts) == {fast}


def test_a_layer_of_flax_gives_the_same_with_and_without_it() -> None:
    def layer(**options: Any) -> nnx.Conv:
        options |= {"kernel_init": lambda key, shape, dtype: jnp.asarray(random(*shape, dtype=dtype))}
        return nnx.Conv(
            3, 4, (3, 2), strides=(2, 1), padding="SAME", kernel_dilation=(1, 2), rngs=nnx.Rngs(0), **options
        )

    images = jnp.asarray(random(2, 6, 7, 3, dtype=np.float32))
    theirs, ours = layer(), layer(conv_general_dilated=conv_general_dilated)
    assert count(lambda x: ours(x), "custom_vjp_call", images) == 1
    np.testing.assert_allclose(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
