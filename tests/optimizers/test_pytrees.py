"""Every method with parameters of every kind, in every mapping; and buffers that are donated."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from regression import in_lanes, on_mesh, on_pmap_of_lanes
from thorough import mostly, thorough

import lsgd_jax
from lsgd_jax import (
    GROUP,
    WORKER,
    Axes,
    Batches,
    DistributedOptimizer,
    Topology,
    init_state,
    make_train_step,
    periodic,
)
from lsgd_jax.trainer.candidates import make_candidates

GROUPS, WORKERS, STEPS = 2, 2, 8
SGD = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
PULLS = {"local_pull": 0.3, "global_pull": 0.2, "stale_local_pull": 0.02, "stale_global_pull": 0.01}
METHODS: dict[str, Callable[[], DistributedOptimizer]] = {
    "lsgd": lambda: lsgd_jax.lsgd(SGD, local_period=2, global_period=4, **PULLS),
    "easgd": lambda: lsgd_jax.easgd(SGD, period=3),
    "eamsgd": lambda: lsgd_jax.eamsgd(SGD, momentum=0.5, period=3),
    "downpour": lambda: lsgd_jax.downpour(SGD, period=3),
    "local_sgd": lambda: lsgd_jax.local_sgd(SGD, local_period=2, global_period=4),
    "diloco": lambda: lsgd_jax.diloco(SGD, SGD, period=3),
    "grawa": lambda: lsgd_jax.grawa(SGD, pull=0.3, period=3),
    "dppf": lambda: lsgd_jax.dppf(SGD, pull=0.3, push=0.1, period=3),
    "data_parallel": lambda: lsgd_jax.data_parallel(SGD),
    "independent": lambda: lsgd_jax.independent(SGD),
}
DIFFERENT = ("lsgd", "easgd", "data_parallel")  # a leader's message, a mean, gradients
MAPS: dict[str, Callable[..., Any]] = {
    "nested vmap": partial(in_lanes, groups=GROUPS),
    "shard_map on a plain mesh": partial(on_mesh, groups=GROUPS, workers=WORKERS),
    "pmap of vmap": partial(on_pmap_of_lanes, groups=GROUPS),
}
IN_TEN_MINUTES = {
    "nested vmap": (*DIFFERENT, "downpour", "local_sgd", "diloco", "dppf"),
    "shard_map on a plain mesh": DIFFERENT,
    "pmap of vmap": ("lsgd",),
}
UNMOVED = {
    "count": np.arange(8, dtype=np.int32).reshape(4, 2),
    "flag": np.array([True, False, True, True]),
    "bytes": np.array([[255], [3], [0], [7]], np.uint8),
}


def of_everything() -> Any:
    """A tree of leaves of every kind, [4 workers, ...]: complex, integer, boolean, scalar, empty, and none."""
    rng = np.random.default_rng(0)
    real, imag = rng.normal(size=(2, 4, 3)).astype(np.float32)
    moved = {"z": real + 1j * imag, "scalar": rng.normal(size=4).astype(np.float32), "void": np.zeros((4, 0, 2))}
    return {"moved": jax.tree.map(jnp.asarray, moved), "rest": UNMOVED | {"nothing": None}}


def of_reals() -> Any:
    """The same numbers in floats alone."""
    moved = of_everything()["moved"]
    return {"re": moved["z"].real, "im": moved["z"].imag, "scalar": moved["scalar"]}


def loss_of(params: Any, t: jax.Array) -> jax.Array:
    """Least at 0; each worker's own, in a tree without numbers too."""
    numbers = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    loss = sum((jnp.square(jnp.abs(x)).sum() for x in numbers), start=jnp.zeros([]))
    return loss * (1 + t) / 2 + 0 * lax.axis_index((GROUP, WORKER))


def downhill(grad: Any, param: jax.Array) -> Any:
    """What optax takes: of complex numbers the conjugate; of booleans JAX's own gradient, of integers nothing good."""
    if param.dtype == jnp.int32:
        return jnp.full_like(param, 7)  # somebody's mistake, of which nothing may come
    return jnp.conj(grad) if jnp.issubdtype(param.dtype, jnp.inexact) else grad


def trained(optimizer: DistributedOptimizer, start: Any) -> Any:
    """One worker's parameters after some steps downhill to 0, and its center."""
    transform = periodic(optimizer)

    def step(carry: tuple[Any, Any], t: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of, allow_int=True)(params, t)
        updates, state = transform.update(jax.tree.map(downhill, grads, params), state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = lax.scan(step, (start, transform.init(start)), jnp.arange(STEPS))
    return params, optimizer.center(params, state.inner, Axes())


@cache
def in_reals(method: str) -> Any:
    return MAPS["nested vmap"](partial(trained, METHODS[method]()))(of_reals())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "how"),
    # Of both maps at once are the methods whose messages differ.
    [
        (method, how) if method in IN_TEN_MINUTES[how] else thorough(method, how)
        for method in METHODS
        for how in list(MAPS)[: 3 if method in DIFFERENT else 2]
    ],
)
def test_numbers_move_as_reals_do_and_all_else_stays(method: str, how: str) -> None:
    params, center = MAPS[how](partial(trained, METHODS[method]()))(of_everything())
    for ours, expected in zip((params, center), in_reals(method), strict=True):
        z = np.asarray(ours["moved"]["z"])
        np.testing.assert_allclose(z, expected["re"] + 1j * np.asarray(expected["im"]), rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours["moved"]["scalar"], expected["scalar"], rtol=0, atol=1e-6)
        assert ours["moved"]["void"].shape == (4, 0, 2)
        assert jax.tree.structure(ours) == jax.tree.structure(of_everything())
    for name, leaf in UNMOVED.items():
        np.testing.assert_array_equal(params["rest"][name], leaf, strict=True)
        np.testing.assert_array_equal(center["rest"][name], np.broadcast_to(leaf[:1], leaf.shape), strict=True)
    assert np.abs(params["moved"]["z"] - of_everything()["moved"]["z"]).max() > 0.1


