"""The networks with batch norm: published sizes, their running moments, and a step of training."""

from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from regression import QUICK
from thorough import thorough

from lsgd_jax import Topology, init_state, lsgd, make_train_step
from lsgd_jax.data.images import Images, Preprocessing, augmented
from lsgd_jax.data.sampling import make_batches, put_on_devices
from lsgd_jax.models import make_model
from lsgd_jax.models.functional import FunctionalModel, functional_model
from lsgd_jax.models.layers import max_pool_3
from lsgd_jax.models.resnet import Bottleneck, Resnet20, Resnet50
from lsgd_jax.models.vgg import Vgg16
from lsgd_jax.tasks.classification import classification_loss

KEY = jax.random.key(0)

VGG16 = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG16_CONVS = sum(9 * a * b for a, b in pairwise(VGG16))

COUNTS = {
    # 15.25M in chenyaofo/pytorch-cifar-models and chengyangfu/pytorch-vgg-cifar10, which keep 4,224 biases.
    ("vgg16", (32, 32, 3), 10): VGG16_CONVS + 2 * sum(VGG16[1:]) + 2 * (512 * 512 + 512) + (512 * 10 + 10),
    ("vgg16", (28, 28, 3), 10): 15_253_578 - 4_224,
    # 0.27M in He et al. 2016, table 6; 269,722 in akamaster/pytorch_resnet_cifar10.
    ("resnet20", (32, 32, 3), 10): 269_722,
    # torchvision.models.resnet50.
    ("resnet50", (224, 224, 3), 1000): 25_557_032,
}
# Batch norm keeps a mean and a variance of each of these.
CHANNELS = {
    "vgg16": sum(VGG16[1:]),
    "resnet20": 7 * 16 + 6 * 32 + 6 * 64,
    "resnet50": 64 + sum(n * 6 * width + 4 * width for n, width in ((3, 64), (4, 128), (6, 256), (3, 512))),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "count"), COUNTS.items(), ids=[f"{c[0]}-{c[1][0]}" for c in COUNTS])
def test_parameters_are_as_many_as_published(case: Any, count: int) -> None:
    name, shape, classes = case
    model = make_model(name, shape, classes)
    params, model_state = jax.eval_shape(model.init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(model_state)) == 2 * CHANNELS[name]
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    for key in (None, KEY):
        logits, after = jax.eval_shape(lambda *args, key=key: model.apply(*args, key), params, model_state, images)
        assert (logits.shape, logits.dtype) == ((2, classes), jnp.float32)
        assert after == model_state


@pytest.mark.parametrize(("side", "inputs"), [(17, 512), (28, 512), (32, 512), (33, 4 * 512)])
def test_an_odd_last_row_makes_windows_of_its_own_in_vgg16(side: int, inputs: int) -> None:
    params, _ = jax.eval_shape(make_model("vgg16", (side, side, 3), 10).init, KEY)
    assert params["hidden1"]["kernel"].shape == (inputs, 512)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(6, 7), (1, 4)])
def test_max_pooling_by_3_and_its_gradient_are_those_of_flax(height: int, width: int) -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, 3)), jnp.float32)

    def theirs(x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    ours, pull_back = jax.vjp(max_pool_3, images)
    expected, expected_pull_back = jax.vjp(theirs, images)
    np.testing.assert_array_equal(ours, expected)
    cotangent = jnp.cos(jnp.arange(ours.size, dtype=jnp.float32)).reshape(ours.shape)
    np.testing.assert_allclose(pull_back(cotangent)[0], expected_pull_back(cotangent)[0], rtol=1e-6)


def reference(params: Any, state: Any, x: jax.Array) -> jax.Array:
    """ResNet20's logits in evaluation, written down once more, channels first."""

    def conv_norm(at: Any, moments: Any, x: jax.Array, stride: int = 1) -> jax.Array:
        kernel = at["conv"]["kernel"].transpose(3, 2, 0, 1)
        x = lax.conv(x, kernel, (stride, stride), "SAME") if stride == 1 else lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1))
        )  # fmt: skip
        by_channel = {k: v[:, None, None] for k, v in (at["norm"] | moments["norm"]).items()}
        x = (x - by_channel["mean"]) / jnp.sqrt(by_channel["var"] + 1e-5)
        return x * by_channel["scale"] + by_channel["bias"]

    x = nnx.relu(conv_norm(params["stem"], state["stem"], x.transpose(0, 3, 1, 2)))
    for stage in (1, 2, 3):
        for block in (1, 2, 3):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            y = nnx.relu(conv_norm(params[name]["conv1"], state[name]["conv1"], x, stride))
            y = conv_norm(params[name]["conv2"], state[name]["conv2"], y)
            x = nnx.relu(y.at[:, : x.shape[1]].add(x[:, :, ::stride, ::stride]))
    return x.mean((2, 3)) @ params["logits"]["kernel"] + params["logits"]["bias"]


