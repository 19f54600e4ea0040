"""From the leader to everybody, by both methods, over devices, lanes and both."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from regression import GROUPS, WORKERS, in_lanes, on_mesh, on_mesh_of_lanes, on_pmap_of_lanes

from lsgd_jax import GROUP, WORKER, Topology, broadcast_from_leader, elect_leader
from lsgd_jax.accounting.compiled import collectives
from lsgd_jax.collectives import Leader, broadcast, partition

NAN, INF = np.nan, np.inf
EVERYBODY = (GROUP, WORKER)


def on_lanes_of_meshes(run: Callable[..., Any]) -> Callable[..., Any]:
    """Lanes around a mesh: groups are lanes of every device, workers are devices."""
    split = PartitionSpec(WORKER)
    mesh = Mesh(np.array(jax.devices()[:WORKERS]), (WORKER,))

    def of_group(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], run(*jax.tree.map(lambda leaf: leaf[0], args)))

    mapped = jax.shard_map(of_group, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)

    def of_all(*args: Any) -> Any:
        args = jax.tree.map(lambda leaf: leaf.reshape(GROUPS, WORKERS, *leaf.shape[1:]), args)
        out = jax.vmap(mapped, axis_name=GROUP)(*args)
        return jax.tree.map(lambda leaf: leaf.reshape(GROUPS * WORKERS, *leaf.shape[2:]), out)

    return jax.jit(of_all)


Mapping = Callable[[Callable[..., Any]], Callable[..., Any]]
WAYS: dict[str, Mapping] = {
    "mesh": partial(on_mesh, groups=GROUPS, workers=WORKERS),
    "lanes": partial(in_lanes, groups=GROUPS),
    "mesh of lanes": partial(on_mesh_of_lanes, groups=GROUPS),
}
MORE_WAYS: dict[str, Mapping] = {
    "pmap of lanes": partial(on_pmap_of_lanes, groups=GROUPS),
    "lanes of meshes": on_lanes_of_meshes,
}
every_way = pytest.mark.parametrize("way", WAYS)
METHODS: tuple[broadcast.BroadcastMethod, ...] = ("psum", "ring")
each_method = pytest.mark.parametrize("method", METHODS)

DTYPES = {
    "float32": jnp.float32, "float16": jnp.float16, "int32": jnp.int32, "int8": jnp.int8, "bool": jnp.bool_,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even these small trees go around the ring in several chunks."""
    monkeypatch.setattr(broadcast, "LEAST_CHUNK", 3)