@pytest.mark.parametrize("method", mostly(METHODS, "lsgd", "easgd", "diloco", "grawa", "data_parallel"))
def test_a_tree_without_numbers_has_nothing_to_move(method: str) -> None:
    for how in ("nested vmap", "shard_map on a plain mesh"):
        params, center = MAPS[how](lambda rank: trained(METHODS[method](), {"count": rank}))(jnp.arange(4))
        np.testing.assert_array_equal(params["count"], jnp.arange(4))
        np.testing.assert_array_equal(center["count"], jnp.zeros(4))
    assert trained_on_nothing(method) == ({}, {})


def trained_on_nothing(method: str) -> Any:
    return MAPS["nested vmap"](lambda rank: trained(METHODS[method](), {}))(jnp.arange(4))


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(METHODS, "lsgd", "diloco", "dppf"))
def test_narrow_numbers_beside_others_stay_what_they_are_under_strict_promotion_too(method: str) -> None:
    dtypes = (jnp.float8_e4m3fn, jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64)
    tree = {dtype.__name__: jnp.ones((4, 3), dtype) for dtype in dtypes}

    def run(params: Any) -> Any:
        transform, optimizer = periodic(METHODS[method]()), METHODS[method]()
        state = transform.init(params)
        updates, state = transform.update(params, state, params, value=params["float32"][0])
        return optax.apply_updates(params, updates), optimizer.center(params, state.inner, Axes())

    for promotion in ("standard", "strict"):
        with jax.numpy_dtype_promotion(promotion), jax.numpy_rank_promotion("raise"):
            for after in jax.eval_shape(in_lanes(run, GROUPS), tree):
                assert {name: leaf.dtype for name, leaf in after.items()} == {k: v.dtype for k, v in tree.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(METHODS, "lsgd", "easgd", "diloco"))
def test_parameters_and_state_can_be_donated(method: str) -> None:
    optimizer = METHODS[method]()
    transform = periodic(optimizer)

    def lanes(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return jax.jit(jax.vmap(jax.vmap(function, axis_name=WORKER), axis_name=GROUP), **options)

    @partial(lanes, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = transform.update(params, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    center = lanes(lambda params, state: optimizer.center(params, state.inner, Axes()))
    params = {"w": jnp.ones((1, 2, 3)), "count": jnp.ones((1, 2), jnp.int32)}
    state = lanes(transform.init)(params)
    for _ in range(3):
        middle = center(params, state)
        params, state = step(params, state)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((middle, params, state)))


BATCHES = Batches(
    plan=lambda key, first, steps: first + jnp.arange(steps), draw=lambda data, i, key: i, per_worker=False
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lsgd", "data_parallel"])
def test_the_train_step_takes_complex_numbers_downhill_and_leaves_integers(method: str) -> None:
    topology, optimizer = Topology(GROUPS, WORKERS, jax.devices()[:4]), METHODS[method]()

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        del batch, key
        return jnp.square(jnp.abs(params["z"])).sum(), model_state

    def model(key: jax.Array) -> tuple[Any, Any]:
        return {"z": jax.random.normal(key, 3, jnp.complex64), "count": jax.random.randint(key, 2, 0, 99)}, {}

    state = init_state(optimizer, topology, model, jax.random.key(0), same_init=False)
    before = jax.device_get(state.params)
    step = make_train_step(optimizer, topology, loss, BATCHES)
    for _ in range(60):
        state, _ = step(state, jnp.zeros([]), jnp.int32(4))
    assert np.abs(state.params["z"]).max() < 0.1 * np.abs(before["z"]).max()
    np.testing.assert_array_equal(state.params["count"], before["count"])


@pytest.mark.slow
def test_the_center_of_a_model_that_counts_is_the_same_on_every_device() -> None:
    def model(key: jax.Array) -> tuple[Any, Any]:
        count = jax.random.randint(key, 2, 0, 99)
        return {"w": jax.random.normal(key, 3), "count": count}, {"seen": count, "key": key}

    centers = []
    for devices in (1, 8):
        topology = Topology(2, 4, jax.devices()[:devices])
        state = init_state(METHODS["easgd"](), topology, model, jax.random.key(0), same_init=False)
        params, model_state = make_candidates(METHODS["easgd"](), topology)(state).center
        state = model_state | {"key": jax.random.key_data(model_state["key"])}
        for leaf in jax.tree.leaves((params, state)):
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(shard.data, leaf.addressable_data(0))
        centers.append(jax.device_get((params, state)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *centers)


@pytest.mark.slow
def test_a_model_without_parameters_has_a_state_and_a_ledger() -> None:
    for method in METHODS.values():
        state = init_state(method(), Topology(GROUPS, WORKERS), lambda key: ({}, {}), jax.random.key(0))
        assert state.losses.values.shape[:2] == (GROUPS, WORKERS)
        assert lsgd_jax.ledger(method(), {}, groups=GROUPS, workers=WORKERS).bytes_sent(8) <= 1000  # scores and counts