class FewerBlocks20(Resnet20):
    """ResNet20 with one block a stage, which compiles sooner."""

    blocks = (1, 1, 1)


class FewerBlocks50(Resnet50):
    """ResNet50 with one block a stage."""

    blocks = (1, 1, 1, 1)


def made(network: Any, side: int, dtype: str = "float32") -> FunctionalModel:
    return functional_model(lambda rngs: network((side, side, 3), 5, dtype, rngs=rngs))


@cache
def weights(network: Any, side: int) -> tuple[Any, Any]:
    """(params, model_state) as in training, rather than at its start."""
    rng = np.random.default_rng(0)

    def leaf(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        last = path[-1].key
        if last in ("scale", "var"):
            return rng.uniform(0.5, 1.5, x.shape).astype(x.dtype)
        deviation = (2 / np.prod(x.shape[:-1])) ** 0.5 if last == "kernel" else 0.1
        return (deviation * rng.standard_normal(x.shape, np.float32)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(made(network, side).init, KEY))


def images_of(side: int, batch: int = 4) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, side, side, 3)), jnp.float32)


@pytest.mark.slow
def test_resnet20_is_what_its_paper_says() -> None:
    params, state = weights(Resnet20, 9)
    model, images = made(Resnet20, 9), images_of(9)
    apply = jax.jit(lambda *args: model.apply(*args, None), compiler_options=QUICK)
    logits, after = apply(params, state, images)
    expected = jax.jit(reference, compiler_options=QUICK)(params, state, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.slow
def test_training_moves_the_moments_by_a_tenth_to_those_of_the_batch() -> None:
    model, images = made(Resnet20, 9), images_of(9)
    params, state = weights(Resnet20, 9)
    apply = jax.jit(lambda *args: model.apply(*args, KEY), compiler_options=QUICK)
    _, after = apply(params, state, images)
    kernel = params["stem"]["conv"]["kernel"]
    x = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    for name, moment in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
        expected = 0.9 * state["stem"]["norm"][name] + 0.1 * moment
        np.testing.assert_allclose(after["stem"]["norm"][name], expected, rtol=1e-4)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).all()), after, state)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "side", "dtype"),
    [(FewerBlocks20, 8, "bfloat16"), (FewerBlocks50, 33, "float32"), thorough(Vgg16, 17, "float32")],
)
def test_a_gradient_is_finite_and_everything_stays_in_float32(network: Any, side: int, dtype: str) -> None:
    model = made(network, side, dtype)
    params, state = weights(network, side)

    def loss(params: Any, state: Any, images: jax.Array) -> Any:
        logits, after = model.apply(params, state, images, KEY)
        return jax.nn.logsumexp(logits, axis=-1).sum(), after

    grads, after = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(params, state, images_of(side))
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, after))} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, after)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True))


@pytest.mark.slow
def test_a_bottleneck_starts_as_its_shortcut() -> None:
    block, x = Bottleneck(8, 2, 1, None, nnx.Rngs(0)), jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 8)))
    np.testing.assert_array_equal(block(x, True), nnx.relu(x))


@pytest.mark.slow
@pytest.mark.thorough
def test_workers_with_residual_blocks_train_alike_on_1_and_on_8_devices() -> None:
    model = made(FewerBlocks20, 8)
    method = lsgd(optax.sgd(0.05, momentum=0.9), local_period=1, global_period=2)
    rng = np.random.default_rng(0)
    data = Images(rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8), rng.integers(0, 5, 64).astype(np.int32))
    batches = make_batches("iid", 64, 8, augmented(Preprocessing(mean=(127.0,) * 3, std=(64.0,) * 3)))
    states = []
    for devices in (1, 8):
        topology = Topology(2, 4, jax.devices()[:devices])
        step = make_train_step(method, topology, classification_loss(model), batches, compiler_options=QUICK)
        state = init_state(method, topology, lambda key: weights(FewerBlocks20, 8), KEY)
        before = jax.device_get(state)
        for _ in range(2):
            state, report = step(state, put_on_devices(data, topology, "iid", 0), jnp.int32(1))
        assert report.elections["global"].due.all()
        assert not report.lost.any()
        states.append(jax.device_get(state))
    one, eight = states
    for a, b, start in zip(*(jax.tree.leaves((x.params, x.model_state)) for x in (one, eight, before)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert (a != start).any()
    means = one.model_state["stem"]["norm"]["mean"].reshape(8, -1)
    assert len(np.unique(means, axis=0)) == 8, "each worker has its own moments"
