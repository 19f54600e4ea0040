"""Our convolutions against JAX's own."""

import dataclasses
import pathlib
from collections.abc import Iterator
from functools import partial
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
from jax.sharding import AbstractMesh

from lsgd_jax import Topology
from lsgd_jax.models import make_model
from lsgd_jax.models.convolution import LAYOUT, conv_general_dilated, winograd

NHWC: dict[str, Any] = {"dimension_numbers": LAYOUT}
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


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradients_are_those_of_jax(case: Any) -> None:
    assert_right(*case)


@pytest.mark.slow
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
# Channels in and out, strides: a band matrix, patches, XLA's, and Winograd's filtering.
LAYERS: dict[str, Any] = {
    "band": (3, 4, (2, 1)), "patches": (8, 4, (2, 1)), "direct": (8, 4, (1, 1)), "Winograd": (32, 32, (1, 1)),
}  # fmt: skip


def of_one_worker(convolution: Any, strides: Any, images: jax.Array, kernel: jax.Array) -> Any:
    """(value, both gradients) of a padded convolution."""
    out, pull_back = jax.vjp(lambda x, k: convolution(x, k, strides, "SAME", **NHWC), images, kernel)
    return out, pull_back(jnp.sin(out))


LOOPS: dict[str, Any] = {
    "vmap": jax.vmap,
    "vmap of vmap": lambda run: (
        lambda *args: jax.tree.map(
            lambda x: x[:, 0], jax.vmap(jax.vmap(run))(*jax.tree.map(lambda x: x[:, None], args))
        )
    ),
    "map": lambda run: lambda *args: lax.map(lambda x: run(*x), args),
}


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_many_kernels_give_what_they_give_one_by_one(layer: Any, loop: Any) -> None:
    features, out, strides = layer
    arrays = random(WORKERS, 2, 6, 7, features, dtype=np.float32), random(WORKERS, 3, 3, features, out) * 0.1
    arrays = arrays[0], arrays[1].astype(np.float32)
    alone = jax.jit(partial(of_one_worker, lax.conv_general_dilated, strides))
    expected = jax.tree.map(lambda *x: jnp.stack(x), *map(alone, *arrays))
    assert_same(jax.jit(loop(partial(of_one_worker, conv_general_dilated, strides)))(*arrays), expected, rtol=3e-5)


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
    "half precision": ((2, 6, 5, 32), (3, 3, 32, 32), {"dimension_numbers": LAYOUT, "dtype": np.float16}),
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


def primitives_of(function: Any, *args: Any) -> list[str]:
    return [e.primitive.name for e in primitives(jax.make_jaxpr(function)(*args).jaxpr)]