def trees() -> dict[str, np.ndarray]:
    """What six workers hold: [6, 7] of every dtype."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(scale=40, size=(6, 7))
    numbers[:, 0] = -0.0
    return {
        name: np.array(jnp.asarray(numbers if name != "bool" else numbers > 0, dtype)) for name, dtype in DTYPES.items()
    }


@cache
def broadcasts(
    way: str, method: broadcast.BroadcastMethod, wire_dtype: str | None = None, axes: Any = EVERYBODY
) -> Any:
    def run(tree: Any, score: jax.Array) -> Any:
        leader = elect_leader(score, axes)
        return broadcast_from_leader(tree, leader, axes, wire_dtype=wire_dtype, method=method)

    compiled = (WAYS | MORE_WAYS)[way](run)
    return lambda tree, score: jax.device_get(compiled(tree, np.asarray(score, np.float32)))


def bits(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).view(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("way", [*WAYS, *MORE_WAYS])
@each_method
def test_everybody_gets_the_leaders_tree_with_its_dtypes(way: str, method: broadcast.BroadcastMethod) -> None:
    tree = trees()
    for rank in range(6):
        received = broadcasts(way, method)(tree, [float(rank != i) for i in range(6)])
        for name, leaf in tree.items():
            assert received[name].dtype == leaf.dtype
            np.testing.assert_array_equal(bits(received[name]), bits(np.tile(leaf[rank], (6, 1))), err_msg=name)


@pytest.mark.slow
@every_way
@each_method
def test_complex_numbers_keys_and_less_than_a_byte_arrive_whole(way: str, method: broadcast.BroadcastMethod) -> None:
    numbers = np.arange(-6, 6).reshape(6, 2)
    tree = {"complex": jnp.asarray(numbers * (1 - 3j)), "keys": jax.random.split(jax.random.key(0), 6)}
    tree |= {dtype: jnp.asarray(numbers, dtype) for dtype in ("int4", "float8_e4m3fn")}
    received = broadcasts(way, method)(tree, [5, 4, 3, 0, 1, 6])
    for name, leaf in tree.items():
        assert received[name].dtype == leaf.dtype
        assert (received[name] == leaf[3]).all()


def test_complex_numbers_are_rounded_for_the_wire_as_their_parts_are() -> None:
    parts = np.random.default_rng(0).normal(size=(2, 6, 9)).astype(np.float32)
    for wire_dtype in ("bfloat16", "int8"):
        by_parts = broadcasts("lanes", "psum", wire_dtype)(parts.transpose(1, 2, 0), np.arange(6))
        whole = broadcasts("lanes", "psum", wire_dtype)(parts[0] + 1j * parts[1], np.arange(6))
        np.testing.assert_array_equal(whole, by_parts[..., 0] + 1j * by_parts[..., 1])
        assert (whole[1:] != (parts[0] + 1j * parts[1])[0]).any()


@every_way
@each_method
def test_over_one_axis_each_group_gets_its_own_leaders_tree(way: str, method: broadcast.BroadcastMethod) -> None:
    tree = trees()
    received = broadcasts(way, method, axes=WORKER)(tree, [5, 4, 6, 2, 3, 6])
    for name, leaf in tree.items():
        np.testing.assert_array_equal(received[name], leaf[[1, 1, 1, 3, 3, 3]], err_msg=name)


@every_way
@each_method
def test_the_outermost_axis_may_be_any(way: str, method: broadcast.BroadcastMethod) -> None:
    tree = trees()
    received = broadcasts(way, method, axes=(WORKER, GROUP))(tree, [5, 4, 6, 2, 1, 6])
    for name, leaf in tree.items():
        np.testing.assert_array_equal(received[name], np.tile(leaf[4], (6, 1)), err_msg=name)


@pytest.mark.slow
@every_way
@each_method
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_others_hold_never_enters(way: str, method: broadcast.BroadcastMethod, bad: float) -> None:
    tree = trees()
    for name in ("float32", "float16"):
        tree[name][[0, 1, 3, 4, 5]] = bad
    received = broadcasts(way, method)(tree, [5, 4, 3, 5, 5, 6])
    for name, leaf in tree.items():
        np.testing.assert_array_equal(received[name], np.tile(leaf[2], (6, 1)), err_msg=name)
    assert np.isfinite(broadcasts(way, "ring", "int8")(tree, [5, 4, 3, 5, 5, 6])["float32"]).all()


@pytest.mark.slow
@every_way
def test_without_a_leader_each_keeps_its_own_tree(way: str) -> None:
    tree = trees()
    for method, wire_dtype in (("psum", None), ("ring", None), ("ring", "int8")):
        kept = broadcasts(way, method, wire_dtype)(tree, [NAN] * 6)
        for name, leaf in tree.items():
            np.testing.assert_array_equal(bits(kept[name]), bits(leaf), err_msg=name)


def quantized(leaf: np.ndarray) -> np.ndarray:
    """A leaf of less than a block, in float32, as int8 brings it."""
    scale = np.abs(leaf).max() / np.float32(127)
    return np.round(leaf / scale) * scale


@pytest.mark.parametrize(
    ("way", "method", "wire_dtype"),
    [
        *((way, "ring", dtype) for way in WAYS for dtype in ("bfloat16", "int8")),
        *(("mesh of lanes", "psum", dtype) for dtype in ("bfloat16", "int8")),
        *(("lanes", "psum", dtype) for dtype in ("float16", "float32")),
    ],
)
def test_a_wire_dtype_rounds_wider_floats_for_all_but_the_leader(way: str, method: Any, wire_dtype: str) -> None:
    tree = trees()
    received = broadcasts(way, method, wire_dtype)(tree, [5, 4, 3, 0, 1, 6])
    for name, leaf in tree.items():
        wider = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize > jnp.dtype(wire_dtype).itemsize
        rounded = leaf[3]
        if wider and wire_dtype == "int8":
            rounded = quantized(leaf[3].astype(np.float32)).astype(leaf.dtype)
        elif wider:
            rounded = leaf[3].astype(jnp.dtype(wire_dtype)).astype(leaf.dtype)
        assert wider != np.array_equal(rounded, leaf[3]), "the rounding must show"
        reference = np.tile(rounded, (6, 1))
        reference[3] = leaf[3]
        assert received[name].dtype == leaf.dtype
        np.testing.assert_array_equal(received[name], reference, err_msg=name)


@pytest.mark.parametrize("wire_dtype", ["float16", "bfloat16", "int8"])
def test_what_is_too_large_for_the_wire_arrives_finite(wire_dtype: str) -> None:
    def run(leaf: jax.Array, score: jax.Array) -> jax.Array:
        return broadcast_from_leader(leaf, elect_leader(score, EVERYBODY), EVERYBODY, wire_dtype=wire_dtype)

    largest = np.full(6, np.finfo(np.float32).max)
    received = WAYS["lanes"](run)(largest, np.arange(6, dtype=np.float32))
    assert received[0] == largest[0]
    arrives = np.finfo(np.float32).max if wire_dtype == "int8" else jnp.finfo(wire_dtype).max
    np.testing.assert_allclose(received[1:], np.float32(arrives), rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_both_methods_bring_the_leaders_bits_however_workers_are_split(devices: int) -> None:
    shape = (2, 4)
    topology = Topology(*shape, jax.devices()[:devices])
    tree = np.random.default_rng(1).normal(size=(*shape, 29)).astype(np.float32)

    def of_worker(tree: Any, score: jax.Array) -> Any:
        received = {}
        for axes in (topology.axes.all, topology.axes.worker):
            for method in METHODS:
                leader = elect_leader(score, axes)
                received[len(axes), method] = broadcast_from_leader(tree, leader, axes, method=method)
        return received

    spec = topology.per_worker.spec
    run = jax.jit(topology.over_devices(topology.over_lanes(of_worker), in_specs=spec, out_specs=spec))
    for seed in range(4):
        score = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        received = jax.device_get(run(tree, score))
        of_all = tree[np.unravel_index(score.argmin(), shape)]
        of_group = tree[np.arange(shape[0]), score.argmin(axis=1)][:, None]
        for method in METHODS:
            np.testing.assert_array_equal(received[4, method], np.broadcast_to(of_all, tree.shape))
            np.testing.assert_array_equal(received[2, method], np.broadcast_to(of_group, tree.shape))


def on_the_wire(shapes: Any, wire_dtype: str | None, method: broadcast.BroadcastMethod = "psum") -> list[str]:
    """Instructions of the compiled program that send what is no scalar."""

    def run(tree: Any, score: jax.Array) -> Any:
        leader = elect_leader(score, EVERYBODY)
        return broadcast_from_leader(tree, leader, EVERYBODY, wire_dtype=wire_dtype, method=method)

    tree = jax.tree.map(lambda shape: jax.ShapeDtypeStruct((6, *shape.shape), shape.dtype), shapes)
    program = WAYS["mesh"](run).lower(tree, jax.ShapeDtypeStruct((6,), jnp.float32)).compile().as_text()
    return [line for line in collectives(program) if "[]" not in line.split("(")[0]]


@pytest.mark.parametrize(
    ("dtype", "wire_dtype", "words"),
    [
        (jnp.float32, None, 2001),
        (jnp.float32, "bfloat16", 1001),
        (jnp.bfloat16, "float16", 1001),
        (jnp.float16, "int8", 501 + 2),
        (jnp.int32, "int8", 2001),
        (jnp.bool_, None, 501),
    ],
)
def test_narrow_numbers_share_words_that_nobody_widens(dtype: Any, wire_dtype: str | None, words: int) -> None:
    (sent,) = on_the_wire(jax.ShapeDtypeStruct((3, 667), dtype), wire_dtype)
    assert f" s32[{words}]" in sent


@each_method
def test_a_tree_travels_in_one_message(method: broadcast.BroadcastMethod) -> None:
    tree = {name: jax.ShapeDtypeStruct((5, 9), dtype) for name, dtype in DTYPES.items()}
    (sent,) = on_the_wire(tree, None, method)
    assert ("collective-permute" in sent) == (method == "ring")


def test_a_tree_without_leaves_sends_nothing() -> None:
    assert on_the_wire({}, None) == on_the_wire({"empty": jax.ShapeDtypeStruct((0,), jnp.float32)}, None, "ring") == []


def sends_around_the_ring(words: int, devices: int) -> tuple[int, int]:
    """How often each device sends to its neighbour, and how many words each time, as the program is traced."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (WORKER,))

    def run(leaf: jax.Array, score: jax.Array) -> jax.Array:
        return broadcast_from_leader(leaf, elect_leader(score[0], WORKER), WORKER, method="ring")

    mapped = jax.shard_map(run, mesh=mesh, in_specs=PartitionSpec(WORKER), out_specs=PartitionSpec(WORKER))
    shapes = (jax.ShapeDtypeStruct((devices * words,), jnp.float32), jax.ShapeDtypeStruct((devices,), jnp.float32))
    (shard,) = (eqn for eqn in jax.make_jaxpr(mapped)(*shapes).eqns if eqn.primitive.name == "shard_map")
    (loop,) = (eqn for eqn in shard.params["jaxpr"].eqns if eqn.primitive.name == "scan")
    (sent,) = (eqn for eqn in loop.params["jaxpr"].jaxpr.eqns if eqn.primitive.name == "ppermute")
    return loop.params["length"], sent.invars[0].aval.size


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
@pytest.mark.parametrize("words", [1, 10, 351_946, 4_000_000])
def test_a_link_of_the_ring_carries_little_more_than_one_model(
    words: int, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # chunks as they are
    times, chunk = sends_around_the_ring(words, devices)
    assert times * chunk >= words
    assert chunk >= min(words, broadcast.LEAST_CHUNK)
    if words >= 20 * (devices - 2) * broadcast.LEAST_CHUNK:
        assert times * chunk <= 1.051 * words


def test_a_worker_that_the_compiler_splits_over_devices_is_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), (GROUP, WORKER, "model"))
    split = PartitionSpec(EVERYBODY)

    def run(leaf: jax.Array, score: jax.Array, **how: Any) -> jax.Array:
        return broadcast_from_leader(leaf, elect_leader(score[0], EVERYBODY), EVERYBODY, **how)

    def mapped(run: Callable[..., Any]) -> Any:
        names = set(EVERYBODY)
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split, axis_names=names))

    leaf = jax.device_put(np.arange(32.0).reshape(4, 8), NamedSharding(mesh, PartitionSpec(EVERYBODY, "model")))
    score = np.array([3.0, 2.0, 1.0, 4.0])
    np.testing.assert_array_equal(mapped(run)(leaf, score), np.tile(np.arange(16.0, 24.0), (4, 1)))
    program = mapped(run).lower(leaf, score).compile().as_text()
    assert {line.split("(")[0].split()[-1] for line in collectives(program)} == {"all-reduce"}
    assert any("[1,4]" in line for line in collectives(program))
    monkeypatch.setattr(partition, "LEAST_SPLIT", 4)
    around = mapped(partial(run, method="ring"))
    np.testing.assert_array_equal(around(leaf, score), np.tile(np.arange(16.0, 24.0), (4, 1)))
    in_blocks = mapped(partial(run, wire_dtype="int8"))
    np.testing.assert_allclose(in_blocks(leaf, score), np.tile(np.arange(16.0, 24.0), (4, 1)), atol=24 / 254)
    for how, kind in ((around, "collective-permute"), (in_blocks, "all-reduce")):
        sent = collectives(how.lower(leaf, score).compile().as_text())
        assert {line.split("(")[0].split()[-1] for line in sent} == {"all-reduce", kind}, "nothing is gathered"


def test_bad_arguments_are_refused_by_name() -> None:
    leader = Leader(jnp.array(0), jnp.array(0.0), jnp.array(True), jnp.array(True))
    for wire_dtype in (jnp.uint8, jnp.int16, jnp.bool_, "uint16", jnp.complex64, jnp.float8_e4m3fn):
        with pytest.raises(ValueError, match="wire_dtype"):
            broadcast_from_leader({"x": jnp.zeros(2)}, leader, WORKER, wire_dtype=wire_dtype)
    with pytest.raises(ValueError, match=r"method.*'tree'"):
        broadcast_from_leader({"x": jnp.zeros(2)}, leader, WORKER, method="tree")  # type: ignore[arg-type]