@pytest.mark.parametrize(("images", "kernel", "options"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_convolutions_are_left_to_jax(images: Any, kernel: Any, options: Any) -> None:
    options = dict(options)
    dtype = options.pop("dtype", np.float32)
    arrays = random(*images, dtype=dtype), random(*kernel, dtype=dtype)
    padding = ((1, 0), (2, 1))
    assert_same(*ours_and_theirs(*arrays, (1, 1), padding, **options), rtol=1e-6)
    function = lambda *x: conv_general_dilated(*x, (1, 1), padding, **options)  # noqa: E731
    assert primitives_of(function, *arrays) == ["conv_general_dilated"]


def test_one_and_three_dimensions_are_left_to_jax() -> None:
    for numbers, shapes in (
        (("NWC", "WIO", "NWC"), ((2, 9, 3), (3, 3, 4))),
        (("NDHWC", "DHWIO", "NDHWC"), ((2, 5, 6, 4, 3), (2, 3, 2, 3, 4))),
    ):
        arrays = [random(*shape, dtype=np.float32) for shape in shapes]
        args = (*arrays, (2,) * (len(numbers[0]) - 2), "SAME")
        assert_same(*ours_and_theirs(*args, dimension_numbers=numbers), rtol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_other_devices_than_cpu_are_left_to_jax_and_the_mesh_says_which_they_are(platform: str) -> None:
    arrays = random(2, 6, 5, 3, dtype=np.float32), random(3, 3, 3, 4, dtype=np.float32)

    def convolve(*of: Any) -> jax.Array:
        return conv_general_dilated(*of, (1, 1), "SAME", **NHWC)

    here, mesh = Topology(2, 4).traced(convolve), Topology(2, 4).mesh.abstract_mesh
    other = dataclasses.replace(mesh.abstract_device, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh(mesh.axis_sizes, mesh.axis_names, abstract_device=other)):
        assert [name for name in primitives_of(convolve, *arrays) if "custom" not in name] == ["conv_general_dilated"]
        assert "dot_general" in primitives_of(here, *arrays)
    assert "dot_general" in primitives_of(convolve, *arrays)
    assert "dot_general" in primitives_of(here, *arrays)


def test_nothing_is_chosen_by_the_backend_of_the_host() -> None:
    root = pathlib.Path(__file__).parents[2]
    code = [path for room in ("lsgd_jax", "experiments", "benchmarks") for path in (root / room).rglob("*.py")]
    assert len(code) > 100
    assert not [path.name for path in code if "default_backend" in path.read_text()]


# (height, width), kernel: tiles of 4 and of 2, one of them or many, with and without a rest.
TILED: dict[str, Any] = {
    "5×5, tiles that fit": ((12, 12), 5),
    "5×5, tiles with a rest": ((11, 14), 5),
    "5×5, one small tile": ((6, 6), 5),
    "4×4": ((13, 7), 4),
    "3×3": ((10, 8), 3),
    "3×3, one output": ((3, 3), 3),
    "2×2": ((5, 9), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(("sides", "taps"), TILED.values(), ids=TILED)
def test_winograds_filtering_is_exact_but_for_rounding(sides: Any, taps: int) -> None:
    with jax.enable_x64(True):
        arrays = random(2, *sides, 32), random(taps, taps, 32, 40)
        ours, theirs = ours_and_theirs(*arrays, (1, 1), "VALID", **NHWC)
        assert primitives_of(lambda *x: conv_general_dilated(*x, (1, 1), "VALID", **NHWC), *arrays).count("dot_general")
        assert_same(ours, theirs, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_winograds_filtering_keeps_five_digits_in_float32(taps: int) -> None:
    arrays = random(8, 12, 12, 64), random(taps, taps, 64, 96)
    with jax.enable_x64(True):
        _, exact = ours_and_theirs(*arrays, (1, 1), "SAME", **NHWC)
    rounded, _ = ours_and_theirs(*(x.astype(np.float32) for x in arrays), (1, 1), "SAME", **NHWC)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), rounded, exact)


def test_winograds_filtering_multiplies_six_times_less() -> None:
    assert winograd.multiplications(8, 8, taps=5, tile=4) * 6.25 == 8 * 8 * 5 * 5
    assert winograd.multiplications(8, 8, taps=3, tile=4) * 4 == 8 * 8 * 3 * 3


# Images, kernel, strides, kernel dilation, and whether XLA's convolution is in it.
CHOICES: dict[str, Any] = {
    "few channels": ((2, 28, 28, 3), (5, 5, 3, 64), (1, 1), (1, 1), False),
    "many channels": ((2, 12, 12, 64), (5, 5, 64, 128), (1, 1), (1, 1), False),
    "strides": ((2, 12, 12, 32), (3, 3, 32, 32), (2, 2), (1, 1), False),
    "1×1": ((2, 12, 12, 32), (1, 1, 32, 32), (1, 1), (1, 1), False),
    "16 channels": ((2, 12, 12, 16), (3, 3, 16, 16), (1, 1), (1, 1), True),
    "dilation": ((2, 12, 12, 64), (3, 3, 64, 64), (1, 1), (2, 2), True),
    "no square": ((2, 12, 12, 64), (3, 1, 64, 64), (1, 1), (1, 1), True),
}


@pytest.mark.slow
@pytest.mark.parametrize(("images", "kernel", "strides", "dilation", "by_xla"), CHOICES.values(), ids=CHOICES)
def test_the_choice_falls_by_shape_and_keeps_the_numbers(
    images: Any, kernel: Any, strides: Any, dilation: Any, by_xla: bool
) -> None:
    arrays = random(*images, dtype=np.float32), random(*kernel, dtype=np.float32)
    options = {"rhs_dilation": dilation, **NHWC}
    assert_same(*ours_and_theirs(*arrays, strides, "SAME", **options), rtol=1e-5)
    found = primitives_of(lambda *x: conv_general_dilated(*x, strides, "SAME", **options), *arrays)
    assert ("conv_general_dilated" in found) == by_xla
    assert ("dot_general" in found) != by_xla


@pytest.mark.slow
@pytest.mark.parametrize(("side", "features"), [(12, 64), (12, 3), (4, 64)], ids=["direct", "band", "patches"])
def test_bfloat16_gives_float32_on_cpu(side: int, features: int) -> None:
    arrays = random(2, side, side, features, dtype=np.float32), random(5, 5, features, 8, dtype=np.float32)

    def of(convolution: Any, dtype: Any) -> Any:
        def run(*x: jax.Array) -> jax.Array:
            return convolution(*(each.astype(dtype) for each in x), (1, 1), "SAME", **NHWC)

        out, pull_back = jax.vjp(run, *map(jnp.asarray, arrays))
        return out, pull_back(jnp.ones_like(out))

    rounded, exact = of(conv_general_dilated, jnp.bfloat16), of(lax.conv_general_dilated, jnp.float32)
    for got, right in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, right, rtol=0, atol=2e-2 * np.abs(right).max())


def test_what_no_window_fits_into_and_what_holds_no_image_give_what_jax_gives() -> None:
    for images in ((2, 2, 2, 32), (0, 6, 6, 32), (0, 6, 6, 3)):
        for strides in ((1, 1), (2, 2)):
            arrays = random(*images, dtype=np.float32), random(3, 3, images[-1], 32, dtype=np.float32)
            ours = conv_general_dilated(*arrays, strides, "VALID", **NHWC)
            assert ours.shape == lax.conv_general_dilated(*arrays, strides, "VALID", **NHWC).shape


@pytest.mark.parametrize("case", ["16 channels", "dilation"])
def test_gradients_by_xla_have_the_fast_layout(case: str) -> None:
    images, kernel, strides, dilation, _ = CHOICES[case]
    arrays = random(*images, dtype=np.float32), random(*kernel, dtype=np.float32)
    options = {"rhs_dilation": dilation, **NHWC}
    loss = lambda *x: conv_general_dilated(*x, strides, "SAME", **options).sum()  # noqa: E731
    equations = list(primitives(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arrays).jaxpr))
    layouts = [e.params["dimension_numbers"] for e in equations if e.primitive.name == "conv_general_dilated"]
    assert len(layouts) >= 2
    assert set(layouts) == {lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), LAYOUT)}


@pytest.mark.parametrize(("name", "side"), [("cnn3", 8), ("cnn7", 24)])
def test_models_train_by_matrix_products_alone(name: str, side: int) -> None:
    model = make_model(name, (side, side, 1), 10)
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, model_state, images, None)[0].sum()

    found = primitives_of(jax.grad(loss), params, images)
    assert "dot_general" in found
    assert not {"conv_general_dilated", "reduce_window_max", "select_and_scatter_add"} & set(found)


def test_a_layer_of_flax_gives_the_same_with_and_without_it() -> None:
    def layer(**options: Any) -> nnx.Conv:
        options |= {"kernel_init": lambda key, shape, dtype: jnp.asarray(random(*shape, dtype=dtype))}
        return nnx.Conv(3, 4, (3, 2), strides=(2, 1), padding="SAME", rngs=nnx.Rngs(0), **options)

    images = jnp.asarray(random(2, 6, 7, 3, dtype=np.float32))
    theirs, ours = layer(), layer(conv_general_dilated=conv_general_dilated)
    assert "conv_general_dilated" not in primitives_of(lambda x: ours(x), images)
    np.testing.assert_allclose(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
